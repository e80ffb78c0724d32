"""Two builds of a program, aligned: all of the new one is told, in no more pieces than pay."""

import struct

import numpy as np

from server.delta.aligned import program_pieces
from server.delta.matching import MatchLimits, find_covers
from server.delta.pieces import How

DATA = np.random.default_rng(1).integers(0, 256, 60_000, np.uint8).tobytes()


def pieces_of(old: bytes, new: bytes) -> list[tuple[int, int, int, How]]:
    """Start, length, base and kind of each."""
    found = program_pieces(memoryview(old), memoryview(new), MatchLimits)
    return [(start, piece.length, piece.base, piece.how) for start, piece in found]


def test_a_gap_that_costs_less_than_an_operation_goes_to_the_piece_before_it() -> None:
    old = DATA[:20_000]
    for gap in range(1, 4):
        new = old[8000:12_000] + b"\x5a" * gap + old[:4000]
        first, second = pieces_of(old, new)
        assert first[:3] == (0, 4000 + gap, 8000)
        assert second[:3] == (4000 + gap, 4000, 0)


def test_a_longer_gap_is_left_to_new_bytes() -> None:
    old = DATA[:20_000]
    new = old[8000:12_000] + DATA[50_000:50_040] + old[:4000]
    first, second = pieces_of(old, new)
    assert (first[0] + first[1], second[0]) == (4000, 4040)


def test_no_piece_reaches_behind_the_end_of_the_base() -> None:
    old = DATA[:20_000]
    new = old[16_000:] + b"\x5a\x5a" + old[:4000]
    for _, length, base, _ in pieces_of(old, new):
        assert base + length <= len(old)


def test_long_equal_runs_are_copied() -> None:
    changed = bytearray(DATA)
    changed[30_000] ^= 1
    (first, middle, last) = pieces_of(DATA, bytes(changed))
    assert [piece[3] for piece in (first, middle, last)] == [How.COPY, How.CODE, How.COPY]
    assert (middle[0], middle[1]) == (30_000, 1)


def test_a_short_likeness_is_not_a_cover_where_new_bytes_compress_well() -> None:
    chance = np.random.default_rng(2)
    words = [struct.pack("<I", word) for word in chance.integers(0, 1 << 32, 16)]  # what compression finds by itself
    old = b"".join(words[number] for number in chance.integers(0, 16, 4000))
    new = b"".join(words[number] for number in chance.integers(0, 16, 4000))
    dear = len(find_covers(old, new, limits=MatchLimits()))
    cheap = len(find_covers(old, new, limits=MatchLimits(), literal_share=0.4))
    assert cheap < dear / 2
