"""Chooses between two alignments of the same bytes, stretch by stretch: the best of both, by dynamic programming."""

import numpy as np

from server.delta.matching.alignment import Alignment, worth_of
from server.delta.matching.buffers import Buffers
from server.delta.matching.extend import ABSENT
from server.delta.matching.ranges import Ints
from server.delta.matching.weights import PIECE


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
    chosen = shifts[_best_path(shifts, worth), np.arange(len(start))]
    there = chosen != ABSENT
    return Alignment(start[there], end[there], chosen[there]).merged()


def _shift_at(pieces: Alignment, place: Ints) -> Ints:
    if not len(pieces):
        return np.full(len(place), ABSENT)
    piece = pieces.at(place)
    return np.where((piece >= 0) & (place < pieces.end[piece]), pieces.shift[piece], ABSENT)


def _best_path(shifts: Ints, worth: Ints) -> Ints:
    """For each stretch 0 or 1, by Viterbi's algorithm."""
    count = shifts.shape[1]
    if not count:
        return np.zeros(0, np.int64)
    # What it costs to go from side a of one stretch to side b of the next.
    before = np.concatenate([np.full((2, 1), ABSENT), shifts[:, :-1]], axis=1)
    price = [
        [np.where((shifts[b] == ABSENT) | (shifts[b] == before[a]), 0, PIECE).tolist() for b in range(2)]
        for a in range(2)
    ]
    came = bytearray(2 * count)
    total0, total1 = 0, 0
    rows = zip(*worth.tolist(), *price[0], *price[1], strict=True)
    for at, (worth0, worth1, price00, price01, price10, price11) in enumerate(rows):
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
