"""What a release may say of a container, what it may not, and when two releases mean the same one."""

from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.container import Container, RunSpec, spec_digest
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.release import parse_manifest
from protocol.wire import decode, encode

CONFIG, LOWER, UPPER = (digest(name) for name in (b"config", b"lower", b"upper"))


def artifact(sha256: str, kind: str) -> dict[str, Any]:
    return {"sha256": sha256, "length_bytes": 1024, "media_type": f"application/vnd.oci.image.{kind}"}


def image(**changes: Any) -> dict[str, Any]:
    layers = [{"artifact": artifact(name, "layer.v1.tar"), "origin": "0" * 16} for name in (LOWER, UPPER)]
    return {"platform": "linux/arm64", "config": artifact(CONFIG, "config.v1+json"), "layers": layers, **changes}


def run(**changes: Any) -> dict[str, Any]:
    return {"command": ["/app"], **changes}


def model() -> dict[str, Any]:
    def file(text: bytes, kind: str) -> dict[str, Any]:
        return {"sha256": digest(text), "length_bytes": 10, "media_type": f"application/{kind}"}

    tensor = {"name": "x", "shape": [1], "dtype": "float32"}
    golden = {"name": "g", "input": file(b"input", "x-npz"), "expected": file(b"expected", "x-npz")}
    variant = {
        "name": "v",
        "runtime": "onnxruntime",
        "accelerator": "cpu",
        "artifact": file(b"model", "onnx"),
        "inputs": [tensor],
        "outputs": [tensor],
        "golden": [golden],
    }
    task = {"kind": "anomaly", "output": "x", "threshold": 1.0}
    return {
        "name": "leaf",
        "task": task,
        "preprocessing": {"kind": "tensors"},
        "labels": [],
        "variants": [variant],
    }


def manifest(*containers: Any, models: int = 0) -> bytes:
    return msgspec.json.encode(
        {
            "format": 1,
            "product": "p",
            "version": "1.0.0",
            "release_counter": 1,
            "created_ms": 0,
            "models": [model()] * models,
            "containers": list(containers) or [container()],
        }
    )


def container(**changes: Any) -> dict[str, Any]:
    return {"name": "sprayer", "images": [image()], "run": run(), **changes}


def refused(*containers: Any, reason: Reason = Reason.MANIFEST) -> str:
    with pytest.raises(Refused) as caught:
        parse_manifest(manifest(*containers))
    assert caught.value.reason is reason, caught.value.message
    return caught.value.message


def test_a_release_may_be_a_container_alone_and_names_each_of_its_bytes_once() -> None:
    twice = image(layers=[{"artifact": artifact(LOWER, "layer.v1.tar")}] * 2)
    parsed = parse_manifest(manifest(container(images=[image(), {**twice, "platform": "linux/amd64"}])))
    assert [each.sha256 for each in parsed.artifacts()] == [CONFIG, LOWER, UPPER]


def test_what_is_not_granted_is_off() -> None:
    spec = parse_manifest(manifest()).containers[0].run
    assert spec == RunSpec(command=("/app",))
    assert (spec.user, spec.network, spec.gpu) == ("65534:65534", "none", "none")
    assert not (
        spec.writable_root or spec.capabilities or spec.devices or spec.mounts or spec.ports or spec.environment
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"command": []},
        {"command": ["a\0b"]},
        {"command": ["x" * (limits.CONTAINER_TEXT_BYTES + 1)]},
        {"command": ["x"] * (limits.CONTAINER_WORDS + 1)},
        {"environment": {"A=B": "c"}},
        {"environment": {"": "c"}},
        {"environment": {"1A": "c"}},
        {"environment": {"A": "a\0"}},
        {"workdir": "relative"},
        {"workdir": "/a/../b"},
        {"user": "root"},
        {"user": "0"},
        {"user": "-1:0"},
        {"user": "0:0\n"},
        {"mounts": [{"kind": "engine", "at": "/x"}]},
        {"mounts": [{"kind": "scratch", "at": "/"}]},
        {"mounts": [{"kind": "scratch", "at": "relative"}]},
        {"mounts": [{"kind": "scratch", "at": "/a:/b"}]},  # engines read what follows a colon as something else
        {"mounts": [{"kind": "scratch", "at": "/a/../b"}]},
        {"mounts": [{"kind": "scratch", "at": "/a/./b"}]},
        {"mounts": [{"kind": "scratch", "at": "/a//b"}]},
        {"mounts": [{"kind": "scratch", "at": "/a/"}]},
        {"mounts": [{"kind": "scratch", "at": "/a", "size_mib": 0}]},
        {"mounts": [{"kind": "scratch", "at": "/a"}, {"kind": "data", "name": "d", "at": "/a"}]},
        {"mounts": [{"kind": "scratch", "at": "/proc"}]},
        {"mounts": [{"kind": "data", "name": "d", "at": "/proc/sys"}]},
        {"mounts": [{"kind": "host", "path": "/a", "at": "/dev"}]},
        {"mounts": [{"kind": "data", "name": "../x", "at": "/a"}]},
        {"mounts": [{"kind": "host", "path": "/a/../etc", "at": "/a"}]},
        {"mounts": [{"kind": "host", "path": "/a:/b", "at": "/a"}]},
        {"mounts": [{"kind": "host", "path": "/a", "at": "/a", "propagation": "shared"}]},
        {"devices": ["/dev/mem"]},
        {"devices": ["/dev/video0 "]},
        {"devices": ["/dev/../dev/video0"]},
        {"devices": ["/dev/video0:/dev/mem"]},
        {"devices": ["/dev/sda"]},
        {"devices": ["/dev/kvm"]},
        {"devices": ["/dev/*"]},
        {"devices": ["/dev/video0\n"]},
        {"gpu": "all"},
        {"network": "container:x"},
        {"capabilities": ["SYS_ADMIN"]},
        {"capabilities": ["NET_RAW"]},
        {"capabilities": ["ALL"]},
        {"privileged": True},
        {"ports": [{"container": 80, "host": 80}]},  # without the network that they need
        {"network": "host", "ports": [{"container": 80, "host": 80}]},
        {"network": "bridge", "ports": [{"container": 80, "host": 80}, {"container": 81, "host": 80}]},
        {"network": "bridge", "ports": [{"container": 0, "host": 80}]},
        {"network": "bridge", "ports": [{"container": 80, "host": 80, "address": "::"}]},
        {"resources": {"memory_mib": 4}},
        {"resources": {"pids": 0}},
        {"resources": {"cpus": 0}},
        {"health": {"command": []}},
        {"health": {"command": ["x"], "interval_s": 0}},
        {"restart": {"first_s": 0}},
        {"stop_s": 301},
        {"strategy": "kill"},
    ],
)
def test_what_no_container_is_granted_no_manifest_can_ask_for(changes: dict[str, Any]) -> None:
    refused(container(run=run(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "devices": [
                "/dev/apex_0",
                "/dev/video*",
                "/dev/ttyUSB0",
                "/dev/spidev0.1",
                "/dev/dri/renderD128",
                "/dev/snd",
            ]
        },
        {
            "network": "bridge",
            "ports": [{"container": 80, "host": 80}, {"container": 80, "host": 80, "protocol": "udp"}],
        },
        {"mounts": [{"kind": "release"}, {"kind": "link"}, {"kind": "data", "name": "d", "at": "/data.d/x-y_z"}]},
        {"mounts": [{"kind": "host", "path": "/srv/maps", "at": "/maps..d"}]},
        {"mounts": [{"kind": "scratch", "at": "/dev/shm"}, {"kind": "scratch", "at": "/process"}]},
        {"environment": {"A_1": "", "b": "c=d\n"}},
        {"user": "1000:1000", "workdir": "/", "capabilities": ["SYS_NICE"], "gpu": "nvidia"},
    ],
)
def test_what_a_container_may_be_granted_is_read_and_written_the_same(changes: dict[str, Any]) -> None:
    spec = parse_manifest(manifest(container(run=run(**changes)))).containers[0].run
    assert decode(encode(spec), RunSpec, limit=limits.MIB) == spec


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": []}, Reason.MANIFEST),
        ({"images": [image(), image()]}, Reason.MANIFEST),
        ({"images": [image(platform="linux/s390x")]}, Reason.MANIFEST),
        ({"images": [image(layers=[])]}, Reason.MANIFEST),
        ({"images": [image(config=artifact(CONFIG, "layer.v1.tar"))]}, Reason.MEDIA_TYPE),
        ({"images": [image(layers=[{"artifact": artifact(LOWER, "config.v1+json")}])]}, Reason.MEDIA_TYPE),
        ({"images": [image(layers=[{"artifact": artifact(LOWER, "layer.v1.tar+gzip")}])]}, Reason.MANIFEST),
        ({"images": [image(layers=[{"artifact": artifact(LOWER, "layer.v1.tar"), "origin": "x"}])]}, Reason.MANIFEST),
        (
            {"images": [image(config={**artifact(CONFIG, "config.v1+json"), "length_bytes": limits.MIB + 1})]},
            Reason.LIMIT,
        ),
        (
            {"images": [image(layers=[{"artifact": artifact(LOWER, "layer.v1.tar")}] * (limits.IMAGE_LAYERS + 1))]},
            Reason.MANIFEST,
        ),
        ({"name": "../x"}, Reason.MANIFEST),
        ({"digest": "x"}, Reason.MANIFEST),
    ],
)
def test_an_image_that_makes_no_sense_is_refused(changes: dict[str, Any], reason: Reason) -> None:
    refused(container(**changes), reason=reason)


def test_containers_have_names_of_their_own_and_are_not_without_number() -> None:
    assert "two containers of one name" in refused(container(), container())
    refused(*(container(name=f"c{number}") for number in range(limits.CONTAINERS + 1)))


def test_images_of_one_platform_are_told_apart_by_hardware() -> None:
    parsed = parse_manifest(manifest(container(images=[image(hardware=["jetson"]), image()])))
    assert len(parsed.containers[0].images) == 2
    same = [image(hardware=["jetson", "nvme"]), image(hardware=["nvme", "jetson"])]
    assert "one kind of machine" in refused(container(images=same)), "the second would never be chosen"


def test_each_image_is_the_first_that_fits_some_machine() -> None:
    for before, behind in (([], ["jetson"]), (["jetson"], ["jetson", "nvme"]), (["nvme"], ["jetson", "nvme"])):
        said = refused(container(images=[image(hardware=before), image(hardware=behind)]))
        assert f"no machine ever takes the image for linux/arm64 with {', '.join(behind)}" in said
        parse_manifest(manifest(container(images=[image(hardware=behind), image(hardware=before)])))
    aside = [image(hardware=["nvme"]), image(hardware=["jetson"]), image(platform="linux/amd64", hardware=["nvme"])]
    parse_manifest(manifest(container(images=aside)))


PORT = {"network": "bridge", "ports": [{"container": 80, "host": 8080}]}
OPEN = {"network": "bridge", "ports": [{"container": 81, "host": 8080, "address": "0.0.0.0"}]}
UDP = {"network": "bridge", "ports": [{"container": 80, "host": 8080, "protocol": "udp"}]}


def test_what_hands_over_publishes_no_port_for_the_second_could_not_bind_it() -> None:
    assert "8080" in refused(container(run=run(strategy="start-then-stop", **PORT)))
    parse_manifest(manifest(container(run=run(**PORT))))
    parse_manifest(manifest(container(run=run(strategy="start-then-stop"))))


def test_two_containers_publish_no_port_of_the_machine_twice() -> None:
    for other in (PORT, OPEN):
        assert "8080" in refused(container(run=run(**PORT)), container(name="gateway", run=run(**other)))
    parse_manifest(manifest(container(run=run(**PORT)), container(name="gateway", run=run(**UDP))))


def data_of(user: str, name: str = "maps", **more: Any) -> dict[str, Any]:
    return run(user=user, mounts=[{"kind": "data", "name": name, "at": "/data", **more}])


@pytest.mark.parametrize("user", ["0:0", "1001:1000", "1000:1001"])
def test_a_data_folder_has_one_user_whom_alone_it_belongs_to(user: str) -> None:
    one = container(run=data_of("1000:1000"))
    assert "maps" in refused(one, container(name="gateway", run=data_of(user)))
    refused(one, container(name="gateway", run=data_of(user, read_only=True)))
    parse_manifest(manifest(one, container(name="gateway", run=data_of(user, "others"))))
    parse_manifest(manifest(one, container(name="gateway", run=data_of("01000:1000"))))


def test_nothing_sees_a_model_where_there_is_none() -> None:
    assert "no model" in refused(container(run=run(sees_model=True)))
    assert parse_manifest(manifest(container(run=run(sees_model=True)), models=1)).containers[0].run.sees_model


@pytest.mark.parametrize("changes", [{"command": [""]}, {"command": ["", "/app"]}, {"health": {"command": [""]}}])
def test_a_command_begins_with_a_program(
    changes: dict[str, Any],
) -> None:
    assert "program" in refused(container(run=run(**changes)))


def test_one_content_has_one_length_wherever_it_is_named() -> None:
    longer = {**artifact(LOWER, "layer.v1.tar"), "length_bytes": 2048}
    other = image(platform="linux/amd64", layers=[{"artifact": longer}])
    assert LOWER[:12] in refused(container(images=[image(), other]), reason=Reason.LENGTH)


def test_what_runs_is_the_same_only_if_name_image_and_all_grants_are() -> None:
    def spec(name: str = "a", image: str = CONFIG, **changes: Any) -> str:
        return spec_digest(name, image, msgspec.convert(run(**changes), RunSpec))

    said = {"user": "65534:65534", "environment": {}, "stop_s": 10.0, "resources": {"memory_mib": 256, "pids": 128}}
    assert spec() == spec(**said), "a default is a default, said or not"
    assert spec(environment={"A": "1", "B": "2"}) == spec(environment={"B": "2", "A": "1"})
    assert spec(mounts=[{"kind": "release"}]) == spec(mounts=[{"kind": "release", "at": "/headland/release"}])
    others = [
        spec("b"),
        spec(image=LOWER),
        spec(command=["/app", ""]),
        spec(environment={"A": "b"}),
        spec(mounts=[{"kind": "release"}]),
        spec(mounts=[{"kind": "link"}]),
        spec(mounts=[{"kind": "release"}, {"kind": "link"}]),
        spec(mounts=[{"kind": "link"}, {"kind": "release"}]),
        spec(command=["/app", "x"]),
        spec(health={"command": ["/app"], "retries": 4}),
        spec(mounts=[{"kind": "link", "at": "/headland/release"}]),
        spec(resources={"memory_mib": 257}),
        spec(health={"command": ["/app"]}),
        spec(strategy="start-then-stop"),
    ]
    assert len({spec(), *others}) == len(others) + 1


def test_where_an_image_was_taken_from_changes_nothing_of_what_runs() -> None:
    one, other = (
        parse_manifest(manifest(container(images=[image(source=source)]))).containers[0]
        for source in ("oci:a", "registry:example.org/app:1 (sha256:0)")
    )
    assert isinstance(one, Container) and one != other
    assert spec_digest(one.name, one.images[0].config.sha256, one.run) == spec_digest(
        other.name, other.images[0].config.sha256, other.run
    )


def test_the_identity_of_what_runs_is_the_same_in_every_version_of_the_agent() -> None:
    spec = msgspec.convert(
        run(mounts=[{"kind": "scratch", "at": "/tmp"}], health={"command": ["/check"]}, environment={"A": "b"}), RunSpec
    )
    assert spec_digest("sprayer", CONFIG, spec) == "b54231a9610564f58bdf8fa25d0b00140f933da5ccce4b23e4c0d9d270abd06b"
