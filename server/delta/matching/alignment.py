"""An alignment under construction: disjoint pieces of the new bytes, each with its shift to where it stood before."""

from dataclasses import dataclass

import numpy as np

from server.delta.matching.buffers import Buffers
from server.delta.matching.ranges import BATCH, Flags, Ints, batches, cut_long, join_near, positions
from server.delta.matching.weights import Scores, Weights, counted

_LONG = 4096  # bytes of a piece that is looked at by itself


@dataclass(frozen=True, slots=True)
class Alignment:
    """Pieces sorted by where they start; `new[start:end]` resembles `old[start + shift:end + shift]`."""

    start: Ints
    end: Ints
    shift: Ints

    def __len__(self) -> int:
        return len(self.start)

    def take(self, which: Flags | Ints | slice) -> "Alignment":
        """Some of the pieces."""
        return Alignment(self.start[which], self.end[which], self.shift[which])

    def at(self, place: Ints) -> Ints:
        """Index of the last piece that starts at or before each place; -1 where none does."""
        return np.searchsorted(self.start, place, "right") - 1

    def merged(self) -> "Alignment":
        """Touching pieces of one shift made one; empty ones left out."""
        full = self.take(self.end > self.start)
        if len(full) < 2:
            return full
        first = np.flatnonzero((full.shift[1:] != full.shift[:-1]) | (full.start[1:] != full.end[:-1])) + 1
        first = np.concatenate([[0], first])
        last = np.append(first[1:], len(full)) - 1
        return Alignment(full.start[first], full.end[last], full.shift[first])

    def with_pieces(self, other: "Alignment") -> "Alignment":
        """Both together. They must not overlap."""
        start = np.concatenate([self.start, other.start])
        order = np.argsort(start, kind="stable")
        end = np.concatenate([self.end, other.end])
        shift = np.concatenate([self.shift, other.shift])
        return Alignment(start[order], end[order], shift[order])

    def without(self, starts: Ints, ends: Ints) -> "Alignment":
        """What is left when disjoint sorted ranges of the new bytes are cut out."""
        if not len(self) or not len(starts):
            return self
        edges = np.unique(np.concatenate([self.start, self.end, starts, ends]))
        place, stop = edges[:-1], edges[1:]
        piece = self.at(place)
        hole = np.searchsorted(starts, place, "right") - 1
        kept = (piece >= 0) & (place < self.end[piece]) & ((hole < 0) | (place >= ends[hole]))
        return Alignment(place[kept], stop[kept], self.shift[piece[kept]])

    def inside(self, low: int, high: int) -> "Alignment":
        """The part between two places of the new bytes."""
        first = int(np.searchsorted(self.end, low, "right"))
        last = int(np.searchsorted(self.start, high, "left"))
        part = self.take(slice(first, last))
        return Alignment(np.maximum(part.start, low), np.minimum(part.end, high), part.shift)


def empty() -> Alignment:
    """No pieces."""
    none = np.empty(0, np.int64)
    return Alignment(none, none, none)


def joined(parts: list[Alignment]) -> Alignment:
    """Parts one after another."""
    return Alignment(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.shift for part in parts]),
    )


def present(both: Buffers, pieces: Alignment, low: int, high: int) -> tuple[Flags, Scores]:
    """For each new byte from `low` to `high`: is it another than its piece says (or in no piece)? And its score."""
    wrong = np.ones(high - low, bool)
    score = np.zeros(high - low, np.int8)
    long = pieces.end - pieces.start >= _LONG
    far = pieces.take(long)
    start, end, owner = cut_long(far.start, far.end)
    for first, last, shift in zip(start.tolist(), end.tolist(), far.shift[owner].tolist(), strict=True):
        new, old = both.new[first:last], both.old[first + shift : last + shift]
        there = slice(first - low, last - low)
        np.not_equal(new, old, out=wrong[there])
        # Most bytes of most files are in long equal runs: these are not worth a look-up each.
        score[there] = both.weights.of(new, old) if wrong[there].any() else both.weights.equal
    near = pieces.take(~long)
    for i, j in batches(near.end - near.start):
        length = near.end[i:j] - near.start[i:j]
        place = positions(near.start[i:j], length)
        new, old = both.new[place], both.old[place + np.repeat(near.shift[i:j], length)]
        wrong[place - low] = new != old
        score[place - low] = both.weights.of(new, old)
    return wrong, score


def worth_of(both: Buffers, pieces: Alignment) -> Ints:
    """The score of each piece."""
    worth = np.zeros(len(pieces), np.int64)
    start, end, owner = cut_long(pieces.start, pieces.end)
    shift = pieces.shift[owner]
    for i, j in batches(end - start):
        length = end[i:j] - start[i:j]
        place = positions(start[i:j], length)
        score = both.weights.of(both.new[place], both.old[place + np.repeat(shift[i:j], length)])
        stops = np.cumsum(length)
        np.add.at(worth, owner[i:j], np.add.reduceat(score, stops - length, dtype=np.int64))
    return worth


def learn(both: Buffers, pieces: Alignment) -> Weights:
    """Weights of the pieces as they are, from an even sample of them."""
    start, end, owner = cut_long(pieces.start, pieces.end, 4096)
    step = max(1, len(start) // 2048)
    start, end, shift = start[::step], end[::step], pieces.shift[owner[::step]]
    counts = np.zeros((2, 256), np.int64)
    for i, j in batches(end - start):
        length = end[i:j] - start[i:j]
        place = positions(start[i:j], length)
        counts += counted(both.new[place], both.old[place + np.repeat(shift[i:j], length)])
    return Weights(both.weights.literal_bits, both.weights.piece, counts)


def near_mismatches(wrong: Flags, low: int, reach: int) -> tuple[Ints, Ints]:
    """Ranges of places from which `reach` bytes would hold a mismatch: where a better match may begin."""
    starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for first in range(0, len(wrong), BATCH):
        place = np.flatnonzero(wrong[first : first + BATCH]) + (low + first)
        start, end = join_near(np.maximum(place - reach + 1, low), place + 1, 8)
        starts.append(start)
        ends.append(end)
    return join_near(np.concatenate(starts), np.concatenate(ends), 8)
