"""Anchors: short places where new and old bytes are equal, from which pieces grow; and the choice between them."""

import numpy as np

from server.delta.matching.alignment import Alignment, empty
from server.delta.matching.buffers import Buffers
from server.delta.matching.extend import MATCH, MISS, PIECE
from server.delta.matching.kmers import KmerIndex, dull
from server.delta.matching.limits import Budget
from server.delta.matching.ranges import BATCH, Flags, Ints, batches, cut_long, join_near, positions

_BACK, _AHEAD = 64, 96  # bytes about an anchor over which candidates are compared, mismatches allowed
_CANDIDATES = 8
_BETTER = 6  # by so many bytes an anchor has to explain its surroundings better than what stands there
_MARGIN = 128  # bytes around a new anchor that are shared out anew between it and its neighbours


def find_anchors(both: Buffers, index: KmerIndex, low: Ints, high: Ints, budget: Budget) -> Alignment:
    """Equal strings of at least k bytes that start in ranges of the new bytes. They may overlap."""
    k = index.k
    places, sources = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    high = np.minimum(high, len(both.new) + 1 - k)
    real = high > low
    low, high, _ = cut_long(low[real], high[real])
    for i, j in batches(high - low):
        if budget.spent():
            break
        place = positions(low[i:j], high[i:j] - low[i:j])
        place = place[~dull(both.new_words, place)]
        source = index.place(index.latest(both.new_words, place))
        equal = both.same(source, place, k)
        places.append(place[equal])
        sources.append(source[equal])
    return runs(np.concatenate(places), np.concatenate(sources), k)


def runs(place: Ints, source: Ints, k: int) -> Alignment:
    """Hits of k bytes, in order, to anchors: neighbours of one shift become one."""
    if not len(place):
        return empty()
    shift = source - place
    first = np.flatnonzero((shift[1:] != shift[:-1]) | (place[1:] - place[:-1] > k)) + 1
    first = np.concatenate([[0], first])
    last = np.append(first[1:], len(place)) - 1
    return Alignment(place[first], place[last] + k, shift[first])


def disjoint(anchors: Alignment) -> Alignment:
    """Drops an anchor where a longer one takes more than half of it or of itself; what still overlaps is clipped."""
    for _ in range(6):
        if len(anchors) < 2:
            return anchors
        length = anchors.end - anchors.start
        overlap = anchors.end[:-1] - anchors.start[1:]
        much = overlap * 2 > np.minimum(length[:-1], length[1:])
        keep = np.ones(len(anchors), bool)
        first_loses = length[:-1] < length[1:]
        keep[:-1] &= ~(much & first_loses)
        keep[1:] &= ~(much & ~first_loses)
        if keep.all():
            break
        anchors = anchors.take(keep)
    end = np.maximum.accumulate(anchors.end)
    end[:-1] = np.minimum(end[:-1], anchors.start[1:])
    return Alignment(anchors.start, end, anchors.shift).take(end > anchors.start)


def agreement(both: Buffers, low: Ints, length: int, shift: Ints) -> Ints:
    """Equal bytes of `new[low:low + length]` at a shift, for each pair of them; outside a buffer nothing is."""
    count = np.zeros(len(low), np.int64)
    span = np.arange(length)
    step = max(1, BATCH // length)
    for i in range(0, len(low), step):
        place = low[i : i + step, None] + span
        source = place + shift[i : i + step, None]
        inside = (place >= 0) & (place < len(both.new)) & (source >= 0) & (source < len(both.old))
        equal = both.new[np.where(inside, place, 0)] == both.old[np.where(inside, source, 0)]
        count[i : i + step] = (equal & inside).sum(1)
    return count


class Surroundings:
    """Compares shifts of an anchor by how well they explain the bytes around it.

    Args:
        both: The bytes.
        k: Length of the strings that the anchors were found by.
    """

    def __init__(self, both: Buffers, k: int) -> None:
        self._both, self._k = both, k
        self._length = _BACK + k + _AHEAD

    def score(self, place: Ints, shift: Ints) -> Ints:
        """Equal bytes around anchors."""
        return agreement(self._both, place - _BACK, self._length, shift)

    def best(self, anchors: Alignment, pieces: Alignment, index: KmerIndex) -> Alignment:
        """For each anchor the best of its neighbours' shifts and the places that the index knows."""
        if not len(anchors):
            return anchors
        k = self._k
        place, best = anchors.start, anchors.shift.copy()
        score = self.score(place, best)

        def attempt(which: Ints, shift: Ints, bonus: int) -> None:
            reached = self.score(place[which], shift) + bonus
            better = reached > score[which]
            score[which[better]] = reached[better]
            best[which[better]] = shift[better]

        if len(pieces):
            at = pieces.at(place)
            for neighbour in (np.maximum(at, 0), np.minimum(at + 1, len(pieces) - 1)):
                shift = pieces.shift[neighbour]
                which = np.flatnonzero(self._both.same(place + shift, place, k))
                attempt(which, shift[which], 3)  # to go on costs less than to jump
        which = np.arange(len(anchors))
        entry = index.latest(self._both.new_words, place)
        for _ in range(_CANDIDATES):
            which, entry = which[entry >= 0], entry[entry >= 0]
            if not len(which):
                break
            shift = index.place(entry) - place[which]
            fresh = (shift != best[which]) & self._both.same(place[which] + shift, place[which], k)
            attempt(which[fresh], shift[fresh], 0)
            entry = index.earlier(entry)
        return Alignment(place, np.where(best == anchors.shift, anchors.end, place + k), best)

    def worthwhile(self, anchors: Alignment, wrong: Flags, low: int) -> Alignment:
        """Those anchors that explain more than the present pieces, whose mismatches (from `low` on) are given."""
        sums = np.concatenate([[0], np.cumsum(wrong)])
        size = len(wrong)

        def missed(start: Ints, end: Ints) -> Ints:
            count: Ints = sums[np.clip(end - low, 0, size)] - sums[np.clip(start - low, 0, size)]
            return count

        start, end = anchors.start - _BACK, anchors.start + self._k + _AHEAD
        reach = np.minimum(end, low + size) - np.maximum(start, low)
        around = missed(start, end) - (reach - self.score(anchors.start, anchors.shift)) > _BETTER
        inside = missed(anchors.start, anchors.end) * (MATCH + MISS) >= PIECE
        return anchors.take(around | inside)


def insert(pieces: Alignment, anchors: Alignment, low: int, high: int) -> Alignment:
    """Puts disjoint anchors among (and over) the pieces, with gaps about them for `extend` to share out."""
    if not len(anchors):
        return pieces
    start = np.maximum(anchors.start - _MARGIN, low)
    end = np.minimum(anchors.end + _MARGIN, high)
    return pieces.without(*join_near(start, end, 0)).with_pieces(anchors)
