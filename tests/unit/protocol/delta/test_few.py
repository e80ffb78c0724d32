"""What little there is of new and changed bytes travels among the operations, within bounds."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.delta.literals import Literals
from protocol.delta.numbers import NumberReader
from protocol.delta.operations import CHANGED, COPY, NEW, Operation, Place, code_operation
from protocol.delta.patch import write_group
from protocol.errors import Refused
from server.delta.groups import ViewBase
from server.delta.numbers import NumberWriter
from tests.unit.protocol.delta.hostile_groups import outcome

TEXT = b"".join(b"layer_%d.weight = field / robot\n" % number for number in range(300))


def coded(base: bytes, new: bytes, *operations: Operation) -> bytes:
    """The group of these operations."""
    numbers, place, at = NumberWriter(), Place(ViewBase(memoryview(base)), 0, len(new), ()), 0
    for operation in operations:
        code_operation(numbers, place, operation, memoryview(new)[at : at + operation.length])
        at += operation.length
    return write_group(len(new), numbers.finish(), [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=40), st.binary(min_size=1, max_size=30))))
def test_new_bytes_come_out_whatever_stands_around_them(sites: list[tuple[bytes, bytes, bytes]]) -> None:
    writer = NumberWriter()
    writing = Literals(writer)
    for before, after, new in sites:
        assert writing.code(before, after, len(new), new) == new
    reading = Literals(NumberReader(writer.finish()))
    for before, after, new in sites:
        assert reading.code(before, after, len(new)) == new


def test_what_the_base_says_around_a_place_costs_little() -> None:
    writer = NumberWriter()
    Literals(writer).code(TEXT[:4096], TEXT[4096:8192], 34, b"layer_130.weight = field / robot\n\n")
    assert len(writer.finish()) < 12


def test_a_name_that_grew_in_many_places_costs_a_few_bits_in_each() -> None:
    writer = NumberWriter()
    new = Literals(writer)
    for number in range(200):
        old = bytes([20 + number % 30]) + b"name"
        new.code(b"before\n", old, 7, bytes([old[0] + 6]) + b"graph/")
    assert len(writer.finish()) < 60


def test_numbers_that_all_grew_by_one_cost_next_to_nothing() -> None:
    grown = b"".join(b"layer_%d.weight = field / robot\n" % (number + 1) for number in range(100, 300))
    base = b"".join(b"layer_%d.weight = field / robot\n" % number for number in range(100, 300))
    group = coded(base, grown, Operation(CHANGED, len(grown), 0))
    assert outcome(group, base) == len(grown)
    assert len(group) < 24


@pytest.mark.parametrize("shift", [-3, 1, 900])
def test_numbers_keep_their_digits(shift: int) -> None:
    chance = random.Random(shift)
    words = [chance.choice((b"x%d", b"%04d", b"1.%d", b"\0%d\xff")) % chance.randrange(1000) for _ in range(900)]
    old = b" ".join(words)
    new = bytearray(old)
    for at in range(0, len(old) - 4, 40):
        if old[at : at + 4].isdigit():
            new[at : at + 4] = b"%04d" % ((int(old[at : at + 4]) + shift) % 10_000)
        else:
            new[at] ^= 3
    group = coded(old, bytes(new), Operation(CHANGED, len(new), 0))
    assert outcome(group, old) == len(new)


def test_a_length_that_the_base_says_in_front_costs_a_few_bits() -> None:
    chance = random.Random(1)
    lengths = [chance.randrange(200, 4_000_000 // 100) for _ in range(100)]
    base, new, operations = bytearray(), bytearray(), []
    for length in lengths:
        head = b"tensor\x4a" + bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
        operations.append(Operation(CHANGED, 10, len(base)))
        operations.append(Operation(COPY, length, len(base) + 10))
        body = chance.randbytes(length)
        base += head + body
        new += bytes([head[0] ^ 1]) + head[1:] + body
    group = coded(bytes(base), bytes(new), *operations)
    assert outcome(group, bytes(base)) == len(new)
    assert len(group) < 100


def test_a_copy_of_the_whole_base_is_a_few_bytes() -> None:
    group = coded(TEXT, TEXT, Operation(COPY, len(TEXT), 0))
    assert len(group) <= 6


def test_more_new_or_changed_bytes_than_are_bounded_are_refused() -> None:
    for kind, most in ((NEW, limits.GROUP_NEW_BYTES), (CHANGED, limits.GROUP_NEW_BYTES + limits.GROUP_CHANGED_BYTES)):
        base = bytes(most + 1)
        at = 0 if kind == CHANGED else -1
        assert outcome(coded(base, base[:most], Operation(kind, most, at)), base) == most
        with pytest.raises(Refused):
            coded(base, base, Operation(kind, most + 1, at))
