"""Compressed files inside archives: what an encoder chose is read, moved along with the text, and written again."""

import gzip
import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.delta.deflate import Block, Deflated, read_deflate, write_deflate
from protocol.delta.deflated import TRAILER_BYTES, open_deflated, trailer
from protocol.errors import Refused
from server.delta.archives import layer_pieces
from server.delta.archives.members import encode_members, read_member
from server.delta.groups import cut_groups, encode_group
from server.delta.pieces import How
from tests.unit.server.delta.archive_files import applied, archive


def language(seed: int) -> list[bytes]:
    """Its words."""
    chance = random.Random(seed)
    return [bytes(chance.choices(b"etaoinshrdlu", k=length)) for length in (3, 4, 5, 7, 9) for _ in range(60)]


WORDS = language(7)


def text(words: int, seed: int) -> bytes:
    chance = random.Random(seed)
    return b" ".join(chance.choice(WORDS) for _ in range(words))


def body(data: bytes, level: int = 9, memory: int = 8, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, memory, strategy)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("level", [1, 4, 6, 9])
@pytest.mark.parametrize("data", [b"", b"a", b"ab" * 40_000, text(9000, 1), b"\0" * 3000 + text(300, 2)])
def test_what_zlib_wrote_is_read_and_written_again(level: int, data: bytes) -> None:
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY):
        packed = body(data, level, 8 + level % 2, strategy)
        stream, length = read_deflate(packed + b"behind")
        assert length == len(packed)
        assert write_deflate(stream) == packed
        assert int(stream.lengths.sum()) == len(data)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 285), st.integers(1, 5000)), min_size=1, max_size=120))
def test_codes_of_any_frequencies_are_those_of_zlib(counts: list[tuple[int, int]]) -> None:
    """Bytes that occur so often, without matches: zlib's own lengths are read back and made again."""
    data = bytearray()
    for symbol, count in counts:
        data += bytes([symbol & 0xFF]) * min(count, 30_000 // len(counts))
    random.Random(1).shuffle(data)
    packed = body(bytes(data), 6, 9, zlib.Z_HUFFMAN_ONLY)
    stream, _ = read_deflate(packed)
    assert write_deflate(stream) == packed


def test_codes_that_would_be_too_long_are_limited_as_zlib_does() -> None:
    data = b"".join(bytes([symbol]) * (1 << symbol) for symbol in range(15)) + bytes(range(20, 60))
    packed = body(data, 6, 9, zlib.Z_HUFFMAN_ONLY)
    stream, _ = read_deflate(packed)
    assert write_deflate(stream) == packed


def pair(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """Members with their trailers."""
    return body(old) + trailer(body(old)), body(new) + trailer(body(new))


def coded(old: bytes, new: bytes) -> bytes:
    data = encode_members([(memoryview(old), memoryview(new))])
    base = b"in front" + old
    assert open_deflated(data, [(8, len(new))], lambda at, length: base[at : at + length]) == new
    return data


def test_a_changed_date_in_a_compressed_manual_takes_a_few_bytes() -> None:
    manual = text(6000, 3)
    old, new = pair(b"Version of 2026-05-07 " + manual, b"Version of 2026-06-11 " + manual)
    assert len(new) > 10_000
    assert len(coded(old, new)) < 80


def test_an_entry_above_a_compressed_history_takes_about_its_own_size() -> None:
    history, entry = text(20_000, 4), text(200, 5)
    old, new = pair(history, entry + b"\n" + history)
    assert len(coded(old, new)) < 0.1 * len(new)


def test_members_that_have_nothing_in_common_come_out() -> None:
    coded(*pair(text(2000, 6), text(8, 9)))
    coded(*pair(b"", text(8, 10)))
    coded(*pair(text(500, 10), b""))


def test_a_compressed_file_in_an_archive_is_made_from_the_old_one() -> None:
    manual = text(6000, 3)
    old = archive([("doc/manual.gz", gzip.compress(b"May " + manual, mtime=0), 1_700_000_000)])
    new = archive([("doc/manual.gz", gzip.compress(b"June " + manual, mtime=0), 1_700_000_000)])
    pieces = layer_pieces(memoryview(old), memoryview(new))
    assert pieces is not None
    assert any(piece.how is How.DEFLATED for piece in pieces)
    groups = [encode_group(group, memoryview(old), memoryview(new)) for group in cut_groups(pieces)]
    assert applied(old, groups) == new
    assert sum(map(len, groups)) < 250


def test_a_compressed_file_of_another_time_takes_no_tokens_from_those_that_changed() -> None:
    """As in an image of Python packages: hundreds of files were compressed again, a few changed."""
    manuals = [text(1500, seed) for seed in range(300, 900)]

    def packed(time: int, word: bytes) -> bytes:
        files = [
            gzip.compress(word + b" " + manual if n % 100 == 99 else manual, mtime=time)
            for n, manual in enumerate(manuals)
        ]
        return archive([(f"doc/{n}.gz", file, 1_700_000_000) for n, file in enumerate(files)])

    old, new = packed(1_600_000_000, b"May"), packed(1_700_000_000, b"June")
    assert len(new) > 2 * limits.MIB
    pieces = layer_pieces(memoryview(old), memoryview(new))
    assert pieces is not None
    assert sum(piece.how is How.DEFLATED for piece in pieces) == 6
    groups = [encode_group(group, memoryview(old), memoryview(new)) for group in cut_groups(pieces)]
    assert applied(old, groups) == new
    assert sum(map(len, groups)) < 4000


def test_what_another_encoder_wrote_is_left_alone() -> None:
    stored = zlib.compressobj(0, zlib.DEFLATED, 31)
    assert read_member(memoryview(stored.compress(text(100, 1)) + stored.flush())) is None
    data = bytearray(gzip.compress(text(500, 1)))
    data[-1] ^= 1
    assert read_member(memoryview(data)) is None
    assert read_member(memoryview(gzip.compress(text(500, 1))[:-9])) is None
    assert read_member(memoryview(b"\x1f\x8b\x08")) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=60))
def test_noise_is_refused_or_gives_a_member_of_the_right_length(base: bytes, data: bytes) -> None:
    for old in (base, body(base)):
        try:
            made = open_deflated(data, [(0, 100)], lambda at, length, old=old: old[at : at + length])
        except Refused:
            continue
        assert len(made) == 100


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_damaged_base_or_patch_of_members_is_refused_or_keeps_its_length(seed: int) -> None:
    chance = random.Random(seed)
    manual = text(800, 3)
    old, new = pair(b"one " + manual, b"other " + manual)
    data = bytearray(encode_members([(memoryview(old), memoryview(new))]))
    base = bytearray(old)
    chance.choice([data, base])[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    try:
        made = open_deflated(bytes(data), [(0, len(new))], lambda at, length: bytes(base[at : at + length]))
    except Refused:
        return
    assert len(made) == len(new)


def test_matches_that_point_nowhere_are_refused() -> None:
    stream = Deflated(np.array([1, 5]), np.array([65, 3000]), (Block(1, 2),))
    with pytest.raises(Refused):
        trailer(write_deflate(stream))
    assert len(trailer(body(b"x"))) == TRAILER_BYTES
