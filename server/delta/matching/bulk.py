"""The first, coarse pass: finds the long identical runs at the price of little more than comparing.

A few consecutive places of every block of new bytes are looked up in a sparse index of the old ones; each shift found
is then followed with plain comparisons. What is left over is for the exact passes.
"""

from collections.abc import Iterable

import numpy as np

from server.delta.matching.alignment import Alignment, empty
from server.delta.matching.buffers import Buffers
from server.delta.matching.kmers import KmerIndex
from server.delta.matching.limits import Budget
from server.delta.matching.ranges import Ints, batches, positions

BLOCK = 4096
K = 32
SPARSE = 16  # every so many old places are indexed, and as many places in a row are looked up
LEAST = 256  # shorter equal runs are left to the exact passes, which choose between places better
_CANDIDATES = 8
_LOOK = 1 << 16  # bytes over which they are compared
_COMPARE = 1 << 22  # bytes compared at a time


def runs_on(both: Buffers, span: tuple[int, int, int], least: int) -> tuple[Ints, Ints]:
    """The runs of at least `least` equal bytes in a (low, high, shift) of the new bytes."""
    low, high, shift = span
    low, high = max(low, -shift), min(high, len(both.old) - shift)
    starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for a in range(low, high, _COMPARE):
        b = min(a + _COMPARE, high)
        wrong = np.flatnonzero(both.new[a:b] != both.old[a + shift : b + shift]) + a
        wrong = np.concatenate([[a - 1], wrong, [b]])
        run = np.flatnonzero(np.diff(wrong) > least)
        starts.append(wrong[run] + 1)
        ends.append(wrong[run + 1])
    return np.concatenate(starts), np.concatenate(ends)


def follow(both: Buffers, spans: Iterable[tuple[int, int, int]], least: int, budget: Budget) -> Alignment:
    """Equal runs on given (low, high, shift) of the new bytes, in order of `low`; the earlier span has a byte first."""
    starts, ends, shifts = [], [], []
    done = 0
    for low, high, shift in spans:
        if budget.spent():
            break
        start, end = runs_on(both, (max(low, done), high, shift), least)
        if len(start):
            starts.append(start)
            ends.append(end)
            shifts.append(np.full(len(start), shift, np.int64))
            done = int(end[-1])
    if not starts:
        return empty()
    return Alignment(np.concatenate(starts), np.concatenate(ends), np.concatenate(shifts))


def find_bulk(both: Buffers, most: int, budget: Budget) -> Alignment:
    """Long equal runs of the two buffers, sorted and disjoint.

    Args:
        both: The bytes.
        most: Places to index at the most.
        budget: Stops it.
    """
    if len(both.old) < K + SPARSE or len(both.new) < K + SPARSE:
        return empty()
    index = KmerIndex(both.old_words, K, min(most, max(1, len(both.old) // SPARSE)))
    while index.fill():
        if budget.spent():
            return empty()
    block = np.arange(0, len(both.new) - K - SPARSE, BLOCK)
    place, shift = _lookups(both, index, block)
    if not len(place):
        return empty()
    shift = _steady(both, index, place, shift)
    change = np.concatenate([[0], np.flatnonzero(np.diff(shift)) + 1])
    first, last = place[change], place[np.append(change[1:], len(place)) - 1]
    limit = np.append(first[1:], len(both.new))
    spans = zip(
        np.maximum(first - BLOCK, 0).tolist(),
        np.minimum(limit, last + K + BLOCK).tolist(),
        shift[change].tolist(),
        strict=True,
    )
    return follow(both, spans, LEAST, budget)


def _lookups(both: Buffers, index: KmerIndex, block: Ints) -> tuple[Ints, Ints]:
    """One place of each block that the index knows, and the shift to where it stood."""
    places, shifts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    every = np.full(len(block), max(SPARSE, min(index.stride, BLOCK - K)))
    for i, j in batches(every):
        place = positions(block[i:j], every[i:j])
        place = place[place <= len(both.new) - K]
        entry = index.latest(both.new_words, place)
        source = index.place(entry)
        known = both.same(source, place, K)
        place, source = place[known], source[known]
        _, one = np.unique(place // BLOCK, return_index=True)
        places.append(place[one])
        shifts.append((source - place)[one])
    return np.concatenate(places), np.concatenate(shifts)


def _steady(both: Buffers, index: KmerIndex, place: Ints, shift: Ints) -> Ints:
    """Goes on with the last shift wherever it explains a place too: repeats would make it jump about."""
    steady = shift.copy()
    current = 0
    at = 0
    while at < len(place):
        # All that follows is compared with the current shift, in growing steps, up to where it fails.
        step = 64
        while at < len(place):
            span = slice(at, at + step)
            agrees = both.same(place[span] + current, place[span], K)
            steady[span][agrees] = current
            if not agrees.all():
                at += int(np.argmin(agrees))
                break
            at += step
            step *= 2
        if at < len(place):
            current = _farthest(both, index, int(place[at]), int(shift[at]))
            steady[at] = current
            at += 1
    return steady


def _farthest(both: Buffers, index: KmerIndex, place: int, shift: int) -> int:
    """The shift, of a few that the index knows for a place, at which most bytes in a row are equal."""
    best, most = shift, -1
    entry = index.newest(both.new_words, np.array([place]))
    for _ in range(_CANDIDATES):
        if not entry[0]:
            break
        source = int(index.place(entry)[0])
        length = min(_LOOK, len(both.new) - place, len(both.old) - source)
        wrong = both.new[place : place + length] != both.old[source : source + length]
        equal = int(wrong.argmax()) if wrong.any() else length
        if equal > most:
            best, most = source - place, equal
        entry = index.earlier(entry)
    return best
