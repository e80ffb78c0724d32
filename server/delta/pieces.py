"""What the front-ends say about the new file: pieces that follow one another from its first byte to its last."""

from enum import Enum, auto
from typing import NamedTuple


class How(Enum):
    """How a piece is coded. All but those above TEXT become streams of a group, one a kind."""

    COPY = auto()  # equal bytes of the base
    FILL = auto()  # one byte, many times
    ENTRIES = auto()  # whole tar entries of the base, with other mtimes
    HEAD = auto()  # a tar header made from one of the base
    STAMP = auto()  # the head of a compiled Python module made from one of the base
    DIGEST = auto()  # the hash of a file behind a HEAD
    PAD = auto()  # zeros up to the next multiple of 512
    TEXT = auto()  # new bytes, by what resembles each other: a stream of one kind of bytes compresses better
    BINARY = auto()
    X86 = auto()
    ARM64 = auto()
    BEHIND = auto()  # text that resembles that of the base and its own neighbours
    EDITS = auto()  # bytes of the base with few changes
    F32_DIFFERENCE = auto()  # elements made from those of the base
    F16_DIFFERENCE = auto()
    BF16_DIFFERENCE = auto()
    I8_DIFFERENCE = auto()
    I32_DIFFERENCE = auto()
    BYTE_DIFFERENCE = auto()  # bytes made from those of the base: numbers of types without a kind of their own
    F32_ALONE = auto()  # new elements
    F16_ALONE = auto()
    BF16_ALONE = auto()
    CODE = auto()  # machine code made from that of the base
    DEFLATED = auto()  # a gzip file behind its header, made from the tokens of an older one


class Piece(NamedTuple):
    """One piece of the new file.

    Args:
        how: How it is coded.
        length: In bytes.
        base: Offset in the base of the bytes that it equals or is made from, or -1; for `DIGEST` offset of the file's
            content in the new file.
        value: The byte of `FILL`, the number of `ENTRIES`, the `Form` of `DIGEST`, the columns of a matrix of elements.
    """

    how: How
    length: int
    base: int = -1
    value: int = 0


WHOLE: frozenset[How] = frozenset({How.ENTRIES, How.HEAD, How.STAMP, How.DIGEST, How.PAD, How.DEFLATED})
"""What stands in one group: it is not cut."""

ELEMENT_BYTES: dict[How, int] = {
    How.F32_DIFFERENCE: 4,
    How.F16_DIFFERENCE: 2,
    How.BF16_DIFFERENCE: 2,
    How.I32_DIFFERENCE: 4,
    How.F32_ALONE: 4,
    How.F16_ALONE: 2,
    How.BF16_ALONE: 2,
}
"""Pieces of these are cut between elements."""
