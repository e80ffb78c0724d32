"""Two ways to say what changed in runs that are like the base: edits, or differences of all bytes.

Edits are for few changes, and for those that are alike: what they learn is worth the time. Compressed bytes change at
random where they change, up to half of a run: there edits cost an eighth more, and take long to apply.
"""

from typing import Final

import numpy as np

from server.delta.edits import encode_edits
from server.delta.pieces import How, Piece
from server.delta.planes import SAMPLE_BYTES, encode_planes

LONG_BYTES: Final = 1 << 14  # of a run that is never coded as edits: too slow to apply for what it saves
MANY_CHANGES: Final = 1 << 16  # of single bytes: more are not tried as edits, a second and a half
LEAST_SAVED_BYTES: Final = 16  # in a sample: other streams of the group are coded anew for it
AT_RANDOM: Final = 1 / 2  # of the bytes, if so many of them changed


def is_short(piece: Piece) -> bool:
    """Whether it may be coded in either way."""
    return piece.how is How.BYTE_DIFFERENCE and piece.length < LONG_BYTES


def as_edits(pieces: list[Piece]) -> list[Piece]:
    """The pieces with short differences as edits."""
    return [piece._replace(how=How.EDITS) if is_short(piece) else piece for piece in pieces]


def as_differences(pieces: list[Piece]) -> list[Piece]:
    """The pieces with edits as differences."""
    return [piece._replace(how=How.BYTE_DIFFERENCE) if piece.how is How.EDITS else piece for piece in pieces]


def worth_trying(pieces: list[Piece], output_offset: int, old: memoryview, new: memoryview) -> tuple[bool, bool]:
    """Whether the short differences may be cheaper as edits, and whether as what they are. One is always.

    It takes at most what a sample of `SAMPLE_BYTES` does in both ways.

    Args:
        pieces: Of a group.
        output_offset: Where it begins in the result.
        old: The base.
        new: The result.
    """
    before, after = bytearray(), bytearray()
    at = output_offset
    for piece in pieces:
        if is_short(piece):
            before += old[piece.base : piece.base + piece.length]
            after += new[at : at + piece.length]
        at += piece.length
    changes = int(np.count_nonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)))
    if changes > max(MANY_CHANGES, AT_RANDOM * len(after)):
        return False, True
    first = max(0, len(after) - SAMPLE_BYTES) // 2
    sample = slice(first, first + SAMPLE_BYTES)
    reference, data = bytes(before[sample]), bytes(after[sample])
    return True, len(encode_planes(reference, data)) + LEAST_SAVED_BYTES < len(encode_edits(reference, data))
