"""Grows pieces into the gaps between them, mismatches allowed, and finds where one should hand over to the next.

Within a gap the left piece takes a prefix and the right one a suffix, by the scores of `weights`; what lies between is
in no piece.
"""

import numpy as np

from server.delta.matching.alignment import Alignment
from server.delta.matching.buffers import Buffers
from server.delta.matching.ranges import Ints, batches, positions

ABSENT = 1 << 60  # the shift of a neighbour that is not there: it predicts nothing
_REACH = 1 << 16  # bytes that a piece may grow into a gap at once
_MOVES = 12  # a border moves in so many steps at the most
_SETTLE = 512  # bytes on either side of a border that are looked at first
_OUTSIDE = 128  # lost for each byte that a shift takes from outside the old bytes


def best_splits(both: Buffers, low: Ints, high: Ints, left: Ints, right: Ints) -> tuple[Ints, Ints, Ints]:
    """Finds for each gap where the left shift should end and the right one begin.

    Args:
        both: The bytes.
        low: Where each gap starts.
        high: Where it ends.
        left: Shift of the piece before it, or ABSENT.
        right: Shift of the piece after it, or ABSENT.

    Returns:
        End of the left part, start of the right part, and the worth of both. Where both shifts are the same and going
        on through the gap is better, the two are at the gap's end, and the worth has the piece that is saved.
    """
    found = [np.empty((3, 0), np.int64)]
    for i, j in batches(high - low + 1):
        found.append(np.stack(_best_splits(both, low[i:j], high[i:j], left[i:j], right[i:j])))
    ends, starts, worth = np.concatenate(found, axis=1)
    return ends, starts, worth


def _best_splits(both: Buffers, low: Ints, high: Ints, left: Ints, right: Ints) -> tuple[Ints, Ints, Ints]:
    length = high - low + 1  # a gap of n bytes has n + 1 places to hand over at
    place = positions(low, length)
    stop = np.cumsum(length)
    first = stop - length
    target = both.new[np.minimum(place, len(both.new) - 1)]

    def scores_before(shift: Ints) -> Ints:
        source = place + np.repeat(shift, length)
        inside = (source >= 0) & (source < len(both.old))
        score = both.weights.of(target, both.old[np.where(inside, source, 0)]).astype(np.int64)
        score[~inside] = -_OUTSIDE
        total = np.cumsum(score) - score
        relative: Ints = total - np.repeat(total[first], length)
        return relative

    from_left, from_right = scores_before(left), scores_before(right)
    # Each gap's numbers are lifted above those of the gaps before it: one running maximum then serves them all.
    width = length * 4 * _OUTSIDE + 64
    lift = np.cumsum(width) - width // 2
    best_left = np.maximum.accumulate(from_left + np.repeat(lift, length))
    best_both = np.maximum.accumulate(best_left + np.repeat(from_right[stop - 1], length) - from_right)
    best = best_both[stop - 1]
    begin = np.searchsorted(best_both, best, "left")
    end = np.searchsorted(best_left, best_left[begin], "left")
    through_worth = from_left[stop - 1] + both.weights.piece
    through = (left == right) & (through_worth >= best - lift)
    return (
        np.where(through, high, place[end]),
        np.where(through, high, place[begin]),
        np.where(through, through_worth, best - lift),
    )


def extend(both: Buffers, pieces: Alignment, low: int, high: int) -> Alignment:
    """Grows all pieces into the gaps around them, between two places of the new bytes."""
    gap_low = np.concatenate([[low], pieces.end])
    gap_high = np.concatenate([pieces.start, [high]])
    edge = np.full(1, ABSENT)
    left = np.concatenate([edge, pieces.shift])
    right = np.concatenate([pieces.shift, edge])
    gap = np.flatnonzero(gap_high > gap_low)
    while len(gap):
        # Of a long gap each neighbour sees its own end only, so that the memory is bounded; it may come again.
        long = gap[gap_high[gap] - gap_low[gap] > 2 * _REACH]
        short = gap[gap_high[gap] - gap_low[gap] <= 2 * _REACH]
        near_left, near_right = gap_low[long] + _REACH, gap_high[long] - _REACH
        absent = np.full(len(long), ABSENT)
        ends, starts, _ = best_splits(
            both,
            np.concatenate([gap_low[short], gap_low[long], near_right]),
            np.concatenate([gap_high[short], near_left, gap_high[long]]),
            np.concatenate([left[short], left[long], absent]),
            np.concatenate([right[short], absent, right[long]]),
        )
        gap = np.concatenate([short, long])
        gap_low[gap] = ends[: len(gap)]
        gap_high[gap] = np.concatenate([starts[: len(short)], starts[len(gap) :]])
        gap = long[(gap_low[long] == near_left) | (gap_high[long] == near_right)]
    return Alignment(gap_high[:-1], gap_low[1:], pieces.shift).merged()


def settle(both: Buffers, pieces: Alignment) -> Alignment:
    """Moves the borders between neighbours to where they are best, however far, as long as they move on."""
    reach = _SETTLE
    start, end, shift = pieces.start.copy(), pieces.end.copy(), pieces.shift
    first = np.flatnonzero(start[1:] - end[:-1] <= _SETTLE)
    for _ in range(_MOVES):
        if not len(first):
            break
        second = first + 1
        low = np.maximum(end[first] - reach, (start[first] + end[first]) // 2)
        high = np.minimum(start[second] + reach, (start[second] + end[second] + 1) // 2)
        ends, starts, _ = best_splits(both, low, high, shift[first], shift[second])
        far = np.minimum(np.abs(ends - low), np.abs(high - starts)) < _SETTLE // 2
        moved = (ends != end[first]) | (starts != start[second])
        end[first], start[second] = ends, starts
        first = first[far & moved]
        reach = min(reach * 2, _REACH)
    return Alignment(start, end, shift).merged()
