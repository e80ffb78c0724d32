"""Of two paths through the same bytes the better stretches are kept, and no piece that is not worth its numbers."""

import random

import numpy as np

from server.delta.matching.alignment import Alignment
from server.delta.matching.buffers import buffers
from server.delta.matching.mix import mix
from server.delta.matching.prune import prune

DATA = random.Random(1).randbytes(5_000)


def path(*pieces: tuple[int, int, int]) -> Alignment:
    start, end, shift = np.array(pieces).T
    return Alignment(start, end, shift)


def rows(pieces: Alignment) -> list[list[int]]:
    return np.stack([pieces.start, pieces.end, pieces.shift], axis=1).tolist()


def test_a_short_piece_between_two_that_explain_it_as_well_is_taken_out() -> None:
    same = buffers(DATA, DATA[:1000] + DATA[1077:1079] + DATA[1002:])
    broken = path((0, 1000, 0), (1000, 1002, 77), (1002, 5000, 0))
    assert rows(prune(same, broken)) == [[0, 5000, 0]]


def test_a_piece_that_alone_explains_its_bytes_stays() -> None:
    moved = buffers(DATA, DATA[:1000] + DATA[3000:3200] + DATA[1200:])
    right = path((0, 1000, 0), (1000, 1200, 2000), (1200, 5000, 0))
    assert rows(prune(moved, right)) == rows(right)


def test_the_best_of_two_paths_is_taken_stretch_by_stretch() -> None:
    moved = buffers(DATA, DATA[:1000] + DATA[3000:3200] + DATA[1200:])
    good_then_bad = path((0, 1000, 0), (1000, 1200, 2000), (1200, 3000, 0), (3000, 4000, 500))
    bad_then_good = path((100, 1500, 7), (1500, 5000, 0))
    best = mix(moved, good_then_bad, bad_then_good)
    assert rows(best) == [[0, 1000, 0], [1000, 1200, 2000], [1200, 5000, 0]]
    assert rows(mix(moved, bad_then_good, good_then_bad)) == rows(best)


def test_a_change_that_gains_less_than_a_piece_costs_is_not_made() -> None:
    twice = buffers(DATA, DATA[:2000] + b"\0" + DATA[2001:])
    plain = path((0, 5000, 0))
    at = DATA.index(b"\0")
    busy = path((0, 2000, 0), (2000, 2001, at - 2000), (2001, 5000, 0))
    assert rows(mix(twice, busy, plain)) == [[0, 5000, 0]]
