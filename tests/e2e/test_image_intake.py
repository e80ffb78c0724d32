"""Images from real registries, real engines and real tools, byte for byte what was built."""

import base64
import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from docker import DockerClient

from protocol.errors import LinkError, StateError
from signing.images.credentials import Logins
from signing.images.manifests import MANIFEST_TYPES
from signing.images.reference import parse_registry
from signing.images.registry import Registry, images_of_registry
from tests.fakes.debian_registry import PASSWORD, USER, debian_registry, need, skopeo
from tests.fakes.image_files import BuiltImage, layer, make_image, write_archive, write_layout
from tests.fakes.intake import Taking
from tests.fakes.private_engine import PrivateEngine
from tests.fakes.tls_files import write_certificate

LOWER, UPPER = layer({"lib/data": b"library" * 10_000}), layer({"app": b"program"})
ONE = make_image([LOWER, UPPER], steps=["ADD lib /", "COPY app /"])
ARM = make_image([LOWER, layer({"app": b"arm"})], architecture="arm64", variant="v8")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with debian_registry(tmp_path_factory.mktemp("registry") / "r") as host:
        yield host


@pytest.fixture
def taking(tmp_path: Path) -> Taking:
    return Taking(tmp_path)


def push(taking: Taking, host: str, name: str, *images: BuiltImage, options: tuple[str, ...] = ()) -> None:
    write_layout(taking.folder / "pushed", {"": list(images)}, "")
    source = f"oci:{taking.folder / 'pushed'}"
    skopeo("copy", "--all", "--dest-tls-verify=false", *options, source, f"docker://{host}/{name}")


def test_an_image_of_a_registry_is_byte_for_byte_what_was_pushed(taking: Taking, registry: str) -> None:
    push(taking, registry, "app:1.0", ONE)
    (image,) = taking.take(f"registry:{registry}/app:1.0")
    assert taking.is_whole(image, ONE)
    digest = image.source.partition("(")[2].rstrip(")")
    (again,) = taking.take(f"registry:{registry}/app@{digest}")
    assert again.config == image.config
    with pytest.raises(StateError, match="no such image"):
        taking.take(f"registry:{registry}/app:2.0")


def test_a_multi_platform_image_of_a_registry_gives_each_machine_its_own(taking: Taking, registry: str) -> None:
    push(taking, registry, "group/app:1.0", ONE, ARM)
    one, arm = taking.take(f"registry:{registry}/group/app:1.0")
    assert taking.is_whole(one, ONE) and taking.is_whole(arm, ARM)
    (only,) = taking.take(f"registry:{registry}/group/app:1.0", "linux/arm64")
    assert only.config == arm.config


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_an_image_that_a_tool_pushed_in_docker_s_form_is_taken_too(taking: Taking, registry: str, form: str) -> None:
    # Of a layer that the registry has in another form the tool pushes none.
    pushed = make_image([layer({"lib/data": f"{form} ".encode() * 10_000})])
    kind = ("--format", "v2s2") if form == "gzip" else ("--format", "oci")
    push(taking, registry, f"{form}:1.0", pushed, options=(*kind, f"--dest-compress-format={form}"))
    (image,) = taking.take(f"registry:{registry}/{form}:1.0")
    assert [each.artifact.sha256 for each in image.layers] == list(pushed.diff_ids)
    accepted = {"Accept": ", ".join(MANIFEST_TYPES)}
    with urlopen(Request(f"http://{registry}/v2/{form}/manifests/1.0", headers=accepted)) as answer:
        (lies_there,) = json.load(answer)["layers"]
    assert lies_there["mediaType"].endswith(form)


def test_a_registry_with_a_login_lets_in_who_logged_in(taking: Taking, tmp_path: Path) -> None:
    with debian_registry(tmp_path / "closed", login=True) as host:
        push(taking, host, "app:1.0", ONE, options=("--dest-creds", f"{USER}:{PASSWORD}"))
        with pytest.raises(StateError) as caught:
            taking.take(f"registry:{host}/app:1.0")
        assert "docker login" in caught.value.hint
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": secret}}}))
        taking.environment["DOCKER_CONFIG"] = str(tmp_path)
        assert taking.is_whole(taking.take(f"registry:{host}/app:1.0")[0], ONE)


def test_a_login_that_a_tool_keeps_for_part_of_a_registry_is_found(taking: Taking, tmp_path: Path) -> None:
    with debian_registry(tmp_path / "closed", login=True) as host:
        push(taking, host, "barn/app:1.0", ONE, options=("--dest-creds", f"{USER}:{PASSWORD}"))
        file = tmp_path / "run/containers/auth.json"
        file.parent.mkdir(parents=True)
        words = ("login", "--tls-verify=false", "--username", USER, "--password", PASSWORD, f"{host}/barn")
        skopeo(*words, environment={"REGISTRY_AUTH_FILE": str(file)})
        taking.environment["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
        assert taking.is_whole(taking.take(f"registry:{host}/barn/app:1.0")[0], ONE)
        with pytest.raises(StateError, match="wants a login"):
            taking.take(f"registry:{host}/field/app:1.0")


def test_a_registry_must_be_who_it_says_it_is(taking: Taking, tmp_path: Path) -> None:
    # Another name of this computer: 127.0.0.1 itself would be spoken to without TLS.
    tls = write_certificate(tmp_path, "127.0.0.2")
    with debian_registry(tmp_path / "tls", address="127.0.0.2", tls=tls) as host:
        push(taking, host, "app:1.0", ONE)
        with pytest.raises(LinkError, match="not known to be") as caught:
            taking.take(f"registry:{host}/app:1.0")
        assert not caught.value.retryable
        reference = parse_registry(f"{host}/app:1.0")
        known = ssl.create_default_context(cafile=str(tls[0]))
        registry = Registry(reference, plain=False, logins=Logins(tmp_path / "none.json"), tls=known)
        (found,) = images_of_registry(registry, reference, (), taking.said.append)
        assert found.config == ONE.config


def test_layouts_and_archives_that_tools_write_are_read(taking: Taking) -> None:
    write_layout(taking.folder / "built", {"": [ONE]})
    source = f"oci:{taking.folder / 'built'}"
    for kind, reference in (
        ("oci:{}/copied:1.0", "oci:copied:1.0"),
        ("oci-archive:{}/oci.tar:1.0", "archive:oci.tar"),
        ("docker-archive:{}/docker.tar:app:1.0", "archive:docker.tar"),
    ):
        skopeo("copy", source, kind.format(taking.folder))
        (image,) = taking.take(reference)
        assert [each.artifact.sha256 for each in image.layers] == list(ONE.diff_ids), reference


def test_what_is_written_here_is_what_tools_read(taking: Taking) -> None:
    write_archive(taking.folder / "app.tar", ONE)
    skopeo("copy", f"docker-archive:{taking.folder / 'app.tar'}", f"oci:{taking.folder / 'layout'}")
    assert taking.take("oci:layout")[0].layers == taking.take("archive:app.tar")[0].layers


@pytest.mark.parametrize("kind", ["docker", "podman"])
def test_an_image_of_an_engine_is_taken_by_its_name_and_by_its_id(
    taking: Taking, request: pytest.FixtureRequest, kind: str
) -> None:
    engine: PrivateEngine = request.getfixturevalue(f"shared_{kind}")
    write_archive(taking.folder / "app.tar", ONE)
    with closing(DockerClient(f"unix://{engine.socket}")) as client:
        with (taking.folder / "app.tar").open("rb") as archive:
            client.images.load(archive)
        taking.environment["DOCKER_HOST"] = f"unix://{engine.socket}"
        try:
            for name in ("app:1", ONE.id):
                (image,) = taking.take(f"engine:{name}")
                assert taking.is_whole(image, ONE)
                assert taking.left_over() == []
            client.images.get(ONE.id).tag("app", "2")
            for name in ("absent", "app"):  # without a tag it is `latest`, not whatever tags there are
                with pytest.raises(StateError, match=f"no image '{name}'"):
                    taking.take(f"engine:{name}")
        finally:
            client.images.remove(ONE.id, force=True)


def test_archives_and_layouts_that_podman_saves_are_read(
    taking: Taking, tmp_path_factory: pytest.TempPathFactory
) -> None:
    twice = make_image([UPPER, LOWER, UPPER])
    write_archive(taking.folder / "app.tar", twice)
    folder = tmp_path_factory.mktemp("p")  # Podman bears no long paths
    store = ("--root", folder / "a", "--runroot", folder / "b", "--tmpdir", folder / "c", "--storage-driver", "vfs")

    def podman(*words: object) -> None:
        need("podman")
        done = subprocess.run(
            ["podman", *map(str, (*store, *words))], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    podman("load", "--input", taking.folder / "app.tar")
    podman("tag", "app:1", "app:2")
    for form, reference in (
        ("docker-archive", "archive:saved-docker-archive"),
        ("oci-archive", "archive:saved-oci-archive"),
        ("oci-dir", "oci:saved-oci-dir"),
    ):
        podman("save", "--format", form, "--output", taking.folder / f"saved-{form}", "app:1")
        (image,) = taking.take(reference)
        assert [each.artifact.sha256 for each in image.layers] == list(twice.diff_ids), reference
    podman("save", "--multi-image-archive", "--output", taking.folder / "both.tar", "app:1", "app:2")
    assert taking.take("archive:both.tar")[0].config.sha256 == twice.id, "two names, and one image"
