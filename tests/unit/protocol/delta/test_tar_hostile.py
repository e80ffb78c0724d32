"""Whatever a group says of archives, applying it gives the bytes that its header announces, or refuses."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.delta.apply import apply_group
from protocol.delta.operations import digest_value
from protocol.delta.patch import read_group_header, write_group
from protocol.delta.tar import DIGEST, ENTRIES, HEAD, PAD, STAMP, Form, TarPlace
from protocol.delta.tar_blocks import BLOCK_BYTES
from protocol.errors import Refused
from server.delta.groups import ViewBase
from server.delta.numbers import NumberWriter
from tests.unit.server.delta.archive_files import archive, compiled, sent
from tests.unit.server.delta.archive_lists import package

OLD = archive(package(1_700_000_000.25))
NEW = archive(package(1_700_086_400.75, "1.1", b"changed"))
GROUP = sent(OLD, NEW)[0]


def made(group: bytes, base: bytes = OLD) -> int:
    """Length of what a group gives; anything but bytes or a refusal fails the test."""
    out = bytearray()
    apply_group(group, ViewBase(memoryview(base)), 0, out.extend)
    return len(out)


def honest_or_refused(group: bytes, base: bytes = OLD) -> None:
    try:
        length = made(group, base)
    except Refused:
        return
    header = read_group_header(group)
    assert header is not None
    assert length == header.output_bytes


def test_a_flipped_bit_in_each_byte_of_a_group_gives_as_many_bytes_as_announced_or_is_refused() -> None:
    chance = random.Random(1)
    for place in range(len(GROUP)):
        group = bytearray(GROUP)
        group[place] ^= 1 << chance.randrange(8)
        honest_or_refused(bytes(group))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 200_000), st.sampled_from([OLD, NEW, OLD[:3000], bytes(4096)]))
def test_operations_of_noise_give_as_many_bytes_as_announced_or_are_refused(
    control: bytes, output_bytes: int, base: bytes
) -> None:
    honest_or_refused(write_group(output_bytes, control, []), base)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_an_old_archive_of_damaged_headers_is_no_danger(seed: int, damages: int) -> None:
    chance = random.Random(seed)
    base = bytearray(OLD)
    for _ in range(damages):
        base[chance.randrange(len(base))] = chance.choice(b"\0 07789x\xff\x80")
    honest_or_refused(GROUP, bytes(base))


def refused(output_bytes: int, *operations: tuple[int, ...], base: bytes = OLD) -> None:
    """Writes operations with the wire's own words, and sees them refused."""
    numbers = NumberWriter()
    for operation in operations:
        for context, bits, value in zip(operation[::3], operation[1::3], operation[2::3], strict=True):
            numbers.symbol(context, bits, value)
    with pytest.raises(Refused):
        made(write_group(output_bytes, numbers.finish(), []), base)


def test_padding_where_a_block_ends_is_refused() -> None:
    refused(512, (0, 6, PAD))


def test_a_header_made_of_one_that_is_not_there_is_refused() -> None:
    refused(512, (0, 6, HEAD, 6 << 6 | HEAD, 2, 3))


def test_a_digest_of_a_file_that_is_not_there_is_refused() -> None:
    for form in range(4):
        refused(43, (0, 6, DIGEST, 512 + 4 * 256, 2, form))


def test_entries_and_stamps_behind_the_end_of_the_base_are_refused() -> None:
    for kind in (ENTRIES, HEAD, STAMP):
        refused(4096, (0, 6, kind), base=b"")
        refused(4096, (0, 6, kind), base=OLD[:10])


def test_entries_never_give_more_than_the_group_announces() -> None:
    tar = TarPlace(ViewBase(memoryview(OLD)))
    with pytest.raises(Refused):
        tar.code_entries(NumberWriter(), 0, 10_000_000, 5 * BLOCK_BYTES, memoryview(NEW))


def test_headers_that_are_made_are_bounded_in_memory() -> None:
    tar = TarPlace(ViewBase(memoryview(OLD)))
    writer = NumberWriter()
    most = limits.GROUP_CODED_BYTES // BLOCK_BYTES
    tar.blocks.extend(bytes(limits.GROUP_CODED_BYTES - BLOCK_BYTES))
    tar.code_head(writer, 0, 0, memoryview(NEW)[:BLOCK_BYTES])
    with pytest.raises(Refused):
        tar.code_head(writer, 0, 512, memoryview(NEW)[:BLOCK_BYTES])
    assert len(tar.blocks) == most * BLOCK_BYTES


def test_a_stamp_with_a_time_beyond_its_field_is_refused() -> None:
    base = compiled(1_700_000_000, 10, b"")
    tar = TarPlace(ViewBase(memoryview(base)))
    with pytest.raises(Refused):
        tar._code_stamp_time(NumberWriter(), 5, 1 << 33)


def test_the_value_of_a_digest_holds_number_and_form() -> None:
    assert {digest_value(reference, form) for reference in range(5) for form in Form} == {
        reference * 4 + form for reference in range(5) for form in Form
    }
