"""Two builds of a program, aligned: all of the new one is told, in no more pieces than pay."""

import struct

import numpy as np
import pytest

from protocol.delta.addresses import Places
from server.delta import aligned
from server.delta.aligned import program_pieces
from server.delta.matching import MatchLimits, find_covers
from server.delta.pieces import How
from server.delta.programs import STRETCH_BYTES, Stream

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


def test_a_large_build_is_looked_at_in_stretches_of_all_its_parts() -> None:
    length = 10 * STRETCH_BYTES
    covers = Places(
        np.array([0, length + 7]), np.array([5, 2 * length]), np.array([length, length + 100]), np.ones(2, np.bool_)
    )
    data = memoryview(bytes(4 * length))
    whole = Stream(data, data, covers, 3 * length).own
    assert [column.tolist() for column in whole] == [column.tolist() for column in covers]
    some = Stream(data, data, covers, length // 2).own
    assert length // 3 < some.length.sum() <= length // 2 + STRETCH_BYTES
    assert some.length.max() == STRETCH_BYTES
    inside = [
        (base, base - cover_base)
        for base, output, size in zip(some.base.tolist(), some.output.tolist(), some.length.tolist(), strict=True)
        for cover_base, cover_output, cover_size in zip(*(column.tolist() for column in covers[:3]), strict=True)
        if base - cover_base == output - cover_output and 0 <= base - cover_base <= cover_size - size
    ]
    assert len(inside) == len(some.base), "each lies in one cover, and moved as it does"
    assert some.own.all() and {base > length for base, _ in inside} == {False, True}, "of both covers"


def test_builds_that_are_too_large_to_be_written_anew_are_aligned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(old: memoryview, new: memoryview, **more: object) -> object:
        calls.append(len(new))
        return find_covers(old, new, **more)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(aligned, "find_covers", counted)
    monkeypatch.setattr(aligned, "find_programs", lambda *_: pytest.fail("no look at its programs"))
    monkeypatch.setattr(aligned, "ALIGNED_TWICE_BYTES", len(DATA))
    assert pieces_of(DATA, DATA[:1000] + b"x" + DATA[1000:])
    assert len(calls) == 1
