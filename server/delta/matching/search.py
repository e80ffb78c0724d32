"""Finds covers: the passes, from the coarse to the fine, over windows of the new bytes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import numpy as np

from server.delta.matching.alignment import Alignment, empty, joined, learn, near_mismatches, present
from server.delta.matching.anchors import Surroundings, disjoint, find_anchors, insert
from server.delta.matching.buffers import Buffers, buffers
from server.delta.matching.bulk import find_bulk, follow
from server.delta.matching.extend import extend, settle
from server.delta.matching.kmers import KmerIndex
from server.delta.matching.limits import Budget, MatchLimits
from server.delta.matching.mix import mix
from server.delta.matching.neighbours import find_local
from server.delta.matching.prune import prune
from server.delta.matching.ranges import Ints

# Lengths of the strings looked up, and every how many old places one is indexed: the longer ones are the surer, and are
# found even so; the shorter ones are for what is left.
_STRINGS: Final = ((32, 8), (16, 2), (10, 1))
_PASSES: Final = len(_STRINGS) + 2
_ENTRY_BYTES = 8  # of the index, for each place
_HINT_RUN = 32  # equal bytes on a hinted shift that are taken at once


def find_covers(
    old: bytes | bytearray | memoryview,
    new: bytes | bytearray | memoryview,
    *,
    limits: MatchLimits,
    hints: Iterable[tuple[int, int, int]] = (),
    literal_share: float = 1.0,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Ints:
    """Finds where the new bytes resemble old ones: what an aligned binary difference copies and corrects.

    The result is the same for the same input, unless the time ran out.

    Args:
        old: The old bytes; any contiguous buffer, a mapped file too.
        new: The new bytes.
        limits: What it may take.
        hints: (new offset, old offset, length) where a likeness is expected, such as files of one name in two archives.
            They may be wrong.
        literal_share: What new bytes cost where they are sent, as a share of what they cost one by one (their entropy):
            less where what they say together compresses well.
        progress: Told the share that is done, 0 to 1.
        clock: Seconds that only grow.

    Returns:
        int64 [N, 3]: new offset, old offset, length; sorted, disjoint in the new bytes, inside both buffers, lengths
        positive. Bytes inside a cover may differ.
    """
    budget = Budget(limits.seconds, progress, clock)
    search = _Search(buffers(old, new, literal_share), limits, budget)
    pieces = search.run(hints)
    budget.tell(1.0)
    return np.stack([pieces.start, pieces.start + pieces.shift, pieces.end - pieces.start], axis=1)


class _Search:
    """One search. Each pass makes a better alignment of the one before, window by window."""

    def __init__(self, both: Buffers, limits: MatchLimits, budget: Budget) -> None:
        self._both = both
        self._most = max(1, limits.index_bytes // _ENTRY_BYTES)
        window = max(1, limits.window_bytes)
        self._windows = [(low, min(low + window, len(both.new))) for low in range(0, len(both.new), window)]
        self._budget = budget
        self._steps = 0

    def run(self, hints: Iterable[tuple[int, int, int]]) -> Alignment:
        if not len(self._both.old) or not len(self._both.new):
            return empty()
        pieces = self._each(self._start(hints), self._from_ends)
        for k, stride in _STRINGS:
            self._learn(pieces)
            pieces = self._by_index(pieces, k, stride)
        self._learn(pieces)
        return self._each(pieces, self._by_neighbours)

    def _learn(self, pieces: Alignment) -> None:
        self._both = replace(self._both, weights=learn(self._both, pieces))

    def _start(self, hints: Iterable[tuple[int, int, int]]) -> Alignment:
        size = len(self._both.new)
        spans = [(max(low, 0), min(low + length, size), source - low) for low, source, length in sorted(hints)]
        hinted = follow(self._both, spans, _HINT_RUN, self._budget)
        bulk = find_bulk(self._both, self._most, self._budget)
        return bulk.without(hinted.start, hinted.end).with_pieces(hinted)

    def _from_ends(self, pieces: Alignment, low: int, high: int) -> Alignment:
        # Empty pieces at both ends of the file grow where the two are alike in place, if not in any string.
        size = len(self._both.new)
        end = np.array([0, size])
        ends = Alignment(end, end, np.array([0, len(self._both.old) - size])).take((end >= low) & (end <= high))
        return extend(self._both, ends.with_pieces(pieces), low, high)

    def _each(self, pieces: Alignment, work: Callable[[Alignment, int, int], Alignment]) -> Alignment:
        done = [empty()]
        for low, high in self._windows:
            part = pieces.inside(low, high)
            done.append(part if self._budget.spent() else work(part, low, high))
            self._steps += 1
            self._budget.tell(self._steps / (len(self._windows) * _PASSES))
        return joined(done).merged()

    def _by_index(self, pieces: Alignment, k: int, stride: int) -> Alignment:
        if min(len(self._both.old), len(self._both.new)) < k:
            return pieces
        index = KmerIndex(self._both.old_words, k, min(self._most, -(-len(self._both.old) // stride)))
        places = {}
        for low, high in self._windows:
            wrong, _ = present(self._both, pieces.inside(low, high), low, high)
            start, end = near_mismatches(wrong, low, k)
            end = np.minimum(end, len(self._both.new) + 1 - k)
            places[low] = start[end > start], end[end > start]
        if not any(len(start) for start, _ in places.values()):
            return pieces
        index.want(self._both.new_words, *map(np.concatenate, zip(*places.values(), strict=True)))
        while index.fill() and not self._budget.spent():
            pass

        def work(part: Alignment, low: int, high: int) -> Alignment:
            start, end = places[low]
            _, score = present(self._both, part, low, high)
            anchors = find_anchors(self._both, index, start, end, self._budget)
            anchors = disjoint(_within(anchors, low, high))
            anchors = Surroundings(self._both, part, score, low, index).best(anchors, self._budget)
            anchors = _within(anchors, low, high)
            grown = extend(self._both, insert(part, anchors), low, high)
            grown = mix(self._both, part, settle(self._both, grown))
            return prune(self._both, grown)

        return self._each(pieces, work)

    def _by_neighbours(self, part: Alignment, low: int, high: int) -> Alignment:
        anchors = find_local(self._both, part, low, high, self._budget)
        anchors = _clipped(anchors, part, high)
        grown = extend(self._both, part.with_pieces(anchors), low, high)
        grown = mix(self._both, part, settle(self._both, grown))
        return prune(self._both, grown)


def _within(anchors: Alignment, low: int, high: int) -> Alignment:
    end = np.minimum(anchors.end, high)
    start = np.maximum(anchors.start, low)
    return Alignment(start, end, anchors.shift).take(end > start)


def _clipped(anchors: Alignment, pieces: Alignment, high: int) -> Alignment:
    """Anchors that start in gaps, cut off where the next piece starts."""
    following = np.searchsorted(pieces.start, anchors.start, "right")
    limit = np.append(pieces.start, high)[following]
    end = np.minimum(anchors.end, limit)
    return Alignment(anchors.start, end, anchors.shift).take(end > anchors.start)
