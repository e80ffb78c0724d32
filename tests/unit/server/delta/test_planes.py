"""Bytes that are coded by their differences: numbers of types without a kind of their own, and blocks of them."""

import lzma
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.delta.addresses import Places
from protocol.delta.patch import read_group_header
from protocol.delta.planes import open_planes, to_planes
from protocol.delta.streams import I8_DIFFERENCE, PLANES, open_stream
from protocol.errors import Refused
from server.delta.archives.contents import Contents
from server.delta.groups import cut_groups, encode_group
from server.delta.lzma_stream import compress_lzma
from server.delta.matching import MatchLimits
from server.delta.models import model_pieces
from server.delta.pieces import How, Piece
from server.delta.planes import PROPERTIES, encode_planes
from tests.unit.server.delta.archive_files import applied
from tests.unit.server.delta.tensor_files import npy


@pytest.fixture
def chance() -> np.random.Generator:
    """Anew for each test: none draws on from where another stopped."""
    return np.random.default_rng(12)


class References:
    """Bytes of a base, in pieces."""

    def __init__(self, data: bytes, size: int = 7) -> None:
        self._data, self._size = data, size

    def read(self) -> Iterator[bytes]:
        for at in range(0, len(self._data), self._size):
            yield self._data[at : at + self._size]

    def places(self) -> Places:
        raise AssertionError("not asked for")

    def at(self, offset: int, length: int) -> bytes:
        raise AssertionError("not asked for")


def kinds(group: bytes) -> list[int]:
    header = read_group_header(group)
    assert header is not None
    return [stream.kind for stream in header.streams]


def made(pieces: list[Piece], old: bytes, new: bytes) -> list[bytes]:
    groups = [encode_group(group, memoryview(old), memoryview(new)) for group in cut_groups(pieces)]
    assert applied(old, groups) == new
    return groups


@given(st.binary(max_size=300), st.integers(0, 2**32), st.integers(1, 255), st.integers(1, 40))
def test_any_bytes_come_out_whatever_the_stride(old: bytes, seed: int, stride: int, cut: int) -> None:
    new = np.random.default_rng(seed).integers(0, 256, len(old), np.uint8)
    planes = to_planes(new - np.frombuffer(old, np.uint8), stride)
    assert open_planes(stride, planes, References(old, cut).read()) == new.tobytes()


def test_doubles_that_were_trained_on_take_little_more_than_what_changed_of_them(chance: np.random.Generator) -> None:
    old = chance.normal(size=40_000).astype(np.float32)
    new = old + (chance.normal(size=old.size) * 1e-3).astype(np.float32)
    before, after = npy(old.astype(np.float64)), npy(new.astype(np.float64))
    pieces = model_pieces(
        memoryview(before), memoryview(after), slice(0, len(before)), slice(0, len(after)), MatchLimits
    )
    assert pieces is not None
    groups = made(pieces, before, after)
    assert PLANES in kinds(groups[0])
    alone = len(lzma.compress(after, preset=9))
    assert sum(map(len, groups)) < 0.8 * alone


def test_blocks_of_quantised_numbers_are_coded_by_their_stride(chance: np.random.Generator) -> None:
    """As GGUF's q4_0: a scale of 16 bits and 32 numbers of 4 bits; one number in ten of a few blocks moved by one."""
    old = chance.integers(0, 256, (6000, 18), np.uint8)
    new = old.copy()
    new[:, 0] += chance.integers(0, 40, len(new), np.uint8)
    new[:, 5] ^= (chance.random(len(new)) < 0.2).astype(np.uint8)
    groups = made([Piece(How.I8_DIFFERENCE, old.size, 0, 18)], old.tobytes(), new.tobytes())
    assert kinds(groups[0]) == [PLANES]
    assert encode_planes(old.tobytes(), new.tobytes())[0] == 18


def test_plain_integers_are_coded_as_such(chance: np.random.Generator) -> None:
    old = chance.normal(scale=40, size=60_000).astype(np.int8)
    moved = 2 * chance.normal(size=(200, 3)) @ chance.normal(size=(3, 300))  # of rank 3: a fifth of what planes take
    new = old + np.rint(moved).astype(np.int8).ravel()
    groups = made([Piece(How.I8_DIFFERENCE, old.size, 0, 300)], old.tobytes(), new.tobytes())
    assert kinds(groups[0]) == [I8_DIFFERENCE]


def test_a_long_likeness_that_differs_in_many_bytes_is_told_by_differences(chance: np.random.Generator) -> None:
    values = np.cumsum(chance.integers(-40, 40, 40_000)).astype(np.int16)
    moved = values + chance.integers(-1, 2, values.size).astype(np.int16) * (chance.random(values.size) < 0.3)
    old, new = b"\0head" + values.tobytes(), b"\0head" + moved.astype(np.int16).tobytes()
    contents = Contents(memoryview(old), memoryview(new), MatchLimits)
    pieces = contents.pieces(slice(0, len(old)), slice(0, len(new)))
    assert any(piece.how is How.BYTE_DIFFERENCE for piece in pieces)
    assert sum(map(len, made(pieces, old, new))) < 0.4 * len(lzma.compress(new, preset=9))


def test_bursts_of_noise_take_the_properties_that_suit_them(chance: np.random.Generator) -> None:
    old = chance.integers(0, 256, 60_000, np.uint8)
    new = np.where(np.repeat(chance.random(old.size // 20) < 0.5, 20), chance.integers(0, 256, old.size, np.uint8), old)
    differences = to_planes(new.astype(np.uint8) - old, 1)
    coded = encode_planes(old.tobytes(), new.astype(np.uint8).tobytes())
    assert len(coded) - 1 < len(compress_lzma(differences, *PROPERTIES))
    assert open_stream(PLANES, memoryview(coded), old.size, References(old.tobytes())) == new.astype(np.uint8).tobytes()


def test_streams_that_lie_about_stride_or_length_are_refused() -> None:
    old, new = bytes(range(100)), bytes(range(1, 101))
    coded = encode_planes(old, new)
    assert open_stream(PLANES, memoryview(coded), 100, References(old)) == new
    for damaged, length, base in (
        (b"", 100, old),
        (coded[:1], 100, old),
        (b"\0" + coded[1:], 100, old),
        (coded, 100, old[:-1]),
        (coded, 99, old),
        (coded, 101, old + b"1"),
    ):
        with pytest.raises(Refused):
            open_stream(PLANES, memoryview(damaged), length, References(base))
