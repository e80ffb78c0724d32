"""Covers are always valid, whatever the bytes and the limits; and they find what a person would point at."""

import itertools
import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.delta.matching import MatchLimits, find_covers

LIMITS = MatchLimits()


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def assert_valid(covers: npt.NDArray[np.int64], old: bytes, new: bytes) -> None:
    assert covers.dtype == np.int64
    assert covers.shape == (len(covers), 3)
    done = 0
    for at, source, length in covers.tolist():
        assert at >= done
        assert length > 0
        assert source >= 0
        assert source + length <= len(old)
        done = at + length
    assert done <= len(new)


def cost_bytes(covers: npt.NDArray[np.int64], old: bytes, new: bytes) -> int:
    """What a coder pays, roughly: bytes that differ, bytes outside, and eight for each cover."""
    left = np.ones(len(new), bool)
    for at, source, length in covers.tolist():
        there = np.frombuffer(new, np.uint8, length, at) != np.frombuffer(old, np.uint8, length, source)
        left[at : at + length] = there
    return int(left.sum()) + 8 * len(covers)


@st.composite
def related(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two buffers, the second pieced together from the first, itself and fresh bytes, sometimes of few values."""
    values = draw(st.sampled_from([1, 2, 3, 256]))
    fresh = random.Random(draw(st.integers(0, 1 << 30)))

    def some(size: int) -> bytes:
        return bytes(fresh.randrange(values) for _ in range(size))

    old = some(draw(st.integers(0, 2000)))
    new = bytearray()
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["copy", "again", "fresh", "touched"]))
        source = bytes(new) if kind == "again" else old
        start = draw(st.integers(0, len(source)))
        part = bytearray(source[start : start + draw(st.integers(0, 600))])
        if kind == "fresh":
            part = bytearray(some(len(part)))
        if kind == "touched":
            part[::16] = bytes(len(part[::16]))
        new += part
    return old, bytes(new)


@settings(max_examples=150, deadline=None)
@given(related(), st.sampled_from([1, 300, 1 << 20]), st.sampled_from([8, 4096, 1 << 24]))
def test_covers_are_sorted_disjoint_inside_and_the_same_again(
    pair: tuple[bytes, bytes], window_bytes: int, index_bytes: int
) -> None:
    old, new = pair
    limits = MatchLimits(window_bytes=max(window_bytes, len(new) // 8), index_bytes=index_bytes)
    covers = find_covers(old, new, limits=limits)
    assert_valid(covers, old, new)
    assert np.array_equal(covers, find_covers(old, new, limits=limits))


@settings(max_examples=50, deadline=None)
@given(
    related(),
    st.lists(st.tuples(st.integers(-99, 3000), st.integers(-99, 3000), st.integers(-99, 3000)), max_size=5),
)
def test_wrong_hints_do_no_harm(pair: tuple[bytes, bytes], hints: list[tuple[int, int, int]]) -> None:
    old, new = pair
    assert_valid(find_covers(old, new, limits=LIMITS, hints=hints), old, new)


@settings(max_examples=50, deadline=None)
@given(related(), st.integers(0, 60))
def test_when_the_time_is_over_what_was_found_is_given_and_valid(pair: tuple[bytes, bytes], looks: int) -> None:
    old, new = pair
    clock = itertools.count()
    covers = find_covers(old, new, limits=MatchLimits(seconds=looks), clock=lambda: float(next(clock)))
    assert_valid(covers, old, new)


def test_a_search_without_time_ends_at_once_even_on_big_buffers() -> None:
    old = noise(1, 8 << 20)
    clock = itertools.count()
    covers = find_covers(old, old[::-1], limits=MatchLimits(seconds=20), clock=lambda: float(next(clock)))
    assert_valid(covers, old, old[::-1])
    assert next(clock) < 100


def test_holes_do_not_make_the_bytes_between_them_worthless() -> None:
    old = bytearray(24 << 20)
    for place in (3 << 20, 17 << 20):
        old[place : place + 8192] = noise(place, 8192)
    new = old.copy()
    for place in (3 << 20, 17 << 20):
        new[place + 4000 : place + 4100] = noise(place + 1, 100)
    covers = find_covers(bytes(old), bytes(new), limits=MatchLimits())
    covered = np.zeros(len(new), bool)
    for start, source, length in covers.tolist():
        covered[start : start + length] = True
        assert start == source
    assert np.count_nonzero(np.frombuffer(new, np.uint8)[~covered]) <= 200


def test_equal_buffers_are_one_cover() -> None:
    old = noise(2, 300_000)
    assert find_covers(old, old, limits=LIMITS).tolist() == [[0, 0, len(old)]]


@pytest.mark.parametrize("size", [1, 17, 5_000])
def test_an_inserted_block_parts_one_cover_in_two(size: int) -> None:
    old = noise(3, 100_000)
    new = old[:40_000] + noise(4, size) + old[40_000:]
    covers = find_covers(old, new, limits=LIMITS)
    assert len(covers) == 2
    assert cost_bytes(covers, old, new) <= size + 16


def test_a_moved_block_is_found_where_it_was() -> None:
    old = noise(5, 200_000)
    new = old[:20_000] + old[120_000:123_000] + old[20_000:120_000] + old[123_000:]
    assert cost_bytes(find_covers(old, new, limits=LIMITS), old, new) <= 4 * 8


def test_addresses_that_changed_stay_inside_one_cover() -> None:
    old = bytearray(noise(6, 256_000))
    new = bytearray(old)
    for at in range(32, len(new) - 4, 64):
        new[at : at + 4] = (int.from_bytes(new[at : at + 4], "little") + 0x1240 & 0xFFFFFFFF).to_bytes(4, "little")
    shifted = noise(7, 1000) + bytes(new)
    covers = find_covers(bytes(old), shifted, limits=LIMITS)
    assert len(covers) == 1
    assert covers[0].tolist() == [1000, 0, len(old)]


def test_content_that_stands_twice_is_taken_twice() -> None:
    old = noise(8, 50_000)
    new = old + noise(9, 3000) + old
    covers = find_covers(old, new, limits=LIMITS)
    assert cost_bytes(covers, old, new) <= 3000 + 2 * 8


def test_a_likeness_of_short_runs_only_is_found_between_its_neighbours() -> None:
    old = bytearray(noise(10, 60_000))
    new = bytearray(old)
    for at in range(30_000, 30_400, 10):
        new[at] ^= 0x55
    del new[29_990:29_995]
    covers = find_covers(bytes(old), bytes(new), limits=LIMITS)
    assert len(covers) == 2
    assert cost_bytes(covers, bytes(old), bytes(new)) <= 40 + 2 * 8


@pytest.mark.parametrize("pattern", [b"\0", b"ab", b"\x90\x00\x00\xeb", b"0123456789abcdefghijklm"])
def test_runs_and_repeats_cost_few_covers(pattern: bytes) -> None:
    old = noise(11, 2000) + pattern * (1_000_000 // len(pattern)) + noise(12, 2000)
    new = noise(11, 2000) + pattern * (1_200_000 // len(pattern)) + noise(12, 2000)
    covers = find_covers(old, new, limits=LIMITS)
    assert_valid(covers, old, new)
    assert len(covers) <= 12


def test_a_sampled_index_still_finds_long_runs() -> None:
    old = noise(13, 400_000)
    new = old[300_000:] + noise(14, 100) + old[:300_000]
    covers = find_covers(old, new, limits=MatchLimits(index_bytes=64 << 10, window_bytes=64 << 10))
    assert cost_bytes(covers, old, new) <= 300


def test_a_hint_chooses_among_equal_places() -> None:
    block = noise(15, 9_000)
    old = block + noise(16, 500) + block + noise(17, 500) + block
    for source in (0, 9_500, 19_000):
        covers = find_covers(old, block, limits=LIMITS, hints=[(0, source, len(block))])
        assert covers.tolist() == [[0, source, len(block)]]


def test_progress_never_falls_and_ends_at_one() -> None:
    told: list[float] = []
    find_covers(noise(18, 50_000), noise(19, 50_000), limits=LIMITS, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_likeness_in_place_is_found_though_no_string_is_left() -> None:
    old = np.frombuffer(noise(20, 1_000_000), np.uint8)
    new = old.copy()
    new[::5] += 3
    covers = find_covers(old.data, new.data, limits=LIMITS)
    assert covers.tolist() == [[0, 0, len(old)]]


def test_strings_of_eight_bytes_are_found_where_a_gap_expects_them() -> None:
    old = bytearray(noise(21, 600_000))
    moved = old[300_000:300_600]
    moved[::9] = bytes(0x55 ^ value for value in moved[::9])
    new = bytes(old[:300_000] + noise(22, 40) + moved + old[300_700:])
    covers = find_covers(bytes(old), new, limits=LIMITS)
    assert cost_bytes(covers, bytes(old), new) <= 40 + len(moved[::9]) + 3 * 8
