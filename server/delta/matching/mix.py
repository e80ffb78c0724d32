"""Chooses between two alignments of the same bytes, stretch by stretch: the best of both, by dynamic programming."""

import numpy as np

from server.delta.matching.alignment import Alignment, worth_of
from server.delta.matching.buffers import Buffers
from server.delta.matching.extend import ABSENT
from server.delta.matching.ranges import Ints

_PART = 1 << 14  # stretches that are turned to lists at a time


def mix(both: Buffers, first: Alignment, second: Alignment) -> Alignment:
    """The path through two alignments that is worth most, every change of the shift costing a piece."""
    edges = np.unique(np.concatenate([first.start, first.end, second.start, second.end]))
    start, end = edges[:-1], edges[1:]
    shifts = np.stack([_shift_at(first, start), _shift_at(second, start)])
    # Stretches in which the two agree on one shift run on as one.
    alike = (shifts[0] == shifts[1]) & (shifts[0] != ABSENT)
    keep = np.concatenate([[True], ~(alike[1:] & alike[:-1] & (shifts[0, 1:] == shifts[0, :-1]))])[: len(start)]
    start, shifts, alike = start[keep], shifts[:, keep], alike[keep]
    end = np.append(start[1:], edges[-1:])[: len(start)]
    worth = np.zeros((2, len(start)), np.int64)
    for side in range(2):
        scored = np.flatnonzero(~alike & (shifts[side] != ABSENT))
        worth[side, scored] = worth_of(both, Alignment(start[scored], end[scored], shifts[side, scored]))
    chosen = shifts[_best_path(shifts, worth, both.weights.piece), np.arange(len(start))]
    there = chosen != ABSENT
    return Alignment(start[there], end[there], chosen[there]).merged()


def _shift_at(pieces: Alignment, place: Ints) -> Ints:
    if not len(pieces):
        return np.full(len(place), ABSENT)
    piece = pieces.at(place)
    return np.where((piece >= 0) & (place < pieces.end[piece]), pieces.shift[piece], ABSENT)


def _best_path(shifts: Ints, worth: Ints, piece: int) -> Ints:
    """For each stretch 0 or 1, by Viterbi's algorithm."""
    count = shifts.shape[1]
    before = np.concatenate([np.full((2, 1), ABSENT), shifts[:, :-1]], axis=1)
    came = bytearray(2 * count)
    total0, total1 = 0, 0
    for low in range(0, count, _PART):
        part = slice(low, low + _PART)
        # What it costs to come from side a of the stretch before to side b of each.
        price = [
            np.where((shifts[b, part] == ABSENT) | (shifts[b, part] == before[a, part]), 0, piece).tolist()
            for a in range(2)
            for b in range(2)
        ]
        rows = zip(*worth[:, part].tolist(), *price, strict=True)
        for at, (worth0, worth1, price00, price01, price10, price11) in enumerate(rows, low):
            stay0, cross0 = total0 - price00, total1 - price10
            cross1, stay1 = total0 - price01, total1 - price11
            if cross0 > stay0:
                came[2 * at] = 1
                stay0 = cross0
            if stay1 >= cross1:
                came[2 * at + 1] = 1
                cross1 = stay1
            total0, total1 = stay0 + worth0, cross1 + worth1
    path = bytearray(count)
    side = 1 if total1 > total0 else 0
    for at in range(count - 1, -1, -1):
        path[at] = side
        side = came[2 * at + side]
    return np.frombuffer(path, np.uint8).astype(np.int64)
