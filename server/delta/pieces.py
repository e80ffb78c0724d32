"""What the front-ends say about the new file: pieces that follow one another from its first byte to its last."""

from enum import Enum, auto
from typing import NamedTuple


class How(Enum):
    """How a piece is coded. All but the first two become streams of a group, one a kind."""

    COPY = auto()  # equal bytes of the base
    FILL = auto()  # one byte, many times
    TEXT = auto()  # new bytes, by what resembles each other: a stream of one kind of bytes compresses better
    BINARY = auto()
    X86 = auto()
    ARM64 = auto()


class Piece(NamedTuple):
    """One piece of the new file.

    Args:
        how: How it is coded.
        length: In bytes.
        base: Offset in the base of the bytes that it equals or is made from, or -1.
        value: The byte of `FILL`.
    """

    how: How
    length: int
    base: int = -1
    value: int = 0
