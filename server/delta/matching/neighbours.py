"""Looks into each gap that is left for short strings of the old bytes that stand where the gap would be expected.

A string of 8 bytes says little in the whole of a file and much between two neighbours: the index is keyed by the gap.
"""

import numpy as np

from server.delta.matching.alignment import Alignment, empty
from server.delta.matching.anchors import disjoint, runs
from server.delta.matching.buffers import Buffers, Words
from server.delta.matching.kmers import hashes
from server.delta.matching.limits import Budget
from server.delta.matching.ranges import BATCH, Ints, batches, positions

K = 8
_LEAST, _MOST = 12, 1 << 16  # bytes of a gap that is looked at
_BEFORE, _BEYOND = 16, 256  # old bytes beside the expected ones that are looked at too
_SALT = np.uint64(0xD6E8FEB86659FD93)


def find_local(both: Buffers, pieces: Alignment, low: int, high: int, budget: Budget) -> Alignment:
    """Disjoint anchors in the gaps between pieces, each at a place near those of the gap's neighbours."""
    old, new = both.old_words, both.new_words
    if not len(pieces) or len(both.old) < K or len(both.new) < K:
        return empty()
    gap_low = np.concatenate([[low], pieces.end])
    gap_high = np.minimum(np.concatenate([pieces.start, [high]]), len(both.new) + 1 - K)
    length = gap_high - gap_low
    gap = np.flatnonzero((length >= _LEAST) & (length <= _MOST))
    gap_low, gap_high, length = gap_low[gap], gap_high[gap], length[gap]
    before = gap_low + pieces.shift[np.maximum(gap - 1, 0)]
    after = gap_high + pieces.shift[np.minimum(gap, len(pieces) - 1)]
    owner, start, end = _old_windows(before, after, length, len(both.old) + 1 - K)
    bounds = np.searchsorted(owner, np.arange(len(gap) + 1))
    work = np.bincount(owner, end - start, len(gap)).astype(np.int64) + length
    places, sources = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for i, j in batches(work, 2 * BATCH):
        if budget.spent():
            break
        part = slice(bounds[i], bounds[j])
        source = positions(start[part], end[part] - start[part])
        source_gap = np.repeat(owner[part], end[part] - start[part])
        place = positions(gap_low[i:j], length[i:j])
        place_gap = np.repeat(np.arange(i, j), length[i:j])
        bits = np.uint64(64 - max(10, len(source).bit_length()))
        table = np.full(1 << (64 - int(bits)), -1, np.int64)
        # Written backwards, so that the first of equal strings stays: it lies nearest to the piece before.
        table[_slots(old, source, source_gap, bits)[::-1]] = source[::-1]
        found = table[_slots(new, place, place_gap, bits)]
        equal = both.same(found, place, K)
        places.append(place[equal])
        sources.append(found[equal])
    return disjoint(runs(np.concatenate(places), np.concatenate(sources), K))


def _slots(data: Words, place: Ints, gap: Ints, bits: np.uint64) -> Ints:
    mixed = (hashes(data, place, K) ^ (gap.astype(np.uint64) * _SALT)) * _SALT
    return (mixed >> bits).astype(np.int64)


def _old_windows(before: Ints, after: Ints, length: Ints, stop: int) -> tuple[Ints, Ints, Ints]:
    """Old places to look at for each gap: behind the piece before it and ahead of the one after. Sorted by gap."""
    first_low, first_high = before - _BEFORE, before + length + _BEYOND
    second_low, second_high = after - length - _BEYOND, after + _BEFORE
    overlap = (second_low <= first_high) & (second_high >= first_low)
    first_low = np.where(overlap, np.minimum(first_low, second_low), first_low)
    first_high = np.where(overlap, np.maximum(first_high, second_high), first_high)
    second_high = np.where(overlap, second_low, second_high)
    gap = np.arange(len(before))
    owner = np.concatenate([gap, gap])
    start = np.clip(np.concatenate([first_low, second_low]), 0, stop)
    end = np.clip(np.concatenate([first_high, second_high]), 0, stop)
    real = np.flatnonzero(end > start)
    real = real[np.argsort(owner[real], kind="stable")]
    return owner[real], start[real], end[real]
