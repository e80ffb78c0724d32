"""The stream of changed machine code: what is coded comes back, addresses are followed, damage is refused."""

import json
import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.delta.addresses import Addresses, Places, find_places
from protocol.delta.apply import apply_group
from protocol.delta.arm64 import follow_arm64
from protocol.delta.code import open_code
from protocol.delta.follow import follow
from protocol.delta.numbers import NumberReader
from protocol.delta.operations import COPY, TAKE
from protocol.delta.programs import Exceptional, Program, Region, Rule, Segment, code_programs
from protocol.delta.x86 import distances
from protocol.errors import Refused
from server.delta.code import encode_code
from server.delta.groups import ViewBase, cut_groups, encode_group
from server.delta.numbers import NumberWriter
from server.delta.pieces import How, Piece


def places(*rows: tuple[int, int, int]) -> Places:
    base, output, length = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return Places(base, output, length, np.ones(base.size, np.bool_))


def round_trip(old: bytes, new: bytes, where: Places) -> bytes:
    coded = encode_code(memoryview(old), memoryview(new), where)
    pieces = [
        old[base : base + length] for base, length in zip(where.base.tolist(), where.length.tolist(), strict=True)
    ]
    return open_code(memoryview(coded), sum(map(len, pieces)), iter(pieces), where)


def taken(new: bytes, where: Places) -> bytes:
    rows = zip(where.output.tolist(), where.length.tolist(), strict=True)
    return b"".join(new[output : output + length] for output, length in rows)


@given(
    st.binary(min_size=1, max_size=6000),
    st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=40)), max_size=12),
)
@settings(max_examples=15, deadline=None)
def test_what_changed_anywhere_comes_back(old: bytes, changes: list[tuple[int, bytes]]) -> None:
    new = bytearray(old)
    for at, change in changes:
        new[at : at + len(change)] = change
    new = new[: len(old)]
    where = places((0, 0, len(new)))
    assert round_trip(old, bytes(new), where) == new


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 99)), min_size=1, max_size=30), st.randoms())
@settings(max_examples=10, deadline=None)
def test_operations_of_any_length_and_place_come_back(reads: list[tuple[int, int]], random: object) -> None:
    old = bytes(range(256)) * 4
    new = bytes((byte * 7 + 1) & 0xFF if at % 5 == 0 else byte for at, byte in enumerate(old * 4))
    outputs = np.cumsum([0, *(length for _, length in reads)]).tolist()
    where = places(*((base, output, length) for (base, length), output in zip(reads, outputs, strict=False)))
    assert round_trip(old, new, where) == taken(new, where)


def test_blocks_of_a_long_stream_come_back() -> None:
    chance = np.random.default_rng(3)
    old = chance.integers(0, 256, 700_001, np.uint8)
    new = old.copy()
    new[chance.integers(0, old.size, 5000)] += 1
    where = places((0, 10, 300_001), (300_004, 300_011, 399_990))
    result = bytes(10) + new[:300_001].tobytes() + new[300_004:].tobytes()
    assert round_trip(old.tobytes(), result, where) == taken(result, where)


def arm64_program(functions: list[list[int]], *, calls: dict[tuple[int, int], int]) -> bytes:
    """An ELF library of functions of whole words; `calls` puts a BL at (function, word) to a function."""
    starts = np.cumsum([0x1000, *(4 * len(function) for function in functions)]).tolist()
    words = [word for function in functions for word in function]
    for (caller, word), callee in calls.items():
        at = starts[caller] + 4 * word
        words[(at - 0x1000) // 4] = 0x94000000 | ((starts[callee] - at) // 4 & 0x3FFFFFF)
    code = struct.pack(f"<{len(words)}I", *words)
    table = struct.pack(f"<{len(functions)}Q", *starts[:-1])
    end = 0x1000 + len(code) + len(table)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, end, 0, 64, 56, 1, 64, 3, 0
    )
    header += struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, 0x1000)
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 0, 1, 6, 0x1000, 0x1000, len(code), 0, 0, 4, 0),
        struct.pack("<IIQQQQIIQQ", 0, 1, 3, 0x1000 + len(code), 0x1000 + len(code), len(table), 0, 0, 8, 0),
    ]
    return header.ljust(0x1000, b"\0") + code + table + b"".join(sections)


def rebuilt(function_words: int) -> tuple[bytes, bytes, Places]:
    """A library before and after a function in its middle grew by five words."""
    chance = np.random.default_rng(5)
    functions = [chance.integers(0xD5000000, 0xD5FFFFFF, function_words).tolist() for _ in range(200)]
    calls = {(int(caller), int(word)): int(callee) for caller, word, callee in chance.integers(0, 200, (3000, 3))}
    calls = {(caller, word % function_words): callee for (caller, word), callee in calls.items()}
    old = arm64_program(functions, calls=calls)
    grown = [*functions[:90], functions[90] + [0xD503201F] * 5, *functions[91:]]
    new = arm64_program(grown, calls=calls)
    middle = 0x1000 + 4 * function_words * 91
    where = places((0, 0, middle), (middle, middle + 20, len(old) - middle))
    return old, new, where


def test_calls_and_pointers_of_a_rebuilt_library_cost_next_to_nothing() -> None:
    old, new, where = rebuilt(60)
    coded = encode_code(memoryview(old), memoryview(new), where)
    before, after = np.frombuffer(old, np.uint8), np.frombuffer(taken(new, where), np.uint8)
    assert np.count_nonzero(before != after) > 1000
    assert len(coded) < 200
    assert round_trip(old, new, where) == taken(new, where)


def test_what_other_groups_hold_is_followed_too() -> None:
    old, new, (base, output, length, own) = rebuilt(60)
    rest = Places(base[1:], output[1:], length[1:], own[1:])
    assert len(encode_code(memoryview(old), memoryview(new), rest)) < 200


def test_wrong_words_of_many_blocks_are_put_right_together() -> None:
    chance = np.random.default_rng(4)
    old = chance.integers(0, 256, 400_000, np.uint8)
    new = old.copy()
    new[chance.integers(0, old.size, 30_000)] += 1
    where = places((0, 0, 200_003), (200_007, 200_003, 199_993))
    result = new[:200_003].tobytes() + new[200_007:].tobytes()
    assert round_trip(old.tobytes(), result, where) == taken(result, where)


def test_to_apply_loads_nothing_large() -> None:
    old, new, where = rebuilt(30)
    coded = encode_code(memoryview(old), memoryview(new), where)
    rows = [column.tolist() for column in where]
    script = (
        "import sys, json, numpy as np; from protocol.delta.addresses import Places; "
        "from protocol.delta.code import open_code; old, coded, rows, length = json.load(sys.stdin); "
        "old = bytes.fromhex(old); places = Places(*(np.array(column) for column in rows)); "
        "pieces = (old[base : base + size] for base, size in zip(rows[0], rows[2])); "
        "open_code(memoryview(bytes.fromhex(coded)), length, pieces, places); "
        "print('numpy.ma' in sys.modules)"
    )
    given = json.dumps([old.hex(), coded.hex(), rows, len(taken(new, where))])
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "False\n", done.stderr


def test_a_group_with_such_a_stream_is_applied() -> None:
    old, new, where = rebuilt(30)
    middle = int(where.base[1])
    pieces = [
        Piece(How.CODE, middle, 0),
        Piece(How.BINARY, 20),
        Piece(How.CODE, 64, middle),
        Piece(How.COPY, 128, middle + 64),
        Piece(How.CODE, len(old) - middle - 192, middle + 192),
    ]
    new = new[: middle + 84] + old[middle + 64 : middle + 192] + new[middle + 212 :]
    output = bytearray()
    for plan in cut_groups(pieces):
        group = encode_group(plan, memoryview(old), memoryview(new))
        apply_group(group, ViewBase(memoryview(old)), len(output), output.extend)
    assert output == new


def test_an_adrp_follows_its_first_use_up_to_where_its_register_is_written() -> None:
    # adrp x1, +0x1000; adrp x1, +0x2000; ldr x2, [x1, #8]; add x1, x1, #16; ldr x3, [x1, #24], of another address
    words = np.array([0xB0000001, 0xD0000001, 0xF9400422, 0x91004021, 0xF9400C23], np.int64)
    old = 0x10000 + 4 * np.arange(5)
    followed, names = follow_arm64(words, old, np.zeros(5, np.int64), lambda named: np.where(named == 0x12008, 16, 0))
    assert names.tolist() == [0x11000, 0x12008, 0x12008, 0x12010, -1]
    assert followed.tolist() == [0xB0000001, 0xD0000001, 0xF9400C22, 0x91004021, 0xF9400C23]


def test_a_branch_follows_what_it_names_and_an_adrp_its_pair() -> None:
    words = np.array([0x94000400, 0xB0000001, 0x91004021], np.int64)  # bl +0x1000; adrp x1, +0x1000; add x1, x1, #16
    old = np.array([0x10000, 0x10004, 0x10008], np.int64)
    moved = np.full(3, 8, np.int64)
    followed, names = follow_arm64(words, old, moved, lambda named: np.where(named == 0x11010, 0xFF8, 24))
    assert names.tolist() == [0x11000, 0x11010, 0x11010]
    assert [hex(word) for word in followed.tolist()] == ["0x94000404", "0xd0000001", "0x91002021"]


def test_distances_of_x86_are_found_behind_what_tells_them() -> None:
    code = bytes.fromhex("9090909090 e811223344 90 488d0511223344 0f8411223344 f20f100511223344 9090909090")
    assert distances(np.frombuffer(code, np.uint8)).tolist() == [6, 14, 20, 28]


def test_a_functions_record_follows_where_it_begins_where_its_kind_stands_and_how_long_it_is() -> None:
    program = Program(0x4000, (Segment(0, 0x4000, 0, 0),), (Region(0x2000, 0x100, Rule.UNWIND),), ())
    addresses = Addresses((program,), places((0, 0, 0x1000), (0x1000, 0x1040, 0x1000), (0x2000, 0x2040, 0x100)))
    base = np.arange(0x2000, 0x2020, 4)
    record = [16, 0x14, 0x0FE0 - 0x2018 & 0xFFFFFFFF, 0x100, 0]
    values = np.array([1, 2, 3, 0, *record[:4]], np.int64)
    values[4:] = record[:4]
    followed, names = follow(values, np.full(8, 4, np.int64), addresses.words(base, base + 0x40), addresses)
    assert followed.tolist()[:5] == values.tolist()[:5]
    assert followed.tolist()[5:] == [0x14, 0x0FE0 - 0x2058 & 0xFFFFFFFF, 0x140]
    assert names.tolist() == [-1, -1, -1, -1, -1, 0x2000, 0x0FE0, -1]


def test_addresses_follow_operations_and_their_exceptions() -> None:
    program = Program(
        0x5000,
        (Segment(100, 1000, 0x1000 - 100, 0x2000 - 110), Segment(1200, 100, 0x4000 - 1200, 0x5000 - 1210)),
        (Region(100, 50, Rule.ARM64), Region(1200, 100, Rule.POINTERS)),
        (Exceptional(0x1100, 16, 99),),
    )
    addresses = Addresses((program,), places((100, 110, 500), (600, 630, 500), (1200, 1210, 100)))
    asked = np.array([0xFFF, 0x1000, 0x10FF, 0x1100, 0x110F, 0x1110, 0x1000 + 500, 0x4000, 0x4FFF, 0x5000, -5])
    assert addresses.shift(asked).tolist() == [0, 0x1000, 0x1000, 99, 99, 0x1000, 0x1014, 0x1000, 0x1000, 0, 0]
    words = addresses.words(np.array([96, 100, 1204]), np.array([96, 110, 1214]))
    assert words.rule.tolist() == [0, Rule.ARM64, Rule.POINTERS]
    assert words.old.tolist()[1:] == [0x1000, 0x4004]
    assert words.moved.tolist() == [0, 0x1000, 0x1000]


def test_bytes_that_two_operations_read_went_where_the_longer_one_says() -> None:
    program = Program(0x1000, (Segment(0, 0x1000, 0, 0),), (), ())
    addresses = Addresses((program,), places((0, 0, 900), (100, 2000, 50), (900, 1000, 100)))
    assert addresses.shift(np.array([100, 149, 150, 900])).tolist() == [0, 0, 0, 100]


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_what_is_said_of_programs_comes_back(data: st.DataObject) -> None:
    small = st.integers(0, 5000)
    programs = []
    at = 0
    for _ in range(data.draw(st.integers(0, 3))):
        begin = at
        segments, regions = [], []
        for _ in range(data.draw(st.integers(0, 3))):
            base, length = at + data.draw(small), data.draw(small)
            segments.append(Segment(base, length, data.draw(small), data.draw(st.integers(-(2**40), 2**40))))
            regions.append(Region(base, length, data.draw(st.sampled_from(Rule))))
            at = base + length
        address, exceptions = 0, []
        for _ in range(data.draw(st.integers(0, 3))):
            address += data.draw(small)
            exceptions.append(Exceptional(address, 7, data.draw(st.integers(-(2**30), 2**30))))
            address += 7
        programs.append(Program(begin + 10**6, tuple(segments), tuple(regions), tuple(exceptions)))
    writer = NumberWriter()
    code_programs(writer, tuple(programs))
    assert code_programs(NumberReader(writer.finish())) == tuple(programs)


def test_places_are_those_operations_that_read_the_base() -> None:
    kinds = np.array([COPY, TAKE + 1, TAKE, TAKE + 1], np.int64)
    lengths, bases = np.array([10, 20, 30, 40], np.int64), np.array([5, 6, -1, 7], np.int64)
    found = find_places(kinds, lengths, bases, 100, TAKE + 1)
    assert found.base.tolist() == [5, 6, 7]
    assert found.output.tolist() == [100, 110, 160]
    assert found.own.tolist() == [False, True, True]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_damaged_streams_are_refused_or_give_bytes_of_the_right_length(data: st.DataObject) -> None:
    old, new, where = rebuilt(4)
    coded = bytearray(encode_code(memoryview(old), memoryview(new), where))
    for _ in range(data.draw(st.integers(1, 4))):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    coded = coded[: data.draw(st.integers(0, len(coded)))]
    length = int(where.length.sum())
    pieces = [old[: int(where.length[0])], old[int(where.length[0]) :]]
    with suppress(Refused):
        assert len(open_code(memoryview(coded), length, iter(pieces), where)) == length


def test_programs_in_each_other_are_refused() -> None:
    inner = Program(10, (Segment(5, 10, 0, 0),), (), ())
    outer = Program(10, (Segment(0, 10, 0, 0),), (), ())
    with pytest.raises(Refused):
        Addresses((outer, inner), places((0, 0, 1)))
