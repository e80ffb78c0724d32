"""Anchors: short places where new and old bytes are equal, from which pieces grow; and the choice between them."""

import numpy as np

from server.delta.matching.alignment import Alignment, empty, joined
from server.delta.matching.buffers import Buffers, Words, words
from server.delta.matching.kmers import KmerIndex, dull
from server.delta.matching.limits import Budget
from server.delta.matching.ranges import BATCH, Bytes, Flags, Ints, batches, cut_long, positions
from server.delta.matching.weights import Scores

_BACK, _AHEAD = 64, 96  # bytes about an anchor's string over which candidates are compared
_CANDIDATES = 16  # places of a string that are tried
_TRIES = 1 << 20  # of all strings in a window; where these are so many, little depends on each
_MOST_LOST = 127  # units, for one byte


def find_anchors(both: Buffers, index: KmerIndex, low: Ints, high: Ints, budget: Budget) -> Alignment:
    """Equal strings of at least k bytes that start in ranges of the new bytes. They may overlap."""
    k = index.k
    found = [empty()]
    high = np.minimum(high, len(both.new) + 1 - k)
    real = high > low
    low, high, _ = cut_long(low[real], high[real])
    for i, j in batches(high - low):
        if budget.spent():
            break
        place = positions(low[i:j], high[i:j] - low[i:j])
        place = place[~dull(both.new_words, place)]
        entry = index.latest(both.new_words, place)
        place, entry = place[entry > 0], entry[entry > 0]
        source = index.place(entry)
        equal = both.same(source, place, k)
        found.append(disjoint(runs(place[equal], source[equal], k)))
    return joined(found)


def runs(place: Ints, source: Ints, k: int) -> Alignment:
    """Hits of k bytes, in order, to anchors: neighbours of one shift become one."""
    if not len(place):
        return empty()
    shift = source - place
    first = np.flatnonzero((shift[1:] != shift[:-1]) | (place[1:] - place[:-1] > k)) + 1
    first = np.concatenate([[0], first])
    last = np.append(first[1:], len(place)) - 1
    return Alignment(place[first], place[last] + k, shift[first])


def disjoint(anchors: Alignment, worth: Ints | None = None) -> Alignment:
    """Drops an anchor where a better one takes more than half of it or of itself; what still overlaps is clipped.

    Args:
        anchors: Sorted by where they start.
        worth: Of each; its length where not given.
    """
    worth = anchors.end - anchors.start if worth is None else worth
    for _ in range(6):
        if len(anchors) < 2:
            return anchors
        length = anchors.end - anchors.start
        overlap = anchors.end[:-1] - anchors.start[1:]
        much = overlap * 2 > np.minimum(length[:-1], length[1:])
        keep = np.ones(len(anchors), bool)
        first_loses = worth[:-1] < worth[1:]
        keep[:-1] &= ~(much & first_loses)
        keep[1:] &= ~(much & ~first_loses)
        if keep.all():
            break
        anchors, worth = anchors.take(keep), worth[keep]
    end = np.maximum.accumulate(anchors.end)
    end[:-1] = np.minimum(end[:-1], anchors.start[1:])
    return Alignment(anchors.start, end, anchors.shift).take(end > anchors.start)


class Surroundings:
    """Chooses the shift of each anchor that explains the bytes around it better than the present pieces do.

    What a shift is worth is what a piece would gain by it, grown both ways with mismatches allowed as far as it pays.

    Args:
        both: The bytes.
        pieces: The present ones.
        present: What each new byte from `low` on scores now.
        low: Where the new bytes begin that are worked on.
        index: What the anchors were found by.
    """

    def __init__(self, both: Buffers, pieces: Alignment, present: Scores, low: int, index: KmerIndex) -> None:
        self._both, self._pieces, self._index = both, pieces, index
        self._low = low
        self._words = (_BACK + index.k + _AHEAD) // 8
        # Nothing can be gained beyond the ends: a piece stops there.
        wall = np.full(self._words * 8, 127, np.int8)
        self._present = np.concatenate([wall, present, wall]).view(np.uint8)
        self._present_words = words(self._present)

    def worth(self, place: Ints, shift: Ints) -> tuple[Ints, Ints, Ints]:
        """What each shift gains over the present pieces, and how far it goes back and ahead."""
        worth = np.empty(len(place), np.int64)
        back, ahead = worth.copy(), worth.copy()
        width = self._words * 8
        step = max(1, BATCH // width)
        wall = width - self._low
        for i in range(0, len(place), step):
            part = slice(i, i + step)
            start = place[part] - _BACK
            new, there = _rows(self._both.new, self._both.new_words, start, self._words)
            old, known = _rows(self._both.old, self._both.old_words, start + shift[part], self._words)
            now, _ = _rows(self._present, self._present_words, start + wall, self._words)
            gain = self._both.weights.of(new, old).astype(np.int16) - now.view(np.int8)
            np.maximum(gain, -_MOST_LOST, out=gain)  # so that the sums fit 16 bits
            gain[~(there & known)] = -_MOST_LOST
            forth = np.cumsum(gain[:, _BACK:], axis=1, dtype=np.int16)
            back_gain = np.cumsum(gain[:, _BACK - 1 :: -1], axis=1, dtype=np.int16)
            to, fro = forth.argmax(axis=1), back_gain.argmax(axis=1)
            row = np.arange(len(start))
            gained_back = back_gain[row, fro]
            worth[part] = forth[row, to].astype(np.int64) + np.maximum(gained_back, 0)
            back[part] = np.where(gained_back > 0, fro + 1, 0)
            ahead[part] = to + 1
        return worth, back, ahead

    def best(self, anchors: Alignment, budget: Budget) -> Alignment:
        """For each anchor the best of its neighbours' shifts and the places that the index knows. Disjoint."""
        if not len(anchors):
            return anchors
        place, best = anchors.start, anchors.shift.copy()
        worth, back, ahead = self.worth(place, best)

        def attempt(which: Ints, shift: Ints, bonus: int) -> None:
            known = self._both.same(place[which] + shift, place[which], self._index.k) & (shift != best[which])
            which, shift = which[known], shift[known]
            gained, to, fro = self.worth(place[which], shift)
            better = gained + bonus > worth[which]
            which = which[better]
            worth[which], back[which], ahead[which] = gained[better], to[better], fro[better]
            best[which] = shift[better]

        share = self._both.weights.piece // 4
        every = np.arange(len(anchors))
        if len(self._pieces):
            at = self._pieces.at(place)
            for neighbour in (np.maximum(at, 0), np.minimum(at + 1, len(self._pieces) - 1)):
                attempt(every, self._pieces.shift[neighbour], share)  # to go on costs less than to jump
        entry = self._index.newest(self._both.new_words, place)
        for _ in range(max(2, min(_CANDIDATES, _TRIES // len(anchors)))):
            every, entry = every[entry > 0], entry[entry > 0]
            if not len(every) or budget.spent():
                break
            attempt(every, self._index.place(entry) - place[every], 0)
            entry = self._index.earlier(entry)
        good = worth >= share  # less than a piece costs: growing and its neighbours may give the rest
        start, end = (place - back)[good], (place + ahead)[good]
        order = np.argsort(start, kind="stable")
        return disjoint(Alignment(start, end, best[good]).take(order), worth[good][order])


def insert(pieces: Alignment, anchors: Alignment) -> Alignment:
    """Puts disjoint anchors among and over the pieces."""
    return pieces.without(anchors.start, anchors.end).with_pieces(anchors)


def _rows(data: Bytes, data_words: Words, start: Ints, count: int) -> tuple[Bytes, Flags]:
    """So many times 8 bytes from each place, uint8 [N, 8 * count], and which of them are inside of the data."""
    width = 8 * count
    edge = np.flatnonzero((start < 0) | (start > len(data) - width))
    place = start.copy()
    place[edge] = 0
    inside = np.ones((len(start), width), bool)
    if len(data) < width:
        rows = np.zeros((len(start), width), np.uint8)
    else:
        rows = data_words[place[:, None] + np.arange(0, width, 8)].view(np.uint8)
    if len(edge):
        there = start[edge, None] + np.arange(width)
        inside[edge] = (there >= 0) & (there < len(data))
        rows[edge] = data[np.clip(there, 0, len(data) - 1)]
    return rows, inside
