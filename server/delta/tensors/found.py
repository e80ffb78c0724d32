"""What a front-end finds: spans of a file that hold numbers of one type. They are hints, checked once, here.

Whatever a file claims, only spans leave this module that lie inside the file, do not overlap and hold whole elements.
A wrong type or shape costs bytes in a patch, never a wrong result.
"""

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import TypeAlias

File: TypeAlias = bytes | bytearray | memoryview | mmap

MIN_BYTES = 256  # below this the parameters of a tensor's own coder cost more than they save
MAX_TENSORS = 100_000  # the largest published mixtures of experts hold some 60 thousand
MAX_NAME_BYTES = 512  # names only help to pair; a longer one is cut
MAX_RANK = 16  # shapes only tell the row length; numpy itself stops at 64


class Element(enum.Enum):
    """The type of a tensor's numbers, little-endian: name, bytes each, explicit mantissa bits (0: an integer)."""

    F64 = ("f64", 8, 52)
    F32 = ("f32", 4, 23)
    F16 = ("f16", 2, 10)
    BF16 = ("bf16", 2, 7)
    I64 = ("i64", 8, 0)
    I32 = ("i32", 4, 0)
    I16 = ("i16", 2, 0)
    I8 = ("i8", 1, 0)
    U64 = ("u64", 8, 0)
    U32 = ("u32", 4, 0)
    U16 = ("u16", 2, 0)
    U8 = ("u8", 1, 0)

    @property
    def width_bytes(self) -> int:
        """Bytes of one element."""
        return self.value[1]

    @property
    def mantissa_bits(self) -> int:
        """Explicit mantissa bits of a float; 0 for an integer."""
        return self.value[2]

    @property
    def is_float(self) -> bool:
        """True for the four float types."""
        return self.value[2] > 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A span of a file that holds numbers.

    Args:
        offset: Of the first byte, from the start of the file. Not necessarily aligned.
        length_bytes: Whole elements.
        element: Their type.
        name: As the file calls it; may be empty, repeated or different at each export.
        shape: Slowest axis first; its product is always the number of elements. A quantised tensor of blocks has
            the bytes of a block as its last axis.
    """

    offset: int
    length_bytes: int
    element: Element
    name: str
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.length_bytes

    @property
    def count(self) -> int:
        """Elements."""
        return self.length_bytes // self.element.width_bytes

    @property
    def row_elements(self) -> int:
        """Elements that share one index of the first axis: what an output channel or a vocabulary entry holds."""
        return self.count // self.shape[0] if len(self.shape) > 1 and self.shape[0] else 1


def tensor(offset: int, length_bytes: int, element: Element, name: str = "", shape: Sequence[int] = ()) -> Tensor:
    """A tensor whose shape agrees with its length: one that does not is replaced by a flat one."""
    count = length_bytes // element.width_bytes
    fits = 0 < len(shape) <= MAX_RANK and all(axis > 0 for axis in shape) and math.prod(shape) == count
    return Tensor(offset, length_bytes, element, name, tuple(shape) if fits else (count,))


def tidy(found: Iterable[Tensor], file_bytes: int) -> list[Tensor]:
    """Those worth having: inside the file, not tiny, of whole elements, sorted, and where two overlap the first."""
    kept: list[Tensor] = []
    end = 0
    for candidate in sorted(found, key=lambda each: (each.offset, -each.length_bytes)):
        whole = candidate.length_bytes % candidate.element.width_bytes == 0
        if candidate.offset >= end and candidate.end <= file_bytes and candidate.length_bytes >= MIN_BYTES and whole:
            kept.append(candidate)
            end = candidate.end
    return kept[:MAX_TENSORS]
