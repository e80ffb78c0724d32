"""Releases with containers as managers build, see and sign them."""

from pathlib import Path
from typing import Any

import pytest

from protocol.container import DataMount, HealthCheck, HostMount, ReleaseMount, ScratchMount
from protocol.errors import Reason, Refused, SettingsError
from protocol.limits import MANIFEST_BYTES
from protocol.release import ReleaseManifest, parse_manifest
from signing.release_description import read_description
from tests.fakes.image_files import layer, make_image, write_layout
from tests.fakes.managers_tool import ManagersTool

LOWER = layer({"lib": b"library" * 1000})
APP, ARM = (
    make_image([LOWER, layer({"app": name})], architecture=name.decode(), steps=["ADD x", "COPY y"])
    for name in (b"amd64", b"arm64")
)
CONTAINER = """
[[containers]]
name = "sprayer"
image = "oci:image:1.0"
command = ["/app", "--boom", "a b"]
"""


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    return tool


def described(tool: ManagersTool, container: str = CONTAINER, version: str = "1.0.0", counter: int = 1) -> Path:
    folder = tool.describe(version, counter, more=container)
    write_layout(folder / "image", {"1.0": [APP, ARM]})
    return folder


def built(tool: ManagersTool, container: str = CONTAINER) -> ReleaseManifest:
    said = tool.run("release", "build", described(tool, container))
    return parse_manifest(tool.workspace.read_blob(said["manifest_sha256"], MANIFEST_BYTES))


def fails(tool: ManagersTool, container: str, code: int) -> str:
    said = tool.fail("release", "build", described(tool, container), code=code)
    assert tool.run("release", "list")["open"] == [], "nothing is proposed"
    return said


def test_a_container_is_its_images_and_all_that_it_is_granted(tool: ManagersTool) -> None:
    more = """
user = "1000:1000"
mounts = [{ kind = "release" }, { kind = "scratch", at = "/tmp", size_mib = 8 }]
health = { command = ["/app", "--check"], interval_s = 5 }
strategy = "start-then-stop"
[containers.environment]
BOOM = "3"
"""
    manifest = built(tool, CONTAINER + more)
    (container,) = manifest.containers
    assert container.name == "sprayer"
    assert {image.platform: image.config.sha256 for image in container.images} == {
        "linux/amd64": APP.id,
        "linux/arm64": ARM.id,
    }
    run = container.run
    assert run.command == ("/app", "--boom", "a b")
    assert run.mounts == (ReleaseMount(), ScratchMount(at="/tmp", size_mib=8))
    assert run.health == HealthCheck(command=("/app", "--check"), interval_s=5)
    assert (run.user, run.strategy, run.environment) == ("1000:1000", "start-then-stop", {"BOOM": "3"})
    for artifact in manifest.artifacts():
        assert tool.workspace.blob(artifact.sha256).stat().st_size == artifact.length_bytes


def test_who_builds_sees_what_was_taken_from_where(tool: ManagersTool) -> None:
    said = tool.run("release", "build", described(tool))
    (container,) = said["containers"]
    assert container["name"] == "sprayer"
    assert [(image["platform"], image["config_sha256"]) for image in container["images"]] == [
        ("linux/amd64", APP.id),
        ("linux/arm64", ARM.id),
    ]
    first = container["images"][0]
    assert (first["layers"], first["unpacked_bytes"]) == (2, sum(map(len, APP.layers)))
    assert first["source"].startswith("oci:image:1.0 (sha256:")
    tool.run("release", "cancel", "--yes")
    shown = tool.invoke("release", "build", described(tool))
    assert "container sprayer\n" in shown.stdout
    assert f"image {ARM.id[:12]} for linux/arm64: 2 layers" in shown.stdout
    assert "layer 2 of 2" in shown.stderr and "it is here already" in shown.stderr and "MiB" in shown.stderr


def test_layers_that_nobody_went_on_with_are_gone_after_the_next_release(tool: ManagersTool) -> None:
    folder = described(tool)
    left = tool.workspace.spool("layer of an image that was built anew since")
    left.write_bytes(b"half of it")
    layers = {path: path.read_bytes() for path in (folder / "image/blobs/sha256").iterdir()}
    for path in layers:
        path.unlink()
    tool.fail("release", "build", folder, code=6)
    assert left.exists(), "the next build may go on with it"
    for path, data in layers.items():
        path.write_bytes(data)
    tool.run("release", "build", folder)
    assert not left.exists()


def test_a_command_that_no_machine_could_start_is_refused(tool: ManagersTool) -> None:
    said = fails(tool, CONTAINER.replace('"/app"', '"/ap"'), 4)
    assert "container sprayer: linux/amd64: `command` begins with '/ap', which is not in the image" in said


def test_golden_inputs_are_tried_without_the_containers(tool: ManagersTool) -> None:
    tool.run("release", "build", described(tool))
    (attempt,) = tool.checker.attempts
    assert attempt == {"leaf": "onnx"}


def test_images_by_hardware_stand_side_by_side(tool: ManagersTool) -> None:
    text = """
[[containers]]
name = "sprayer"
command = ["/app"]
platforms = ["linux/arm64"]
images = [{ image = "oci:image", hardware = ["jetson"] }, { image = "oci:image" }]
"""
    (container,) = built(tool, text).containers
    assert [(image.platform, image.hardware) for image in container.images] == [
        ("linux/arm64", ("jetson",)),
        ("linux/arm64", ()),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONTAINER.replace("image =", "imag ="), "unknown key 'imag'"),
        (CONTAINER + 'mounts = [{ kind = "host", pth = "/x", at = "/y" }]', "did you mean 'path'?"),
        (
            CONTAINER + 'devices = ["/dev/mem"]',
            "container sprayer, devices[0]: '/dev/mem' cannot stand there; allowed:",
        ),
        (CONTAINER + 'capabilities = ["SYS_ADMIN"]', "'SYS_ADMIN' cannot stand there; allowed: one of \"CHOWN\""),
        (CONTAINER + 'user = "root"', "container sprayer, user: 'root' cannot stand there; allowed: \"UID:GID\""),
        (CONTAINER + 'platforms = ["arm64"]', 'allowed: one of "linux/amd64"'),
        (CONTAINER.replace("sprayer", "s" * 65), "name: 'ssss"),
        (CONTAINER.replace("oci:image:1.0", "docker.io/library/app"), "cannot be looked for"),
        (CONTAINER.replace("oci:image:1.0", "oci:nowhere"), "no OCI layout"),
        (CONTAINER.replace('image = "oci:image:1.0"', ""), "name one `image`"),
        (CONTAINER + 'images = [{ image = "oci:image" }]', "name one `image`"),
    ],
)
def test_a_description_that_is_wrong_is_said(tool: ManagersTool, text: str, said: str) -> None:
    assert said in fails(tool, text, SettingsError.exit_code)


def test_a_volume_of_the_image_needs_a_mount_before_anybody_can_sign(tool: ManagersTool) -> None:
    wants = make_image(APP.layers, config={"Volumes": {"/var/lib/app": {}}})
    folder = tool.describe("1.0.0", 1, more=CONTAINER)
    write_layout(folder / "image", {"1.0": [wants]})
    said = tool.fail("release", "build", folder, code=4)
    assert "container sprayer: oci:image:1.0, linux/amd64" in said and "/var/lib/app" in said and "add a mount" in said
    mount = 'mounts = [{ kind = "data", name = "store", at = "/var/lib/app" }]'
    (folder / "release.toml").write_text((folder / "release.toml").read_text() + mount)
    tool.run("release", "build", folder)


NOBODY = CONTAINER.replace("oci:image:1.0", "registry:127.0.0.1:1/app")  # who asks there learns that nobody answers
PORT = 'network = "bridge"\nports = [{ container = 80, host = 8080 }]\n'
GATEWAY = NOBODY.replace("sprayer", "gateway")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NOBODY + NOBODY, "two containers of the name sprayer"),
        (
            NOBODY + PORT + GATEWAY + PORT,
            "container gateway: `ports`: 8080/tcp of the machine is published by container sprayer, too",
        ),
        (
            NOBODY + 'mounts = [{ kind = "link", at = "/a" }, { kind = "scratch", at = "/a" }]',
            "container sprayer: `mounts` has two at '/a'",
        ),
        (
            NOBODY + PORT.replace('network = "bridge"', ""),
            'container sprayer: `ports` are published with `network = "br',
        ),
        (NOBODY.replace('"/app", ', '"", '), "container sprayer: `command` begins with no program"),
    ],
)
def test_what_a_run_specification_gets_wrong_is_said_before_any_image_is_looked_at(
    tool: ManagersTool, text: str, said: str
) -> None:
    assert said in fails(tool, text, 4)


def layers_kept(tool: ManagersTool) -> set[str]:
    layers = {digest for image in (APP, ARM) for digest in image.diff_ids}
    return {digest for digest in layers if tool.workspace.blob(digest).exists()}


def test_every_image_is_looked_at_before_the_layers_of_one_are_taken(tool: ManagersTool) -> None:
    wants = make_image([LOWER], config={"Volumes": {"/var/lib/app": {}}})
    folder = described(tool, CONTAINER + CONTAINER.replace("sprayer", "store").replace("oci:image:1.0", "oci:other"))
    write_layout(folder / "other", {"1.0": [wants]})
    said = tool.fail("release", "build", folder, code=4)
    assert "container store: oci:other, linux/amd64: the image declares a volume at '/var/lib/app'" in said
    assert layers_kept(tool) == set()


def test_a_model_that_fails_its_golden_inputs_costs_no_layer(tool: ManagersTool) -> None:
    tool.checker.refusal = Refused(Reason.GOLDEN, "other numbers")
    fails(tool, CONTAINER, 4)
    assert layers_kept(tool) == set()
    tool.checker.refusal = None
    built(tool)
    assert layers_kept(tool) == {*APP.diff_ids, *ARM.diff_ids}


def test_an_image_that_no_machine_would_ever_take_is_refused_with_how_to_order_them(tool: ManagersTool) -> None:
    text = CONTAINER.replace(
        'image = "oci:image:1.0"',
        'platforms = ["linux/arm64"]\n'
        'images = [{ image = "oci:image" }, { image = "oci:image", hardware = ["jetson"] }]',
    )
    said = fails(tool, text, 4)
    assert "no machine ever takes the image for linux/arm64 with jetson" in said
    assert "put the image with more hardware tags first" in said
    assert layers_kept(tool) == set()


def test_two_images_for_one_kind_of_machine_are_refused(tool: ManagersTool) -> None:
    text = CONTAINER.replace(
        'image = "oci:image:1.0"', 'images = [{ image = "oci:image" }, { image = "oci:image:1.0" }]'
    )
    assert "two images for one kind of machine" in fails(tool, text, 4)


def test_no_agent_that_knows_no_containers_gets_one(tool: ManagersTool) -> None:
    folder = tool.describe("1.0.0", 1, more=CONTAINER, top='min_agent = "0.0.9"')
    write_layout(folder / "image", {"1.0": [APP]})
    said = tool.run("release", "build", folder)
    assert parse_manifest(tool.workspace.read_blob(said["manifest_sha256"], MANIFEST_BYTES)).min_agent == "0.1.0"
    tool.run("release", "cancel", "--yes")
    folder = tool.describe("1.1.0", 2, more=CONTAINER, top='min_agent = "2.0.0"')
    write_layout(folder / "image", {"1.0": [APP]})
    said = tool.run("release", "build", folder)
    assert parse_manifest(tool.workspace.read_blob(said["manifest_sha256"], MANIFEST_BYTES)).min_agent == "2.0.0"


def changes(tool: ManagersTool) -> dict[str, bool]:
    shown = tool.run("release", "show")["changes"]
    return {change["text"].strip(): change.get("warning", False) for change in shown}


def test_who_signs_sees_what_a_container_is_made_from_and_granted(tool: ManagersTool) -> None:
    tool.run("release", "build", described(tool))
    shown = changes(tool)
    assert "container sprayer: /app --boom 'a b'" in shown
    (source,) = {line for line in shown if line.startswith("from oci:image:1.0")}
    assert "(sha256:" in source, "which digest the name stood for"
    assert any(line.startswith(f"image {ARM.id[:12]} for linux/arm64: 2 layers") for line in shown)
    assert shown["runs as 65534:65534 in /, network none"] is False


@pytest.mark.parametrize(
    ("line", "said", "stop"),
    [
        ('user = "0:0"', "runs as 0:0 in /, network none", True),
        ('network = "host"', "runs as 65534:65534 in /, network host", True),
        ('mounts = [{ kind = "host", path = "/srv", at = "/srv", read_only = false }]', "to WRITE", True),
        ('mounts = [{ kind = "data", name = "d", at = "/d" }]', "mounts the data d at /d", False),
        ('devices = ["/dev/video*"]', "device /dev/video*", True),
        ('gpu = "nvidia"', "GPUs through the nvidia runtime", True),
        ('capabilities = ["SETUID"]', "capabilities SETUID", True),
        ("writable_root = true", "may write into its own file system", True),
        ('network = "bridge"\nports = [{ container = 80, host = 8080 }]', "port 127.0.0.1:8080 -> 80/tcp", False),
        (
            'network = "bridge"\nports = [{ container = 80, host = 8080, address = "0.0.0.0" }]',
            "port 0.0.0.0:8080 -> 80/tcp",
            True,
        ),
        ('environment = { BOOM = "a\\u001b[2Jb" }', "BOOM=a\\x1b[2Jb", False),
    ],
)
def test_a_signer_stops_at_what_opens_the_machine(tool: ManagersTool, line: str, said: str, stop: bool) -> None:
    tool.run("release", "build", described(tool, CONTAINER + line))
    (found,) = [warning for text, warning in changes(tool).items() if said in text]
    assert found is stop


def test_a_published_container_is_shown_and_its_layers_reach_the_server(tool: ManagersTool) -> None:
    said = tool.run("release", "build", described(tool))
    tool.sign("alice", "bob")
    tool.push()
    manifest = parse_manifest(tool.workspace.read_blob(said["manifest_sha256"], MANIFEST_BYTES))
    assert {artifact.sha256 for artifact in manifest.artifacts()} <= set(tool.server.blobs)
    shown = tool.invoke("release", "show", "1.0.0").stdout
    assert "container sprayer" in shown and "linux/arm64" in shown and "oci:image:1.0" in shown
    content: dict[str, Any] = tool.run("release", "show", "1.0.0")["manifest"]
    assert content["containers"][0]["images"][0]["config"]["sha256"] == APP.id


def test_a_description_may_use_every_field_of_a_run_specification(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text(
        'product = "p"\nversion = "1.0.0"\ncounter = 1\n'
        + CONTAINER
        + """
workdir = "/srv"
mounts = [
    { kind = "link" }, { kind = "data", name = "d", at = "/d" }, { kind = "host", path = "/srv/maps", at = "/maps" }
]
resources = { memory_mib = 64, cpus = 0.5 }
restart = { first_s = 2 }
init = true
sees_model = true
"""
    )
    _, description = read_description(tmp_path)
    run = description.containers[0].run()
    assert run.mounts[1:] == (DataMount(name="d", at="/d"), HostMount(path="/srv/maps", at="/maps"))
    assert (run.resources.cpus, run.restart.first_s, run.init, run.sees_model) == (0.5, 2, True, True)
