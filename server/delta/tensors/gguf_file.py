"""Finds the tensors of a GGUF file, versions 2 and 3. Quantised ones are given as bytes, block by block."""

import math

from server.delta.tensors.found import MAX_TENSORS, Element, Tensor, tensor
from server.delta.tensors.reading import Budget, Damaged, check, text, u32, u64

MAGIC = b"GGUF"
MAX_AXES = 8  # ggml has 4
MAX_DEPTH = 4  # arrays in arrays; nobody nests them
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4

PLAIN = {
    0: Element.F32,
    1: Element.F16,
    24: Element.I8,
    25: Element.I16,
    26: Element.I32,
    27: Element.I64,
    28: Element.F64,
    30: Element.BF16,
}
# ggml type -> elements of a block, bytes of a block (ggml-common.h).
BLOCKS = {
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    29: (256, 56),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}


def find(data: memoryview) -> list[Tensor]:
    """The tensors, in the order of the table. Those of a type that is not known yet are left out.

    Raises:
        Damaged: A length or an offset leads outside, or the version is none of ours.
    """
    return _Reader(data).read()


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._budget = Budget()
        self._at = 24

    def read(self) -> list[Tensor]:
        if u32(self._data, 4) not in (2, 3):
            raise Damaged("a version of GGUF that is not known")
        tensors, pairs = u64(self._data, 8), u64(self._data, 16)
        if tensors > MAX_TENSORS:
            raise Damaged("more tensors than any real file has")
        alignment = 32
        for _ in range(self._counted(pairs)):
            key = self._text()
            kind = self._u32()
            if key == "general.alignment" and kind == UINT32:
                alignment = max(1, u32(self._data, self._at))
            self._skip(kind, 0)
        table = [self._entry() for _ in range(tensors)]
        start = self._at + -self._at % alignment
        found: list[Tensor] = []
        for name, axes, kind, offset in table:
            each = _tensor(start + offset, axes, kind, name)
            if each is not None:
                check(self._data, each.offset, each.length_bytes)
                found.append(each)
        return found

    def _counted(self, count: int) -> int:
        if count > len(self._data):  # each takes a byte at least
            raise Damaged("a count larger than the file")
        return count

    def _u32(self) -> int:
        value = u32(self._data, self._at)
        self._at += 4
        return value

    def _u64(self) -> int:
        value = u64(self._data, self._at)
        self._at += 8
        return value

    def _text(self) -> str:
        self._budget.spend()
        length = self._u64()
        value = text(self._data, self._at, length)
        self._at += length
        return value

    def _skip(self, kind: int, depth: int) -> None:
        self._budget.spend()
        if kind in SCALAR_BYTES:
            self._at += SCALAR_BYTES[kind]
        elif kind == STRING:
            length = self._u64()
            self._at += length
        elif kind == ARRAY and depth < MAX_DEPTH:
            inner = self._u32()
            count = self._counted(self._u64())
            if inner in SCALAR_BYTES:
                self._at += count * SCALAR_BYTES[inner]
            else:
                for _ in range(count):
                    self._skip(inner, depth + 1)
        else:
            raise Damaged("a kind of value that GGUF does not have")
        check(self._data, self._at, 0)

    def _entry(self) -> tuple[str, list[int], int, int]:
        name = self._text()
        rank = self._u32()
        if rank > MAX_AXES:
            raise Damaged("a shape of too many axes")
        axes = [self._u64() for _ in range(rank)]
        return name, axes, self._u32(), self._u64()


def _tensor(offset: int, axes: list[int], kind: int, name: str) -> Tensor | None:
    """GGUF names the fastest axis first."""
    count = math.prod(axes)
    if kind in PLAIN:
        return tensor(offset, count * PLAIN[kind].width_bytes, PLAIN[kind], name, axes[::-1])
    if kind not in BLOCKS or not axes:
        return None
    block, block_bytes = BLOCKS[kind]
    if axes[0] % block:
        return None
    shape = [*axes[:0:-1], axes[0] // block, block_bytes]
    return tensor(offset, count // block * block_bytes, Element.U8, name, shape)
