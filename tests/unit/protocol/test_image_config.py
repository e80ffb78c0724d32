"""What an image's config may say, and that an engine cannot read another thing from it than we do."""

import json
from typing import Any

import pytest

from protocol import limits
from protocol.artifact import Artifact
from protocol.container import CONFIG_MEDIA_TYPE, LAYER_MEDIA_TYPE, DataMount, Image, Layer, Platform, RunSpec
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.image_config import check_image, parse_image_config

LOWER, UPPER = digest(b"lower"), digest(b"upper")


def config(**changes: Any) -> dict[str, Any]:
    return {
        "architecture": "arm64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/app"], "Labels": {"a": "1", "A": "2"}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{LOWER}", f"sha256:{UPPER}"]},
        "history": [
            {"created_by": "ADD file:0123456789abcdef in /"},
            {"created_by": "ENV A=b", "empty_layer": True},
            {"created_by": "RUN pip install flask==3.1.0"},
        ],
        **changes,
    }


def data(**changes: Any) -> bytes:
    return json.dumps(config(**changes)).encode()


def image(config: bytes, *layers: str, platform: Platform = "linux/arm64") -> Image:
    def artifact(sha256: str, media_type: Any) -> Artifact:
        return Artifact(sha256=sha256, length_bytes=1024, media_type=media_type)

    return Image(
        platform=platform,
        config=artifact(digest(config), CONFIG_MEDIA_TYPE),
        layers=tuple(Layer(artifact=artifact(layer, LAYER_MEDIA_TYPE)) for layer in layers),
    )


def refused(content: bytes, reason: Reason = Reason.IMAGE) -> str:
    with pytest.raises(Refused) as caught:
        parse_image_config(content)
    assert caught.value.reason is reason
    return caught.value.message


def test_a_config_says_its_platform_layers_and_what_it_asks_for() -> None:
    read = parse_image_config(data(config={"Env": ["PATH=/bin", "EVIL", "A=b=c"], "Volumes": {"/var/lib/x/": {}}}))
    assert read.platform == "linux/arm64"
    assert read.layers == (LOWER, UPPER)
    assert read.variables == ("PATH", "EVIL", "A")
    assert read.volumes == ("/var/lib/x",)
    assert read.steps == ("ADD file:0123456789abcdef in /", "RUN pip install flask==3.1.0")


def test_layers_of_one_build_step_have_one_origin_whatever_version_it_built() -> None:
    old = parse_image_config(data()).origins()
    steps = [{"created_by": "ADD file:fedcba9876543210 in /"}, {"created_by": "RUN pip install flask==3.1.1"}]
    assert parse_image_config(data(history=steps)).origins() == old
    assert len(set(old)) == 2
    assert parse_image_config(data(history=steps[:1])).origins() == ("", ""), "it does not tell them all"
    assert parse_image_config(data(history=None)).origins() == ("", "")


@pytest.mark.parametrize(
    ("architecture", "variant", "platform"),
    [
        ("amd64", "", "linux/amd64"),
        ("arm64", "v8", "linux/arm64"),
        ("arm", "v7", "linux/arm/v7"),
        ("arm", "", "linux/arm/v7"),
        ("riscv64", "", "linux/riscv64"),
        ("amd64", "v3", None),
        ("s390x", "", None),
    ],
)
def test_the_platform_is_what_every_machine_of_it_runs(architecture: str, variant: str, platform: str | None) -> None:
    content = data(architecture=architecture, variant=variant)
    if platform is None:
        assert architecture in refused(content)
    else:
        assert parse_image_config(content).platform == platform


def test_an_image_must_have_the_layers_and_the_platform_that_the_manifest_says() -> None:
    run = RunSpec(command=("/app",))
    content = data()
    assert check_image(content, image(content, LOWER, UPPER), run).layers == (LOWER, UPPER)
    for wrong in (
        image(content, UPPER, LOWER),
        image(content, LOWER),
        image(content, LOWER, UPPER, LOWER),
        image(content, LOWER, UPPER, platform="linux/amd64"),
    ):
        with pytest.raises(Refused) as caught:
            check_image(content, wrong, run)
        assert caught.value.reason is Reason.IMAGE


@pytest.mark.parametrize("at", ["/data", "/data/", "//data", "/x/../data", "/./data"])
def test_a_volume_needs_a_mount_in_exactly_its_place(at: str) -> None:
    content = data(config={"Volumes": {at: {}}})
    given = image(content, LOWER, UPPER)
    for mounts in ((), (DataMount(name="d", at="/data/below"),), (DataMount(name="d", at="/dat"),)):
        with pytest.raises(Refused) as caught:
            check_image(content, given, RunSpec(command=("/app",), mounts=mounts))
        assert caught.value.reason is Reason.IMAGE
        assert "/data" in caught.value.message
    check_image(content, given, RunSpec(command=("/app",), mounts=(DataMount(name="d", at="/data"),)))


@pytest.mark.parametrize(
    "changes",
    [
        {"CONFIG": {"Volumes": {"/hidden": {}}}},
        {"config": {"volumes": {"/hidden": {}}}},
        {"config": {"Volume\u017f": {"/hidden": {}}}},
        {"config": {"ENV": ["EVIL=1"]}},
        {"rootFS": {"type": "layers", "diff_ids": [f"sha256:{LOWER}"]}},
        {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{LOWER}"], "Diff_IDs": []}},
        {"history": [{"Created_By": "x"}]},
    ],
)
def test_a_name_that_an_engine_takes_for_another_is_refused(changes: dict[str, Any]) -> None:
    assert "may be read as" in refused(data(**changes))


def test_two_objects_of_one_name_are_refused_as_an_engine_would_put_them_together() -> None:
    assert "twice" in refused(data().replace(b'"os":', b'"config": {"Volumes": {"/hidden": {}}}, "os":'))


@pytest.mark.parametrize(
    "changes",
    [
        {"os": "windows"},
        {"rootfs": {"type": "layers", "diff_ids": []}},
        {"rootfs": {"type": "layers", "diff_ids": None}},
        {"rootfs": {"type": "other", "diff_ids": [f"sha256:{LOWER}"]}},
        {"rootfs": {"type": "layers", "diff_ids": [LOWER]}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:../../x"]}},
        {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{LOWER.upper()}"]}},
        {"config": {"Volumes": {"relative": {}}}},
        {"config": {"Volumes": {"/x\0": {}}}},
        {"config": {"Volumes": ["/x"]}},
        {"config": {"Env": ["=x"]}},
        {"config": {"Env": ["A\ud800=x"]}},  # a half of a sign: engines read another name from it
        {"config": {"Volumes": {"/x\ud800": {}}}},
        {"created": float("nan")},  # no JSON to an engine
        {"config": {"Labels": float("inf")}},
        {"config": {"Env": "PATH=/bin"}},
        {"config": []},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    refused(data(**changes))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b"null", b'{"os": 1' + b"0" * 5000 + b"}"]
)
def test_bytes_that_are_no_config_are_refused(content: bytes) -> None:
    refused(content)


def test_too_much_of_anything_is_refused() -> None:
    refused(b" " * (limits.IMAGE_CONFIG_BYTES + 1), Reason.LIMIT)
    ids = [f"sha256:{LOWER}"] * (limits.IMAGE_LAYERS + 1)
    refused(data(rootfs={"type": "layers", "diff_ids": ids}), Reason.LIMIT)


def test_what_a_config_does_not_say_it_does_not_ask_for() -> None:
    for nothing in ({}, None, {"Volumes": None, "Env": None}):
        read = parse_image_config(data(config=nothing))
        assert (read.volumes, read.variables) == ((), ())
