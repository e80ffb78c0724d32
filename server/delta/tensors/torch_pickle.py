"""Reads from a pickle of PyTorch which storages it names: type, shape and name of their tensors. Runs nothing.

The pickle's stack is followed with plain tuples in place of objects. Opcodes are those that torch.save and TorchScript
write (protocols 2 to 5); any other ends the reading.
"""

import math
import struct
from dataclasses import dataclass, field

from server.delta.tensors.found import MAX_RANK, Element
from server.delta.tensors.reading import Budget, Damaged

MAX_BYTES = 32 << 20  # of a pickle; tensors themselves lie outside of it
MAX_STACK = 100_000

STORAGES = {
    "DoubleStorage": Element.F64,
    "FloatStorage": Element.F32,
    "HalfStorage": Element.F16,
    "BFloat16Storage": Element.BF16,
    "LongStorage": Element.I64,
    "IntStorage": Element.I32,
    "ShortStorage": Element.I16,
    "CharStorage": Element.I8,
    "ByteStorage": Element.U8,
    "BoolStorage": Element.U8,
    "QInt8Storage": Element.I8,
    "QUInt8Storage": Element.U8,
    "QInt32Storage": Element.I32,
}
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor")  # arguments: storage, offset, size, stride
WRAP = ("_rebuild_parameter", "_rebuild_parameter_with_state")  # first argument: the tensor


@dataclass(slots=True)
class View:
    """A tensor that lies densely in a storage.

    Args:
        first: Element of the storage.
        shape: Slowest axis first, as it lies.
        name: Its key in the dictionary that holds it; may be empty.
    """

    first: int
    shape: tuple[int, ...]
    name: str = ""


@dataclass(slots=True)
class Storage:
    """One file of the archive, named by `key`."""

    key: str
    element: Element
    views: list[View] = field(default_factory=list)


class _Mark:
    """What MARK puts on the stack."""


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


MARK = _Mark()
SKIPPED = {0x80: 1, ord("G"): 8, 0x95: 8}  # PROTO, BINFLOAT, FRAME: bytes of the argument
COUNTED = {ord("X"): "<I", ord("B"): "<I", ord("T"): "<I", 0x8D: "<Q", 0x8E: "<Q"}
SHORT = (ord("C"), ord("U"), 0x8C)
NUMBERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H"}
PUSHED = b"N\x88\x89]}\x8f"  # None, True, False, and the empty containers


def storages(pickle: bytes) -> list[Storage]:
    """The storages that a pickle names, in its order.

    Raises:
        Damaged: It does not read.
    """
    reader = _Reader(pickle)
    try:
        reader.run()
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise Damaged("a pickle that PyTorch does not write") from error
    return list(reader.found.values())


class _Reader:
    def __init__(self, pickle: bytes) -> None:
        self._pickle = pickle
        self._at = 0
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._budget = Budget()
        self.found: dict[str, Storage] = {}

    def run(self) -> None:
        while (code := self._take(1)[0]) != ord("."):
            self._budget.spend()
            if len(self._stack) > MAX_STACK:
                raise Damaged("a pickle too deep")
            if not (self._data(code) or self._remember(code) or self._gather(code) or self._make(code)):
                raise Damaged("an opcode that PyTorch does not write")

    def _take(self, count: int) -> bytes:
        taken = self._pickle[self._at : self._at + count]
        if len(taken) != count:
            raise Damaged("a pickle that was cut")
        self._at += count
        return taken

    def _line(self) -> str:
        end = self._pickle.find(b"\n", self._at)
        if end < 0:
            raise Damaged("a pickle that was cut")
        line = self._pickle[self._at : end].decode()
        self._at = end + 1
        return line

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _data(self, code: int) -> bool:
        """Opcodes that only put something on the stack."""
        if code in NUMBERS:
            self._stack.append(self._number(NUMBERS[code]))
        elif code in COUNTED or code in SHORT:
            content = self._take(self._number(COUNTED.get(code, "<B")))
            self._stack.append(content.decode() if code in b"X\x8c\x8d" else None)
        elif code == 0x8A:  # LONG1
            self._stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
        elif code in SKIPPED:
            self._take(SKIPPED[code])
            self._stack += [None] * (code == ord("G"))
        elif code in PUSHED:
            self._stack.append(None)
        elif code == ord(")"):
            self._stack.append(())
        elif code == ord("("):
            self._stack.append(MARK)
        elif code == ord("c"):
            self._line()
            self._stack.append(_Global(self._line()))
        else:
            return False
        return True

    def _remember(self, code: int) -> bool:
        if code in b"qr":
            self._memo[self._number("<B" if code == ord("q") else "<I")] = self._stack[-1]
        elif code == 0x94:  # MEMOIZE
            self._memo[len(self._memo)] = self._stack[-1]
        elif code in b"hj":
            self._stack.append(self._memo.get(self._number("<B" if code == ord("h") else "<I")))
        else:
            return False
        return True

    def _to_mark(self) -> list[object]:
        items: list[object] = []
        while (item := self._stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def _gather(self, code: int) -> bool:
        if code == ord("t"):
            self._stack.append(tuple(self._to_mark()))
        elif code in b"\x85\x86\x87":  # TUPLE1 to TUPLE3
            items = [self._stack.pop() for _ in range(code - 0x84)]
            self._stack.append(tuple(items[::-1]))
        elif code == ord("u"):
            items = self._to_mark()
            for name, value in zip(items[::2], items[1::2], strict=False):
                _name(name, value)
        elif code == ord("s"):
            value, name = self._stack.pop(), self._stack.pop()
            _name(name, value)
        elif code in b"e\x90":  # APPENDS, ADDITEMS
            self._to_mark()
        elif code in b"ab0":  # APPEND, BUILD, POP
            self._stack.pop()
        else:
            return False
        return True

    def _make(self, code: int) -> bool:
        if code == 0x93:  # STACK_GLOBAL
            name, _ = self._stack.pop(), self._stack.pop()
            self._stack.append(_Global(name) if isinstance(name, str) else None)
        elif code == ord("Q"):
            self._stack.append(self._storage(self._stack.pop()))
        elif code in b"R\x81":  # REDUCE, NEWOBJ
            arguments, function = self._stack.pop(), self._stack.pop()
            self._stack.append(_call(function, arguments))
        else:
            return False
        return True

    def _storage(self, named: object) -> Storage | None:
        match named:
            case ("storage", _Global(kind), str(key), *_) if kind in STORAGES:
                return self.found.setdefault(key, Storage(key, STORAGES[kind]))
        return None


def _name(name: object, value: object) -> None:
    if isinstance(name, str) and isinstance(value, View) and not value.name:
        value.name = name


def _call(function: object, arguments: object) -> object:
    match function, arguments:
        case _Global(name), (Storage() as storage, int(first), tuple(size), tuple(stride), *_) if name in REBUILD:
            shape = _dense(size, stride)
            if shape is not None and first >= 0:
                view = View(first, shape)
                storage.views.append(view)
                return view
        case _Global(name), (View() as view, *_) if name in WRAP:
            return view
    return None


def _dense(size: tuple[object, ...], stride: tuple[object, ...]) -> tuple[int, ...] | None:
    """The shape as it lies, slowest axis first; None for a tensor with holes or repeated rows."""
    if len(size) != len(stride) or len(size) > MAX_RANK:
        return None
    axes: list[tuple[int, int]] = []
    for extent, step in zip(size, stride, strict=True):
        if not isinstance(extent, int) or not isinstance(step, int) or extent < 1 or step < 0:
            return None
        if extent > 1:
            axes.append((step, extent))
    axes.sort(key=lambda axis: -axis[0])
    shape = tuple(extent for _, extent in axes)
    if any(step != math.prod(shape[index + 1 :]) for index, (step, _) in enumerate(axes)):
        return None
    natural = tuple(extent for extent in size if isinstance(extent, int))
    return natural if tuple(extent for extent in natural if extent > 1) == shape else shape
