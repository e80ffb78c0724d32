"""Files of weights, whole: each tensor is coded by its elements, and what comes out is what went in."""

from pathlib import Path

import numpy as np
import pytest

from server.delta.applying import apply_patch
from server.delta.encode import EncodeOptions
from server.delta.inspect import describe
from server.delta.writing import write_patch

SIDE = 200


def safetensors(tensors: dict[str, np.ndarray], kinds: dict[str, str]) -> bytes:
    import json

    head, body = {}, b""
    for name, values in tensors.items():
        data = values.tobytes()
        head[name] = {
            "dtype": kinds[name],
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + body


def patched(tmp_path: Path, old: bytes, new: bytes) -> tuple[int, set[str]]:
    """Length of the patch and the kinds it is made of; the result was compared."""
    files = {name: tmp_path / name for name in ("old", "new", "patch", "out")}
    files["old"].write_bytes(old)
    files["new"].write_bytes(new)
    write_patch(files["old"], files["new"], files["patch"], options=EncodeOptions(), progress=lambda done, total: None)
    apply_patch(files["old"], files["patch"], files["out"], progress=lambda done, total: None)
    assert files["out"].read_bytes() == new
    return files["patch"].stat().st_size, set(describe(files["patch"]).kinds)


@pytest.fixture
def weights() -> np.ndarray:
    return (np.random.default_rng(1).standard_normal((SIDE, SIDE)) * 0.04).astype("<f4")


@pytest.mark.parametrize(("dtype", "kind", "name"), [("F32", "<f4", "fp32"), ("F16", "<f2", "fp16")])
def test_a_tensor_that_was_trained_on_is_a_difference(
    tmp_path: Path, weights: np.ndarray, dtype: str, kind: str, name: str
) -> None:
    chance = np.random.default_rng(2)
    tuned = weights + chance.standard_normal(weights.shape).astype("<f4") * 1e-4
    old = safetensors({"a": weights.astype(kind), "b": weights.astype(kind)}, {"a": dtype, "b": dtype})
    new = safetensors({"a": tuned.astype(kind), "b": weights.astype(kind)}, {"a": dtype, "b": dtype})
    size, kinds = patched(tmp_path, old, new)
    assert f"{name} difference" in kinds
    assert size < 0.75 * tuned.astype(kind).nbytes


def test_a_tensor_of_another_training_is_coded_alone(tmp_path: Path, weights: np.ndarray) -> None:
    other = (np.random.default_rng(9).standard_normal((SIDE, SIDE)) * 0.04).astype("<f4")
    size, kinds = patched(tmp_path, safetensors({"a": weights}, {"a": "F32"}), safetensors({"a": other}, {"a": "F32"}))
    assert "fp32 alone" in kinds
    assert size < 0.9 * other.nbytes


def test_tensors_that_swapped_places_and_names_are_copied(tmp_path: Path, weights: np.ndarray) -> None:
    second = weights[::-1].copy()
    old = safetensors({"a": weights, "b": second}, {"a": "F32", "b": "F32"})
    new = safetensors({"x": second, "y": weights}, {"x": "F32", "y": "F32"})
    size, _ = patched(tmp_path, old, new)
    assert size < 200


@pytest.mark.parametrize("cut", [0, 1, 7, 100, 5000])
def test_a_damaged_model_is_coded_all_the_same(tmp_path: Path, weights: np.ndarray, cut: int) -> None:
    whole = safetensors({"a": weights}, {"a": "F32"})
    patched(tmp_path, whole, whole[:cut])
    patched(tmp_path, whole[:cut], whole)
    patched(tmp_path, whole, whole[:8] + b"\xff" * 20 + whole[28:])


def test_rows_whose_scale_was_rounded_otherwise_are_cut_out_and_take_a_bit_or_two_a_weight(
    tmp_path: Path, weights: np.ndarray
) -> None:
    scales = np.ones((SIDE, 1), "<f4")
    changed = np.arange(0, SIDE, 9)
    scales[changed[::2]] = np.nextafter(np.float32(1), np.float32(2))
    scales[changed[1::2]] = np.nextafter(np.float32(1), np.float32(0))
    folded = weights * np.float32(1.1)
    moved = folded * scales
    size, kinds = patched(tmp_path, safetensors({"a": folded}, {"a": "F32"}), safetensors({"a": moved}, {"a": "F32"}))
    assert "int32 difference" in kinds
    assert size < len(changed) * SIDE * 1.6 / 8
