"""The manifest: strict to the letter, for a machine installs what it says."""

import msgspec
import pytest

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.release import parse_manifest

ONNX = {"sha256": "a" * 64, "length_bytes": 10, "media_type": "application/onnx"}
IMAGE = {"sha256": "b" * 64, "length_bytes": 10, "media_type": "image/jpeg"}
EXPECTED = {"sha256": "c" * 64, "length_bytes": 10, "media_type": "application/x-npz"}


def variant(**changes):
    return {
        "name": "cpu",
        "runtime": "onnxruntime",
        "accelerator": "cpu",
        "artifact": ONNX,
        "inputs": [{"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32", "layout": "NCHW"}],
        "outputs": [{"name": "y", "shape": [1, 2], "dtype": "float32"}],
        "golden": [{"name": "leaf", "input": IMAGE, "expected": EXPECTED}],
    } | changes


def manifest(variants=None, **changes):
    return {
        "format": 1,
        "product": "pest-detector",
        "version": "1.0.0",
        "release_counter": 1,
        "created_ms": 0,
        "models": [
            {
                "name": "pests",
                "task": {"kind": "classify", "output": "y"},
                "preprocessing": {"kind": "image", "width": 8, "height": 8},
                "labels": ["healthy", "pest"],
                "variants": variants if variants is not None else [variant()],
            }
        ],
    } | changes


def refused(document) -> Refused:
    with pytest.raises(Refused) as refusal:
        parse_manifest(msgspec.json.encode(document))
    return refusal.value


def test_a_good_manifest_names_every_artifact_once():
    parsed = parse_manifest(msgspec.json.encode(manifest(configs=[{"name": "rates.toml", "artifact": ONNX}])))
    assert [artifact.sha256[0] for artifact in parsed.artifacts()] == ["a", "b", "c"]
    assert parsed.frame_policy == "never"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"surprise": 1},
        {"product": "../x"},
        {"version": "1.0"},
        {"version": "1.0.0/../2"},
        {"release_counter": 0},
        {"release_counter": 1.5},
        {"frame_policy": "sometimes"},
        {"models": []},
        {"min_agent": "new"},
    ],
)
def test_anything_that_is_not_as_specified_is_refused(change):
    assert refused(manifest(**change)).reason is Reason.MANIFEST


@pytest.mark.parametrize(
    "media_type", ["application/x-pickle", "application/x-sharedlib", "text/x-python", "application/vnd.tflite"]
)
def test_attack_o8_a_model_in_a_form_that_no_backend_reads_is_refused(media_type):
    artifact = ONNX | {"media_type": media_type}
    assert refused(manifest([variant(artifact=artifact)])).reason in (Reason.MEDIA_TYPE, Reason.MANIFEST)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"golden": []}, "no golden input"),
        ({"outputs": [{"name": "z", "shape": [1], "dtype": "float32"}]}, "does not have"),
        ({"inputs": []}, "inputs and outputs"),
    ],
)
def test_a_variant_that_nobody_could_check_is_refused(change, text):
    assert text in refused(manifest([variant(**change)])).message


def test_two_of_one_name_are_refused():
    assert "two variants" in refused(manifest([variant(), variant()])).message
    two = manifest()
    two["models"] = two["models"] * 2
    assert "two models" in refused(two).message


def test_what_is_too_large_is_refused_before_it_is_read():
    with pytest.raises(Refused) as refusal:
        parse_manifest(b" " * (limits.MANIFEST_BYTES + 1))
    assert refusal.value.reason is Reason.LENGTH
    huge = ONNX | {"length_bytes": limits.ARTIFACT_BYTES + 1}
    assert refused(manifest([variant(artifact=huge)])).reason is Reason.LIMIT


def test_deep_json_is_refused_and_does_not_crash():
    with pytest.raises(Refused):
        parse_manifest(b'{"format":' + b"[" * 100_000)
