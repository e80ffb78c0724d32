"""Images from OCI layouts: which one is meant, for which machines, and that nothing in a layout is believed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import Reason, Refused, SettingsError, StateError
from signing.images import bounds
from tests.fakes.image_files import FOLDS, OCI, Blobs, index, layer, make_image, sha256, write_blobs, write_layout
from tests.fakes.intake import Taking

LOWER, UPPER = layer({"lib": b"library" * 1000}), layer({"app": b"program"})
ONE = make_image([LOWER, UPPER], steps=["ADD file:0123456789 in /", "COPY app /"])
ARM = make_image([LOWER, layer({"app": b"arm"})], architecture="arm64", variant="v8")
OLD_ARM = make_image([layer({"app": b"v6"})], architecture="arm", variant="v6")
ARM_V7 = make_image([layer({"app": b"v7"})], architecture="arm", variant="v7")


@pytest.mark.parametrize("form", list(FOLDS))
def test_an_image_becomes_its_config_and_its_uncompressed_layers(taking: Taking, form: str) -> None:
    blobs = write_layout(taking.folder / "layout", {"1.0": [ONE]}, form)
    (image,) = taking.take("oci:layout:1.0")
    assert taking.is_whole(image, ONE)
    assert image.platform == "linux/amd64"
    (manifest,) = [sha256(data) for data in blobs.values() if b'"layers"' in data and data != ONE.config]
    assert image.source == f"oci:layout:1.0 (sha256:{manifest})"
    assert len({layer.origin for layer in image.layers}) == 2
    assert taking.left_over() == []
    assert any("layer 2 of 2" in line for line in taking.said)


def test_the_only_image_of_a_layout_needs_no_name(taking: Taking) -> None:
    write_layout(taking.folder / "a:b", {"": [ONE]})
    assert taking.is_whole(taking.take("oci:a:b")[0], ONE)


def test_of_several_images_one_must_be_named(taking: Taking) -> None:
    write_layout(taking.folder / "layout", {"1.0": [ONE], "1.1": [ARM]})
    assert taking.is_whole(taking.take("oci:layout:1.1")[0], ARM)
    for text in ("oci:layout", "oci:layout:1.2"):
        with pytest.raises(SettingsError, match=r"'1\.0', '1\.1'"):
            taking.take(text)


def test_an_image_that_has_several_names_is_found_by_each(taking: Taking) -> None:
    write_layout(taking.folder / "layout", {"1.0": [ONE], "latest": [ONE], "1.1": [ARM]})
    for name in ("1.0", "latest"):
        assert taking.is_whole(taking.take(f"oci:layout:{name}")[0], ONE)
    with pytest.raises(SettingsError, match=r"holds 2 images \('1\.0', '1\.1', 'latest'\)"):
        taking.take("oci:layout")


def test_a_multi_platform_image_is_taken_for_all_machines_or_for_those_that_are_named(taking: Taking) -> None:
    other = make_image([UPPER], architecture="s390x")
    write_layout(taking.folder / "layout", {"1.0": [ONE, other, OLD_ARM, ARM, ARM_V7]})
    found = {image.platform: image for image in taking.take("oci:layout:1.0")}
    assert set(found) == {"linux/amd64", "linux/arm64", "linux/arm/v7"}
    assert taking.is_whole(found["linux/arm64"], ARM)
    assert taking.is_whole(found["linux/arm/v7"], ARM_V7), "what is built for v7 comes before what also runs there"
    (only,) = taking.take("oci:layout", "linux/arm64")
    assert taking.is_whole(only, ARM)
    assert "  left out linux/amd64, linux/arm/v6, linux/arm/v7, linux/s390x" in taking.said
    with pytest.raises(StateError, match=r"no image for linux/riscv64; there are images for .*, linux/s390x"):
        taking.take("oci:layout", "linux/riscv64", "linux/arm64")


@pytest.mark.parametrize("platform", [{"os": "unknown", "architecture": "unknown"}, None])
def test_what_a_builder_attests_of_an_image_is_no_image(taking: Taking, platform: dict[str, str] | None) -> None:
    blobs = Blobs()
    image = blobs.add_image(ONE, platform=ONE.platform)
    manifest = {
        "schemaVersion": 2,
        "config": blobs.add(make_image([UPPER], architecture="unknown").config, f"{OCI}config.v1+json"),
        "layers": [blobs.add(b"{}", "application/vnd.in-toto+json")],
    }
    note = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
    more = {"platform": platform} if platform else {}
    attested = blobs.add(json.dumps(manifest).encode(), f"{OCI}manifest.v1+json", annotations=note, **more)
    write_blobs(taking.folder / "layout", blobs, index([blobs.add_index([image, attested])]))
    assert taking.is_whole(taking.take("oci:layout")[0], ONE)
    assert not any("left out" in line for line in taking.said), "nothing that anybody would miss"


def test_what_an_index_names_and_a_layout_lacks_is_left_out_and_said(taking: Taking) -> None:
    blobs = write_layout(taking.folder / "layout", {"": [ONE, ARM]})
    for name, data in blobs.items():
        if sha256(ARM.config).encode() in data:
            (taking.folder / "layout/blobs/sha256" / name).unlink()
    (image,) = taking.take("oci:layout")
    assert taking.is_whole(image, ONE)
    assert any("left out" in line for line in taking.said)


def test_a_layer_that_is_here_is_not_taken_again(taking: Taking) -> None:
    write_layout(taking.folder / "layout", {"": [ONE]})
    taking.take("oci:layout")
    for name in (sha256(FOLDS["+gzip"](data)) for data in ONE.layers):
        (taking.folder / "layout/blobs/sha256" / name).unlink()
    assert taking.is_whole(taking.take("oci:layout")[0], ONE)


def test_a_layer_that_was_damaged_in_the_workspace_is_taken_again(taking: Taking) -> None:
    write_layout(taking.folder / "layout", {"": [ONE]})
    taking.take("oci:layout")
    taking.workspace.blob(sha256(LOWER)).write_bytes(LOWER[:-1] + b"x")
    assert taking.is_whole(taking.take("oci:layout")[0], ONE)


def refused(taking: Taking, reason: Reason, text: str = "oci:layout") -> str:
    with pytest.raises(Refused) as caught:
        taking.take(text)
    assert caught.value.reason is reason, caught.value.message
    assert taking.left_over() == []
    return caught.value.message


def test_every_blob_that_is_not_what_its_name_says_is_refused_before_it_is_read(taking: Taking) -> None:
    blobs = write_layout(taking.folder / "layout", {"": [ONE, ARM]})
    for name, data in blobs.items():
        path = taking.folder / "layout/blobs/sha256" / name
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        refused(taking, Reason.HASH)
        path.write_bytes(data + b"x")
        refused(taking, Reason.LENGTH)
        path.write_bytes(data[:-1])
        refused(taking, Reason.LENGTH)
        path.write_bytes(data)
    assert taking.kept() <= {sha256(data) for image in (ONE, ARM) for data in (*image.layers, image.config)}
    taking.take("oci:layout")


def test_a_layer_that_is_not_the_one_of_the_config_is_refused(taking: Taking) -> None:
    lying = make_image([LOWER, UPPER], rootfs={"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"] * 2})
    write_layout(taking.folder / "layout", {"": [lying]})
    refused(taking, Reason.HASH)
    assert taking.kept() == set()


@pytest.mark.parametrize("what", ["layer", "manifest", "folder", "index"])
def test_no_symlink_of_a_layout_is_followed(taking: Taking, what: str) -> None:
    folder = taking.folder / "layout"
    blobs = write_layout(folder, {"": [ONE]})
    elsewhere = taking.folder / "elsewhere"
    name = sha256(FOLDS["+gzip"](LOWER)) if what == "layer" else next(n for n, d in blobs.items() if b'"layers"' in d)
    path = {"folder": folder / "blobs", "index": folder / "index.json"}.get(what, folder / "blobs/sha256" / name)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises((StateError, SettingsError)):
        taking.take("oci:layout")


def test_a_pipe_in_the_place_of_a_blob_does_not_keep_us_waiting(taking: Taking) -> None:
    write_layout(taking.folder / "layout", {"": [ONE]})
    path = taking.folder / "layout/blobs/sha256" / sha256(FOLDS["+gzip"](LOWER))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StateError, match="not a regular file"):
        taking.take("oci:layout")


def changed(folder: Path, **changes: Any) -> None:
    """A layout whose manifest says something else."""
    blobs = Blobs()
    descriptor = blobs.add_image(ONE)
    manifest = json.loads(blobs[descriptor["digest"].removeprefix("sha256:")])
    for name, change in changes.items():
        manifest[name] = change(manifest.get(name)) if callable(change) else change
    top = blobs.add(json.dumps(manifest).encode(), f"{OCI}manifest.v1+json")
    write_blobs(folder, blobs, index([top]))


def typed(layers: list[dict[str, Any]], media_type: str) -> list[dict[str, Any]]:
    return [{**each, "mediaType": media_type} for each in layers]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schemaVersion": 1}, Reason.IMAGE),
        ({"config": None}, Reason.IMAGE),
        ({"layers": None}, Reason.IMAGE),
        ({"manifests": []}, Reason.IMAGE),  # an index and a manifest
        ({"layers": lambda was: was[:1]}, Reason.IMAGE),
        ({"layers": lambda was: was[::-1]}, Reason.HASH),
        ({"config": lambda was: {**was, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, Reason.IMAGE),
        ({"layers": lambda was: [{**each, "mediaType": "text/plain"} for each in was]}, Reason.IMAGE),
        ({"layers": lambda was: typed(was, f"{OCI}layer.v1.tar+gzip+encrypted")}, Reason.IMAGE),
        ({"layers": lambda was: typed(was, f"{OCI}layer.nondistributable.v1.tar+gzip")}, Reason.IMAGE),
        ({"layers": lambda was: typed(was, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")}, Reason.IMAGE),
        ({"layers": lambda was: [{**each, "digest": "sha512:" + "0" * 128} for each in was]}, Reason.HASH),
        ({"layers": lambda was: [{**each, "digest": "sha256:../../../etc/passwd"} for each in was]}, Reason.HASH),
        ({"layers": lambda was: [{**each, "size": bounds.LAYER_BYTES + 1} for each in was]}, Reason.LIMIT),
        ({"layers": lambda was: [{**each, "size": -1} for each in was]}, Reason.LIMIT),
        ({"config": lambda was: {**was, "size": 1 << 40}}, Reason.LIMIT),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(taking: Taking, changes: dict[str, Any], reason: Reason) -> None:
    changed(taking.folder / "layout", **changes)
    refused(taking, reason)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schemaVersion": 2}'])
def test_an_index_that_makes_no_sense_is_refused(taking: Taking, data: bytes) -> None:
    write_blobs(taking.folder / "layout", {}, data)
    refused(taking, Reason.IMAGE)


def test_indexes_have_bounds(taking: Taking) -> None:
    blobs = Blobs()
    top = blobs.add_image(ONE, platform=ONE.platform)
    write_blobs(taking.folder / "layout", blobs, index([top] * (bounds.INDEX_ENTRIES + 1)))
    refused(taking, Reason.LIMIT)
    write_blobs(taking.folder / "layout", blobs, b" " * (bounds.MANIFEST_BYTES + 1))
    refused(taking, Reason.LIMIT)
    for depth in range(1, bounds.INDEX_DEPTH + 2):
        top = blobs.add_index([top])
        write_blobs(taking.folder / "layout", blobs, index([top]))
        if depth <= bounds.INDEX_DEPTH:
            taking.take("oci:layout")
    refused(taking, Reason.LIMIT)


def test_what_is_no_layout_is_said(taking: Taking) -> None:
    (taking.folder / "empty").mkdir()
    for text in ("oci:nowhere", "oci:empty"):
        with pytest.raises(SettingsError, match="no OCI layout") as caught:
            taking.take(text)
        assert "skopeo copy" in caught.value.hint
    (taking.folder / "app.tar").write_bytes(b"")
    with pytest.raises(SettingsError, match="no OCI layout") as caught:
        taking.take("oci:app.tar")
    assert "archive:FILE" in caught.value.hint


@pytest.mark.parametrize("kind", ["oci", "archive", "engine", "registry"])
@pytest.mark.parametrize("sign", ["\0", "\n", "\x1b", "\ud800"])
def test_a_reference_that_cannot_be_shown_is_refused(taking: Taking, kind: str, sign: str) -> None:
    with pytest.raises(SettingsError) as caught:
        taking.take(f"{kind}:a{sign}b")
    assert caught.value.message.isprintable()
