"""Small model files of each format, made in memory."""

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

Floats = npt.NDArray[np.float32]
MODELS = Path(__file__).parents[4] / "scripts" / "demo_models"


def weights(count: int, seed: int = 0, scale: float = 0.05) -> Floats:
    return (np.random.default_rng(seed).normal(size=count) * scale).astype(np.float32)


def tuned(old: Floats, seed: int = 1, step: float = 1e-4) -> Floats:
    return (old + np.random.default_rng(seed).normal(size=old.shape) * step).astype(np.float32)


def onnx_model(
    initializers: Sequence[onnx.TensorProto] = (),
    nodes: Sequence[onnx.NodeProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    sparse: Sequence[onnx.SparseTensorProto] = (),
) -> bytes:
    graph = helper.make_graph(nodes, "g", [], [], initializers, sparse_initializer=sparse)
    return bytes(helper.make_model(graph, functions=functions).SerializeToString())


def raw_tensor(name: str, array: npt.NDArray[np.generic], kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def onnx_everywhere(array: Floats) -> bytes:
    """The array in each place where a model may keep one: an initialiser, bodies, constants, a function, sparse."""
    count = array.size
    constant = helper.make_node("Constant", [], ["c"], value=raw_tensor("", array))
    body = helper.make_graph([constant], "body", [], [], [raw_tensor("deep", array)])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=helper.make_graph([], "e", [], []))
    where = raw_tensor("where", np.arange(count), TensorProto.INT64)
    sparse = helper.make_sparse_tensor(raw_tensor("values", array), where, [2 * count])
    function = helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    return onnx_model([raw_tensor("w", array)], [branch, constant], [function], [sparse])


def safetensors(arrays: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in arrays.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


def gguf(tensors: Sequence[tuple[str, tuple[int, ...], int, bytes]], alignment: int = 64) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = text("general.alignment") + struct.pack("<II", 4, alignment)
    pairs += text("tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("bc") + text("")
    pairs += text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3)
    table, data = b"", b""
    for name, axes, kind, content in tensors:
        data += bytes(-len(data) % alignment)
        table += text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, len(data))
        data += content
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 3) + pairs + table
    return head + bytes(-len(head) % alignment) + data


def npy(array: npt.NDArray[np.generic]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return out.getvalue()


def torch_pickle(
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, tuple[str, str, int, tuple[int, ...], tuple[int, ...]]],
    protocol: int,
) -> bytes:
    """As torch.save writes it. Each tensor: storage type, key, first element, size, stride."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils.__dict__["_rebuild_tensor_v2"] = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    @dataclass
    class Kept:
        identity: tuple[object, ...]

    class Tensor:
        def __init__(self, *arguments: object) -> None:
            self.arguments = arguments

        def __reduce__(self) -> tuple[object, ...]:
            return _rebuild_tensor_v2, (*self.arguments, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return obj.identity if isinstance(obj, Kept) else None

    held: dict[str, object] = OrderedDict()
    for name, (kind, key, first, size, stride) in state.items():
        if not hasattr(torch, kind):
            setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))
        held[name] = Tensor(Kept(("storage", getattr(torch, kind), key, "cpu", 0)), first, size, stride)
    out = io.BytesIO()
    Pickler(out, protocol).dump({"state": held, "epoch": 3, "lr": 0.1, "names": ["a", "b"]})
    return out.getvalue()


class _Flatbuffer:
    """Just enough of one: what is referred to is written after what refers to it."""

    def __init__(self, magic: bytes) -> None:
        self.out = bytearray(4) + magic

    def _pad(self) -> None:
        self.out += bytes(-len(self.out) % 8)

    def table(self, at: int, *fields: tuple[int, str, int]) -> dict[int, int]:
        """Writes a table that the reference at `at` leads to: index, struct code and value of each field.

        Returns the place of each field, for references to be set later.
        """
        self._pad()
        slots = max((index for index, _, _ in fields), default=-1) + 1
        vtable = len(self.out)
        self.out += bytes(4 + 2 * slots)
        self._pad()
        start = len(self.out)
        self.out += struct.pack("<i", start - vtable)
        places: dict[int, int] = {}
        for index, code, value in fields:
            self._pad()
            places[index] = len(self.out)
            struct.pack_into("<H", self.out, vtable + 4 + 2 * index, len(self.out) - start)
            self.out += struct.pack("<" + code, value)
        struct.pack_into("<HH", self.out, vtable, 4 + 2 * slots, len(self.out) - start)
        struct.pack_into("<I", self.out, at, start - at)
        return places

    def vector(self, at: int, items: bytes, count: int) -> int:
        """Writes a vector that the reference at `at` leads to. Returns where its items begin."""
        self._pad()
        struct.pack_into("<I", self.out, at, len(self.out) - at)
        self.out += struct.pack("<I", count) + items
        return len(self.out) - len(items)


def tflite(content: bytes, shape: tuple[int, ...], kind: int = 0, *, outside: bool = False) -> bytes:
    """One graph of one tensor; `outside` puts its data behind the flatbuffer, as models above 2 GB do."""
    made = _Flatbuffer(b"TFL3")
    model = made.table(0, (2, "I", 0), (4, "I", 0))
    graph = made.table(made.vector(model[2], bytes(4), 1), (0, "I", 0))
    tensor = made.table(made.vector(graph[0], bytes(4), 1), (0, "I", 0), (1, "b", kind), (2, "I", 1), (3, "I", 0))
    made.vector(tensor[0], struct.pack(f"<{len(shape)}i", *shape), len(shape))
    made.vector(tensor[3], b"w", 1)
    buffers = made.vector(model[4], bytes(8), 2)
    made.table(buffers)
    if not outside:
        made.vector(made.table(buffers + 4, (0, "I", 0))[0], content, len(content))
        return bytes(made.out)
    place = made.table(buffers + 4, (1, "Q", 0), (2, "Q", len(content)))
    struct.pack_into("<Q", made.out, place[1], len(made.out))
    return bytes(made.out) + content
