"""What bytes cost: a byte in a piece by its difference from the old one, against a byte that is sent as it is.

The costs are learnt from the alignment so far. Where addresses moved by one amount that difference is cheap, and a
shift that gives it beats another that gives as many differences, of all kinds.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from server.delta.matching.ranges import Bytes

Scores = npt.NDArray[np.int8]

UNITS: Final = 8  # to a bit
PIECE_BITS: Final = (
    2.5  # for each bit of an offset: control numbers, and what a new shift upsets in the coder; measured
)
_MOST_EQUAL: Final = 0.94  # in long equal runs differences would become dearer than they are where they come in crowds
_LEAST_BITS, _MOST_BITS = 0.05, 14.0
_SAMPLE: Final = 1 << 20
_RUN_BYTES: Final = 16


class Weights:
    """Scores bytes of a piece: what is saved against sending them, in units.

    Args:
        literal_bits: What a byte costs that is sent.
        piece: What a piece costs, in units.
        counts: int64 [2, 256]: how often each difference was met after an equal byte, and after another.
    """

    def __init__(self, literal_bits: float, piece: int, counts: npt.NDArray[np.int64]) -> None:
        self.literal_bits = literal_bits
        self.piece = piece
        prior = np.full((2, 256), 4.0)
        prior[:, 0] = 16_000, 700  # 94 and 40 % equal
        share = (counts + prior) / (counts + prior).sum(axis=1, keepdims=True)
        equal = np.minimum(share[:, :1], _MOST_EQUAL)
        other = share[:, 1:] / share[:, 1:].sum(axis=1, keepdims=True) * (1 - equal)
        cost = np.clip(-np.log2(np.concatenate([equal, other], axis=1)), _LEAST_BITS, _MOST_BITS)
        self._table = np.rint((literal_bits - cost) * UNITS).astype(np.int8).ravel()

    @property
    def equal(self) -> int:
        """The score of an equal byte after an equal one."""
        return int(self._table[0])

    def of(self, new: Bytes, old: Bytes) -> Scores:
        """Scores of bytes that follow one another in the last axis."""
        difference = new - old
        context = np.zeros(difference.shape, np.uint16)
        np.not_equal(difference[..., :-1], 0, out=context[..., 1:], casting="unsafe")
        context <<= 8
        context |= difference
        scores: Scores = self._table.take(context)
        return scores


def first_weights(new: Bytes, literal_share: float) -> Weights:
    """Weights before anything is known but the new bytes.

    Args:
        new: These.
        literal_share: See `find_covers`.
    """
    step = max(1, len(new) // _SAMPLE)
    sample = new[::step]
    if len(new) > _RUN_BYTES:
        equal = sample[: -(-(len(new) - _RUN_BYTES) // step)] == new[_RUN_BYTES::step]
        if np.count_nonzero(equal) * 2 > len(equal):  # mostly holes: of what bytes cost these say nothing
            sample = sample[: len(equal)][~equal] if not equal.all() else sample
    share = np.bincount(sample, minlength=256) / max(1, len(sample))
    share = share[share > 0]
    literal_bits = float(-(share * np.log2(share)).sum()) * literal_share
    piece = round(PIECE_BITS * UNITS * math.log2(max(2, len(new))))
    return Weights(literal_bits, piece, np.zeros((2, 256), np.int64))


def counted(new: Bytes, old: Bytes) -> npt.NDArray[np.int64]:
    """How often each difference stands after an equal byte and after another: int64 [2, 256]."""
    difference = new - old
    after = difference[1:].astype(np.int64)
    after[difference[:-1] != 0] += 256
    return np.bincount(after, minlength=512).reshape(2, 256)
