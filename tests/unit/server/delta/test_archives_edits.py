"""Bytes of the base with few changes come out exactly, and what repeats among the changes costs little."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.delta.edits import CHUNK_BYTES, Edits, open_edits
from protocol.errors import Refused
from server.delta.numbers import NumberWriter


def coded(old: bytes, new: bytes) -> bytes:
    writer = NumberWriter()
    edits = Edits(writer)
    for at in range(0, len(old), CHUNK_BYTES):
        chunk = slice(at, at + CHUNK_BYTES)
        edits.code(np.frombuffer(old[chunk], np.uint8), np.frombuffer(new[chunk], np.uint8))
    return writer.finish()


def pieces(data: bytes, length: int) -> list[bytes]:
    return [data[at : at + length] for at in range(0, len(data), length)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20_000), st.integers(0, 300), st.integers(0, 2**32), st.integers(1, 9000))
def test_any_changes_come_out_however_the_base_is_read(length: int, changes: int, seed: int, window: int) -> None:
    chance = random.Random(seed)
    old = bytes(chance.choices(b"rde\0abc", k=length))
    new = bytearray(old)
    for _ in range(changes):
        new[chance.randrange(length)] = chance.randrange(256)
    data = coded(old, bytes(new))
    assert open_edits(data, pieces(old, window)) == new


def test_references_that_all_grew_by_one_cost_less_than_a_quarter_byte_each() -> None:
    chance = random.Random(1)
    old = bytearray(chance.randbytes(40_000))
    places = range(100, 40_000, 40)
    for place in places:
        old[place - 1 : place + 1] = b"r%c" % chance.randrange(100)
    new = bytearray(old)
    for place in places:
        new[place] += old[place] > 20
    assert len(coded(bytes(old), bytes(new))) < len(places) / 4 + 60


def test_changes_behind_the_end_of_the_base_are_refused() -> None:
    old = bytes(2000)
    data = coded(old, old[:-1] + b"\1")
    with pytest.raises(Refused):
        open_edits(data, [old[:1000]])
