"""A file that lies, or was cut, never makes a front-end fail or look outside of it."""

import random
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.delta.tensors import (
    MIN_BYTES,
    Element,
    Tensor,
    find_tensors,
    gguf_file,
    npy_file,
    onnx_file,
    pair_tensors,
    safetensors_file,
    tflite_file,
    torch_pickle,
    zip_file,
)
from server.delta.tensors.found import tidy
from server.delta.tensors.reading import Damaged
from server.delta.tensors.torch_pickle import View
from tests.unit.server.delta.tensor_files import (
    MODELS,
    archive,
    gguf,
    npy,
    onnx_everywhere,
    safetensors,
    tflite,
    weights,
)

W = weights(100)


# What TorchScript writes for one tensor (protocol 2), by hand.
PICKLE = (
    b"\x80\x02}q\0(X\x03\0\0\0a.wq\1ctorch._utils\n_rebuild_tensor_v2\nq\2((X\x07\0\0\0storageq\3ctorch\nFloatStorage\nq\4"
    b"X\x01\0\0\0" + b"0q\5X\x03\0\0\0cpuq\6Kdtq\7QK\0K\nK\n\x86q\x08K\nK\1\x86q\x09\x89Ntq\nRq\x0bu."
)


FILES: dict[str, bytes] = {
    "onnx": onnx_everywhere(W.reshape(10, 10)),
    "tflite": tflite(W.tobytes(), (10, 10)),
    "tflite behind": tflite(W.tobytes(), (10, 10), outside=True),
    "safetensors": safetensors({"a": ("F32", (10, 10), W.tobytes()), "b": ("F16", (200,), W.tobytes())}),
    "gguf": gguf([("f", (10, 10), 0, W.tobytes()), ("q", (64, 8), 2, bytes(288))]),
    "npy": npy(W.reshape(10, 10)),
    "npz": archive({"a.npy": npy(W), "b.npy": npy(W)}),
    "torch": archive({"m/data.pkl": PICKLE, "m/data/0": W.tobytes(), "m/data/1": W.tobytes()}),
    "nested": archive({"a.zip": archive({"w.npy": npy(W)})}),
}
READERS: dict[str, Callable[[memoryview], object]] = {
    "onnx": onnx_file.find,
    "tflite": tflite_file.find,
    "tflite behind": tflite_file.find,
    "safetensors": safetensors_file.find,
    "gguf": gguf_file.find,
    "npy": npy_file.find,
    "npz": lambda data: list(zip_file.stored_entries(data)),
    "pickle": lambda data: torch_pickle.storages(bytes(data)),
}


PARTS = FILES | {"pickle": PICKLE}


def sound(file: bytes) -> list[Tensor]:
    found = find_tensors(file)
    end = 0
    for each in found:
        assert end <= each.offset
        assert each.length_bytes >= MIN_BYTES
        assert each.length_bytes % each.element.width_bytes == 0
        assert int(np.prod(each.shape)) == each.count
        end = each.end
    assert end <= len(file)
    return found


def tried(kind: str, file: bytes) -> None:
    sound(file)
    if kind in READERS:
        try:
            READERS[kind](memoryview(file))
        except Damaged:
            return


@pytest.mark.parametrize("kind", FILES)
def test_the_files_are_good_ones(kind: str) -> None:
    assert sound(FILES[kind])


def test_the_pickle_is_a_good_one() -> None:
    (storage,) = torch_pickle.storages(PICKLE)
    assert (storage.key, storage.element, storage.views) == ("0", Element.F32, [View(0, (10, 10), "a.w")])


@pytest.mark.parametrize("kind", PARTS)
def test_a_file_cut_anywhere_never_fails(kind: str) -> None:
    file = PARTS[kind]
    for length in range(0, len(file), 1 + len(file) // 1000):
        tried(kind, file[:length])


@pytest.mark.parametrize("kind", PARTS)
def test_each_byte_of_a_file_may_lie(kind: str) -> None:
    file = bytearray(PARTS[kind])
    content = {at for each in sound(bytes(file)) for at in range(each.offset + 8, each.end)}  # weights may be anything
    for at in sorted(set(range(len(file))) - content):
        kept = file[at]
        for value in {0, 255, kept ^ 1, kept ^ 128}:
            file[at] = value
            tried(kind, bytes(file))
        file[at] = kept


NUMBERS = st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1", b"\0\0\1\0"])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_files_never_fail(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(PARTS)))
    file = bytearray(PARTS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file)))
        patch = data.draw(NUMBERS | st.binary(max_size=12))
        match data.draw(st.sampled_from(["over", "insert", "delete", "repeat"])):
            case "over":
                file[at : at + len(patch)] = patch
            case "insert":
                file[at:at] = patch
            case "delete":
                del file[at : at + data.draw(st.integers(0, 64))]
            case _:
                file[at:at] = file[max(0, at - 64) : at]
    tried(kind, bytes(file))
    old = PARTS[kind]
    pair_tensors(old, find_tensors(old), bytes(file), find_tensors(bytes(file)))


@settings(max_examples=200, deadline=None)
@given(
    start=st.sampled_from(
        [b"", b"PK\3\4", b"GGUF\3\0\0\0", b"\x93NUMPY\1\0", b"\x1c\0\0\0TFL3", b"\x40" + bytes(7) + b"{"]
    ),
    rest=st.binary(max_size=400),
)
def test_any_bytes_behind_a_magic_never_fail(start: bytes, rest: bytes) -> None:
    sound(start + rest)
    for kind in READERS:
        tried(kind, start + rest)


@pytest.mark.parametrize("name", ["pest-detector.onnx", "pest-detector-int8.tflite", "golden-pests-onnx.npz"])
def test_published_models_cut_and_mutated_never_fail(name: str) -> None:
    file = (MODELS / "1.0.0" / name).read_bytes()
    assert sound(file)
    dice = random.Random(7)
    for _ in range(40):
        changed = bytearray(file[: dice.randrange(len(file))] if dice.random() < 0.3 else file)
        for _ in range(dice.randrange(1, 20)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        sound(bytes(changed))


def test_overlapping_tensors_are_taken_once() -> None:
    one = b'"%b":{"dtype":"F32","shape":[100],"data_offsets":[%d,%d]}'
    table = b"{" + one % (b"a", 0, 400) + b"," + one % (b"b", 4, 404) + b"}"
    file = len(table).to_bytes(8, "little") + table + bytes(404)
    assert [each.name for each in sound(file)] == ["a"]


def test_tensors_outside_of_the_file_or_of_broken_elements_are_dropped() -> None:
    good = Tensor(100, 400, Element.F32, "", (100,))
    wrong = [Tensor(0, 402, Element.F32, "", (100,)), Tensor(700, 400, Element.U8, "", (400,)), good]
    assert tidy(wrong, 1000) == [good]


def test_graphs_nested_without_end_and_counts_without_bound_are_refused() -> None:
    nested = b""
    for _ in range(3000):
        node = b"\x2a" + _varint(len(nested)) + nested if nested else b""
        graph = b"\x0a" + _varint(len(node)) + node
        nested = b"\x32" + _varint(len(graph)) + graph
    with pytest.raises(Damaged, match="deeper"):
        onnx_file.find(memoryview(b"\x3a" + _varint(len(graph)) + graph))
    with pytest.raises(Damaged):
        gguf_file.find(memoryview(b"GGUF\3\0\0\0" + b"\xff" * 16 + bytes(100)))
    with pytest.raises(Damaged, match="more parts"):
        onnx_file.find(memoryview(b"\x08\1" * 3_000_001))
    with pytest.raises(Damaged):
        deep = b'{"a":' + b"[" * 100_000
        safetensors_file.find(memoryview(len(deep).to_bytes(8, "little") + deep))


def test_a_deflated_archive_and_a_directory_that_points_to_itself_are_no_error() -> None:
    assert sound(archive({"m/data/0": bytes(4096)}, zipfile.ZIP_DEFLATED)) == []
    packed = bytearray(archive({"m/data/0": W.tobytes(), "m/data/1": W.tobytes()}))
    directory = packed.index(b"PK\1\2")
    packed[directory + 10] = 8
    assert [each.name for each in sound(bytes(packed))] == ["data/1"]
    loop = bytearray(FILES["npz"])
    loop[-6:-2] = (0).to_bytes(4, "little")
    sound(bytes(loop))


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
