"""Takes pieces out that are not worth their control numbers: their neighbours, or nobody, take their bytes."""

import numpy as np

from server.delta.matching.alignment import Alignment, worth_of
from server.delta.matching.buffers import Buffers
from server.delta.matching.extend import ABSENT, best_splits
from server.delta.matching.weights import UNITS

_ROUNDS = 5
_REACH = 4096  # bytes beyond a piece in which its neighbours may change; longer pieces are always worth their numbers


def prune(both: Buffers, pieces: Alignment) -> Alignment:
    """Drops pieces, the least worth among their neighbours first, until each is worth more than its removal."""
    for _ in range(_ROUNDS):
        count = len(pieces)
        length = pieces.end - pieces.start
        beyond = np.full(1, ABSENT)
        short = np.flatnonzero(length <= _REACH)
        worth = np.full(count, ABSENT)
        worth[short] = worth_of(both, pieces.take(short))
        least = (worth < np.concatenate([beyond, worth[:-1]])) & (worth <= np.concatenate([worth[1:], beyond]))
        index = np.flatnonzero(least & (worth < _REACH * UNITS))
        if not len(index):
            break
        piece = pieces.take(index)
        before, after = np.maximum(index - 1, 0), np.minimum(index + 1, count - 1)
        has_before = (index > 0) & (pieces.end[before] >= piece.start - _REACH)
        has_after = (index < count - 1) & (pieces.start[after] <= piece.end + _REACH)
        low = np.where(has_before, pieces.end[before], piece.start)
        high = np.where(has_after, pieces.start[after], piece.end)
        left = np.where(has_before, pieces.shift[before], ABSENT)
        right = np.where(has_after, pieces.shift[after], ABSENT)
        ends, starts, instead = best_splits(both, low, high, left, right)
        drop = instead >= worth[index] - both.weights.piece
        if not drop.any():
            break
        start, end = pieces.start.copy(), pieces.end.copy()
        grown = drop & has_before
        end[before[grown]] = ends[grown]
        grown = drop & has_after
        start[after[grown]] = starts[grown]
        keep = np.ones(count, bool)
        keep[index[drop]] = False
        pieces = Alignment(start, end, pieces.shift).take(keep).merged()
    return pieces
