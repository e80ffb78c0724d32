"""Whatever the bytes of a group, it gives what its header announces, or it is refused: in bounded time and memory."""

import json
import random
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.delta.apply import apply_group, read_operations
from protocol.delta.deflate import read_deflate
from protocol.delta.deflated import LEAST_OLD, LEAST_SAID, OLD_SHARE, Step, code_member, code_old_length, open_deflated
from protocol.delta.lanes import ENOUGH_LANES, MOST_A_LANE, hold_lanes
from protocol.delta.lowrank import CHANGES, Change, code_shapes
from protocol.delta.numbers import NumberReader
from protocol.delta.operations import (
    AGAIN_BITS,
    FILL,
    OPERATION_NAMES,
    TAKE,
    Operation,
    Place,
    code_operation,
    digest_value,
)
from protocol.delta.patch import read_group_header, write_group
from protocol.delta.programs import MOST_PARTS, Exceptional, Program, Region, Rule, code_programs
from protocol.delta.tar import DIGEST, HEAD
from protocol.errors import Refused
from server.delta.groups import cut_groups, encode_group
from server.delta.numbers import NumberWriter
from server.delta.pieces import How, Piece
from tests.unit.protocol.delta.chosen_groups import KINDS, Told, chosen_group, mixed_base
from tests.unit.protocol.delta.hostile_groups import CarefulBase, Seed, damaged, outcome, seeds
from tests.unit.protocol.delta.slow_groups import slow_groups

VECTORS = Path(__file__).parents[3] / "vectors" / "delta"
SEEDS = seeds()
ELEMENTS = {
    How.F32_DIFFERENCE: 4,
    How.F16_DIFFERENCE: 2,
    How.BF16_DIFFERENCE: 2,
    How.I8_DIFFERENCE: 1,
    How.I32_DIFFERENCE: 4,
    How.F32_ALONE: 4,
    How.F16_ALONE: 2,
    How.BF16_ALONE: 2,
    How.BEHIND: 1,
    How.BYTE_DIFFERENCE: 1,
    How.CODE: 1,
    How.EDITS: 1,
    How.TEXT: 1,
    How.BINARY: 1,
}
MOST_MIB_S = 40  # of a fast core
STRANGE = b"\0\0\0\0\0\0\0\x80\0\0\x80\x7f\0\0\x80\xff\0\0\xc0\x7f\x01\0\0\0\0\x7c\0\xfc\x01\x7e\x01\0\0\x80\xff\xff"
"""Zeros of both signs, infinities, what is no number, and the smallest numbers, of all widths."""


@pytest.mark.parametrize("seed", SEEDS, ids=[seed.name for seed in SEEDS])
def test_a_group_of_each_kind_is_applied_and_its_damaged_copies_give_what_they_say_or_are_refused(seed: Seed) -> None:
    assert outcome(seed.group, seed.base) == len(seed.output)
    chance = random.Random(seed.name)
    for _ in range(40):
        outcome(damaged(seed.group, chance), seed.base)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SEEDS), st.binary(max_size=200), st.integers(0, limits.GROUP_OUTPUT_BYTES))
def test_noise_is_refused_or_gives_what_it_says(seed: Seed, noise: bytes, output_bytes: int) -> None:
    outcome(noise, seed.base)
    outcome(write_group(output_bytes, noise, [(kind, 64, noise) for kind in (3, 4, 7, 9, 12, 16, 32, 33)]), seed.base)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(ELEMENTS, key=lambda how: how.name)), st.data())
def test_what_is_encoded_comes_out_again(how: How, data: st.DataObject) -> None:
    part = st.one_of(st.binary(max_size=60), st.just(STRANGE), st.builds(bytes, st.integers(0, 300)))
    old, new = (b"".join(data.draw(st.lists(part, max_size=8))) for _ in range(2))
    length = len(new) if how.name.endswith("ALONE") or how in (How.TEXT, How.BINARY) else min(len(old), len(new))
    length -= length % ELEMENTS[how]
    if not length:
        return
    takes_base = not how.name.endswith("ALONE") and how not in (How.TEXT, How.BINARY)
    columns = data.draw(st.integers(0, 40))
    (plan,) = cut_groups([Piece(how, length, 0 if takes_base else -1, columns)])
    group = encode_group(plan, memoryview(old), memoryview(new))
    out = bytearray()
    apply_group(group, CarefulBase(memoryview(old)), 0, out.extend)
    assert out == new[:length]


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_cases_that_were_found_give_what_they_should_or_are_refused(path: Path) -> None:
    case = json.loads(path.read_text())
    part, times = case["base"]
    assert outcome(bytes.fromhex(case["group"]), bytes.fromhex(part) * times) == case["gives"]


def test_a_length_beyond_the_output_is_refused_before_it_is_kept() -> None:
    numbers = NumberWriter()
    numbers.symbol(0, 6, FILL)
    numbers.symbol(7 << 6 | FILL, AGAIN_BITS, 0)
    numbers.unsigned(3 << 6 | FILL, (1 << 63) - 1)
    assert outcome(write_group(5, numbers.finish(), []), b"") is None


def test_the_digest_of_a_file_of_no_bytes_may_stand_right_behind_its_header() -> None:
    base = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    numbers, place = NumberWriter(), Place(CarefulBase(memoryview(base)), 0, 557, ())
    code_operation(numbers, place, Operation(HEAD, 512, 0), memoryview(base)[:512])
    code_operation(numbers, place, Operation(DIGEST, 45, -1, digest_value(0, 0)))
    assert outcome(write_group(557, numbers.finish(), []), base) == 557


def test_many_tiny_changes_and_changes_of_more_factors_than_elements_are_refused() -> None:
    empty = np.empty((1, 0), np.int32)
    for shape, count in (((2, 2, 1), CHANGES + 1), ((2, 2, 2), 1)):
        rows, columns, rank = shape
        numbers = NumberWriter()
        for _ in range(count):
            numbers.symbol(5, 1, 1)
            for context, value in ((0, 0), (1, rows - 1), (2, columns - 1)):
                numbers.unsigned(context, value)
            numbers.symbol(3, 6, rank - 1)
            numbers.signed(4, 0)
        with pytest.raises(Refused):
            code_shapes(NumberReader(numbers.finish()), 1 << 20)
    assert Change(0, 2, 2, 1, 0, empty, empty).factors == 4


def test_many_symbols_in_few_lanes_are_refused() -> None:
    hold_lanes(1, MOST_A_LANE - 1)
    hold_lanes(ENOUGH_LANES, 1 << 22)
    for lanes in (1, 2, ENOUGH_LANES - 1):
        with pytest.raises(Refused):
            hold_lanes(lanes, lanes * MOST_A_LANE)


def test_streams_that_are_slow_to_decode_are_refused_when_they_are_many() -> None:
    old = bytes(512)
    numbers, place = NumberWriter(), Place(CarefulBase(memoryview(old)), 0, 48, (True,) * 3)
    for number in range(3):
        code_operation(numbers, place, Operation(TAKE + number, 16, 0))
    assert outcome(write_group(48, numbers.finish(), [(32, 16, b"")] * 3), old) is None
    numbers, place = NumberWriter(), Place(CarefulBase(memoryview(old)), 0, 32, (True,) * 2)
    for number in range(2):
        code_operation(numbers, place, Operation(TAKE + number, 16, 0))
    assert outcome(write_group(32, numbers.finish(), [(32, 16, b"")] * 2), old) == 32


def test_parts_of_programs_are_counted_together() -> None:
    half = MOST_PARTS // 2 + 1
    regions = tuple(Region(at, 1, Rule.NONE) for at in range(half))
    exceptions = tuple(Exceptional(at, 1, 0) for at in range(half))
    numbers = NumberWriter()
    with pytest.raises(Refused):
        code_programs(numbers, (Program(1 << 30, (), regions, exceptions),))


@pytest.mark.parametrize("number", range(12))
def test_groups_that_no_encoder_makes_give_what_they_say_or_are_refused(number: int) -> None:
    """Chosen number by number: entropy coders come out even, and what lies behind them is reached."""
    chance = random.Random(number)
    given = 0
    for _ in range(12):
        group = chosen_group(chance)
        given += outcome(group, mixed_base()) is not None
        outcome(damaged(group, chance), mixed_base())
    assert given >= 6, "what is chosen is seldom refused"


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_is_chosen_gives_what_it_says_or_is_refused(choices: bytes) -> None:
    outcome(chosen_group(Told(choices)), mixed_base())


def test_all_kinds_of_streams_and_operations_are_chosen() -> None:
    kinds: set[int] = set()
    operations: set[int] = set()
    base = CarefulBase(memoryview(mixed_base()))
    chance = random.Random(1)
    for _ in range(80):
        group = chosen_group(chance)
        header = read_group_header(group)
        assert header is not None
        kinds |= {stream.kind for stream in header.streams if stream.length_bytes}
        operations |= {operation.kind for operation in read_operations(header, memoryview(group), base, 0)}
    assert kinds == set(KINDS)
    assert operations >= set(OPERATION_NAMES)


def test_the_work_of_a_group_follows_what_it_gives() -> None:
    """The figures of the codec's page, with room for a slower core."""
    for slow in slow_groups(1 / 256):
        seconds, given = slow.seconds()
        assert seconds < 0.5 + 10 * MOST_MIB_S * given / limits.MIB, slow.name


def test_many_members_of_long_old_ones_and_steps_for_each_byte_are_refused() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    member = packer.compress(bytes(range(64)) * 80) + packer.flush()
    numbers = NumberWriter()
    code_old_length(numbers, LEAST_OLD + OLD_SHARE * 100)
    with pytest.raises(Refused, match="much longer"):
        open_deflated(numbers.finish(), [(0, 100)], lambda offset, length: member)
    old, _ = read_deflate(member)
    with pytest.raises(Refused, match="too many tokens"):
        code_member(NumberWriter(), 1000, old, old, [Step(0, 0, 1)] * (LEAST_SAID + 502))
