"""The tensors of each format are found where they lie, with their type and shape."""

import mmap
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from server.delta.tensors import Element, Tensor, find_tensors
from tests.unit.server.delta.tensor_files import (
    MODELS,
    archive,
    gguf,
    npy,
    onnx_everywhere,
    onnx_model,
    raw_tensor,
    safetensors,
    tflite,
    torch_pickle,
    weights,
)

W = weights(600)


def only(file: bytes, content: bytes = W.tobytes()) -> Tensor:
    (found,) = find_tensors(file)
    assert file[found.offset : found.end] == content
    return found


def test_onnx_raw_and_packed_float_data_are_found() -> None:
    found = only(onnx_model([raw_tensor("w", W.reshape(20, 30))]))
    assert (found.element, found.name, found.shape, found.row_elements) == (Element.F32, "w", (20, 30), 30)
    packed = helper.make_tensor("v", TensorProto.FLOAT, (600,), W.tolist())
    assert only(onnx_model([packed])).name == "v"


@pytest.mark.parametrize(
    ("kind", "element", "array"),
    [
        (TensorProto.FLOAT16, Element.F16, W.astype(np.float16)),
        (TensorProto.BFLOAT16, Element.BF16, W.view(np.uint16)[1::2].copy()),
        (TensorProto.INT8, Element.I8, np.arange(600).astype(np.int8)),
        (TensorProto.UINT8, Element.U8, np.arange(600).astype(np.uint8)),
        (TensorProto.INT32, Element.I32, np.arange(600, dtype=np.int32)),
        (TensorProto.INT64, Element.I64, np.arange(600, dtype=np.int64)),
        (TensorProto.DOUBLE, Element.F64, W.astype(np.float64)),
    ],
)
def test_onnx_types_are_told_apart(kind: int, element: Element, array: np.ndarray) -> None:
    found = only(onnx_model([raw_tensor("w", array, kind)]), array.tobytes())
    assert (found.element, found.count) == (element, 600)


def test_onnx_tensors_in_bodies_functions_constants_and_sparse_ones_are_found() -> None:
    file = onnx_everywhere(W)
    found = find_tensors(file)
    names = {each.name for each in found}
    assert names == {"w", "y/deep", "y/c/", "c/", "values/values", "indices/where", "function/c/"}
    assert all(file[each.offset : each.end] == W.tobytes() for each in found if each.element is Element.F32)


def test_external_onnx_data_is_left_alone() -> None:
    there = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[600], data_location=TensorProto.EXTERNAL)
    there.external_data.add(key="location", value="model.bin")
    assert find_tensors(onnx_model([there])) == []


@pytest.mark.parametrize("outside", [False, True])
def test_tflite_weights_are_found_inside_the_flatbuffer_and_behind_it(outside: bool) -> None:
    found = only(tflite(W.tobytes(), (20, 30), outside=outside))
    assert (found.element, found.name, found.shape) == (Element.F32, "w", (20, 30))


def test_the_published_tflite_model_gives_its_weights_and_its_scales() -> None:
    file = (MODELS / "1.0.0" / "pest-detector-int8.tflite").read_bytes()
    found = find_tensors(file)
    assert {Element.I8, Element.F32, Element.I32} == {each.element for each in found}
    assert sum(each.length_bytes for each in found) > 0.85 * len(file)
    assert any(each.name.endswith("/scale") for each in found)


def test_safetensors_are_found_with_their_types() -> None:
    halves = W.astype(np.float16).tobytes()
    eights = bytes(range(256)) * 2
    file = safetensors(
        {
            "a": ("F32", (20, 30), W.tobytes()),
            "b": ("BF16", (600,), halves),
            "c": ("F16", (30, 20), halves),
            "d": ("F8_E4M3", (2, 256), eights),
        }
    )
    found = find_tensors(file)
    assert [(each.name, each.element, each.shape) for each in found] == [
        ("a", Element.F32, (20, 30)),
        ("b", Element.BF16, (600,)),
        ("c", Element.F16, (30, 20)),
        ("d", Element.U8, (2, 256)),
    ]
    assert b"".join(file[each.offset : each.end] for each in found) == W.tobytes() + halves + halves + eights


def test_gguf_floats_are_found_and_quantised_ones_given_block_by_block() -> None:
    blocks = np.random.default_rng(3).integers(0, 256, 4 * 2 * 18, np.uint8).tobytes() * 4
    file = gguf(
        [
            ("f", (30, 20), 0, W.tobytes()),
            ("h", (600,), 1, W.astype(np.float16).tobytes()),
            ("q", (64, 2, 8), 2, blocks),
            ("new", (64, 16), 99, b""),
        ]
    )
    found = find_tensors(file)
    assert [(each.name, each.element, each.shape) for each in found] == [
        ("f", Element.F32, (20, 30)),
        ("h", Element.F16, (600,)),
        ("q", Element.U8, (8, 2, 2, 18)),
    ]
    assert file[found[2].offset : found[2].end] == blocks
    assert found[2].row_elements == 72


def test_numpy_arrays_are_found_alone_and_in_archives() -> None:
    found = only(npy(W.reshape(20, 30)))
    assert (found.element, found.shape) == (Element.F32, (20, 30))
    turned = W.reshape(20, 30)
    assert only(npy(np.asfortranarray(turned)), turned.T.tobytes()).shape == (30, 20)
    held = only(archive({"a.npy": npy(W), "note": b"x" * 300}))
    assert (held.element, held.name) == (Element.F32, "a.npy")
    assert find_tensors(npy(W.astype(">f4"))) == []
    assert find_tensors(archive({"a.npy": npy(W)}, zipfile.ZIP_DEFLATED)) == []


def test_storages_of_pytorch_are_typed_by_their_bytes() -> None:
    storages = {
        "m/data/0": (Element.F32, W.tobytes()),
        "m/data/1": (Element.F16, W.astype(np.float16).tobytes()),
        "m/data/2": (Element.BF16, W.view(np.uint16)[1::2].tobytes()),
        "m/data/3": (Element.F64, weights(600, 5).astype(np.float64).tobytes()),
        "m/data/4": (Element.U8, np.random.default_rng(2).integers(0, 256, 999, np.uint8).tobytes()),
        "m/data/5": (Element.F32, bytes(1024)),
        "m/data/6": (Element.F32, np.ones(256, np.float32).tobytes()),
    }
    contents = {name: content for name, (_, content) in storages.items()}
    file = archive({"m/data.pkl": b"\x80\x02}." * 90} | contents)
    found = {each.name: each for each in find_tensors(file)}
    for name, (element, content) in storages.items():
        each = found[name.removeprefix("m/")]
        assert each.element is element, name
        assert file[each.offset : each.end] == content


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_pickle_of_pytorch_gives_names_types_and_shapes(monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    state = {
        "layer.weight": ("FloatStorage", "0", 0, (20, 30), (30, 1)),
        "conv.weight": ("FloatStorage", "1", 0, (4, 10, 3, 5), (150, 1, 50, 10)),  # channels last
        "half.weight": ("HalfStorage", "2", 0, (600,), (1,)),
        "part.a": ("FloatStorage", "3", 0, (10, 20), (20, 1)),
        "part.b": ("FloatStorage", "3", 200, (400,), (1,)),
        "holes": ("BFloat16Storage", "4", 0, (10,), (7,)),
    }
    pickled = torch_pickle(monkeypatch, state, protocol)
    contents = [W, W, W.astype(np.float16), W, W.astype(np.float16)]
    file = archive(
        {"any/data.pkl": pickled} | {f"any/data/{index}": each.tobytes() for index, each in enumerate(contents)}
    )
    assert [(each.name, each.element, each.shape) for each in find_tensors(file)] == [
        ("layer.weight", Element.F32, (20, 30)),
        ("conv.weight", Element.F32, (4, 3, 5, 10)),
        ("half.weight", Element.F16, (600,)),
        ("part.a", Element.F32, (10, 20)),
        ("part.b", Element.F32, (400,)),
        ("data/4", Element.BF16, (600,)),
    ]


def test_a_model_inside_a_stored_archive_is_found() -> None:
    inner = tflite(W.tobytes(), (600,))
    assert only(archive({"model.tflite": inner})).name == "model.tflite/w"


def test_a_tensor_behind_four_gibibytes_is_found(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    behind = 5 << 30
    table = b'{"w":{"dtype":"F32","shape":[600],"data_offsets":[%d,%d]}}' % (behind, behind + 2400)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(table)) + table)
        file.seek(behind, 1)
        file.write(W.tobytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        (found,) = find_tensors(mapped)
        assert found.offset == 8 + len(table) + behind
        assert mapped[found.offset : found.end] == W.tobytes()
