"""Whichever way the pieces of a group are put, they give the same bytes; for tiny changes a short one is found."""

import json
import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.delta.patch import MAGIC
from server.delta import few
from server.delta.checked import gives
from server.delta.front import find_pieces
from server.delta.groups import GroupPlan, cut_groups, encode_group, encode_pieces
from server.delta.pieces import How, Piece
from server.delta.unchanged import as_integers, unchanged_copied

HEAD_BYTES = len(MAGIC) + 8


def all_ways(plan: GroupPlan, old: memoryview, new: memoryview) -> Iterator[list[Piece]]:
    start = plan.output_offset
    filled = few.filled(plan.pieces, start, new)
    cut = unchanged_copied(filled, start, old, new)
    for way in (filled, few.sparse(filled, start, old, new), cut, as_integers(cut, start, old, new)):
        beside = few.alongside(way, start, old, new)
        for put in (
            few.told_again(way, 2),
            way,
            beside,
            few.spelled(way, start, old, new),
            few.spelled(beside, start, old, new),
        ):
            yield put
            for least in (*few.LEAST_COPIES, *few.LEAST_JOINED):
                yield few.tidied(few.absorbed(put, least), start, new)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_every_way_to_put_the_pieces_gives_the_same_bytes(seed: int, changes: int) -> None:
    chance = random.Random(seed)
    old = bytearray(chance.choice((b"abc", b"layer_%d " % seed, chance.randbytes(300))) * 40)
    new = bytearray(old)
    for _ in range(changes):
        at = chance.randrange(len(new))
        new[at : at + chance.randrange(9)] = chance.choice((b"", bytes(90), chance.randbytes(chance.randrange(30))))
    before, after = memoryview(bytes(old)), memoryview(bytes(new))
    for plan in cut_groups(find_pieces(before, after, None)):
        for pieces in all_ways(plan, before, after):
            assert gives(encode_pieces(plan, pieces, before, after, frozenset()), plan, before, after)
        assert gives(encode_group(plan, before, after), plan, before, after)


def patch_bytes(old: bytes, new: bytes) -> int:
    before, after = memoryview(old), memoryview(new)
    return HEAD_BYTES + sum(
        len(encode_group(plan, before, after)) for plan in cut_groups(find_pieces(before, after, None))
    )


NOISE = random.Random(5).randbytes(200_000)
FLOATS = np.random.default_rng(5).normal(size=50_000).astype(np.float32).tobytes()
SETTINGS = {f"sensor-{number}": {"rate": number * 7 % 90, "gain": number / 8, "on": True} for number in range(60)}


def safetensors(version: str, weights: bytes) -> bytes:
    tensor = {"dtype": "F32", "shape": [250, 200], "data_offsets": [0, len(weights)]}
    head = json.dumps({"__metadata__": {"version": version}, "w": tensor}).encode()
    return struct.pack("<Q", len(head)) + head + weights


TINY = {
    "nothing": (NOISE, NOISE, 20),
    "a byte": (NOISE, NOISE[:777] + b"!!" + NOISE[779:], 31),
    "a byte more": (NOISE, NOISE + b"!", 25),
    "a byte less": (NOISE, NOISE[:777] + NOISE[778:], 25),
    "a hundred bytes, evenly": (NOISE, bytes(byte ^ (at % 2000 == 7) for at, byte in enumerate(NOISE)), 90),
    "a block that moved": (NOISE, NOISE[:999] + NOISE[5000:9000] + NOISE[999:5000] + NOISE[9000:], 40),
    "a longer hole": (bytes(100_000), bytes(150_000), 22),
    "a setting": (
        json.dumps(SETTINGS, indent=1).encode(),
        json.dumps(SETTINGS | {"sensor-7": {"rate": 8, "gain": 0.5, "on": False}}, indent=1).encode(),
        42,
    ),
    "a version": (safetensors("1.0.0", FLOATS), safetensors("1.0.1", FLOATS), 26),
    "a weight": (safetensors("1", FLOATS), safetensors("1", FLOATS[:4000] + b"abcd" + FLOATS[4004:]), 34),
    "a new file": (b"", b"version: 1.2.3\nname: robot\n", 40),
    "no file": (NOISE, b"", 12),
}


@pytest.mark.parametrize(("old", "new", "most"), TINY.values(), ids=TINY)
def test_a_tiny_change_makes_a_tiny_patch(old: bytes, new: bytes, most: int) -> None:
    assert patch_bytes(old, new) <= most


def test_a_piece_from_elsewhere_is_read_alongside_when_it_is_nearly_the_same() -> None:
    old = NOISE[:1000]
    new = old[:400] + b"++" + old[400:450] + b"?" + old[451:]
    pieces = [Piece(How.COPY, 400, 0), Piece(How.BINARY, 2), Piece(How.EDITS, 60, 800), Piece(How.COPY, 540, 460)]
    assert few.alongside(pieces, 0, memoryview(old), memoryview(new))[2] == Piece(How.EDITS, 60, 400)


def test_short_copies_are_not_cut_out_of_new_text_that_repeats_itself() -> None:
    chance = random.Random(9)
    words = [b"'layers.%d.weight'" % number for number in range(80)]
    old = b"".join(chance.randbytes(90) + word for word in chance.sample(words, len(words)))
    nodes = [b"node { input: %s stack: 'model.py', line %d }" % (word, number) for number, word in enumerate(words)]
    start, new = chance.randbytes(3000), b"".join(nodes)
    pieces = [Piece(How.COPY, len(start), 0)]
    for word, node in zip(words, nodes, strict=True):
        before = node.index(word)
        pieces += [
            Piece(How.TEXT, before),
            Piece(How.COPY, len(word), len(start) + old.index(word)),
            Piece(How.TEXT, len(node) - before - len(word)),
        ]
    base, result = memoryview(start + old), memoryview(start + new)
    plan = GroupPlan(0)
    for piece in pieces:
        plan.add(piece)
    coded = encode_group(plan, base, result)
    assert gives(coded, plan, base, result)
    assert len(coded) < 0.7 * len(encode_pieces(plan, pieces, base, result, frozenset()))


def test_what_is_read_again_and_again_among_new_text_is_told_once() -> None:
    chance = random.Random(11)
    parts = [chance.randbytes(20) for _ in range(3)]
    start, old = chance.randbytes(2000), b"".join(part + chance.randbytes(100) for part in parts)
    pieces, new = [], b""
    for number in range(40):
        kept = chance.randbytes(1) * 2 + b"%03d" % (number * 37 % 101)
        pieces += [Piece(How.COPY, 50, 50 * number), Piece(How.TEXT, 16 + len(kept))]
        new += start[50 * number : 50 * number + 50] + kept + b"shape_inference:"
        for part in chance.sample(parts, 3):
            pieces.append(Piece(How.COPY, len(part), len(start) + old.index(part)))
            new += part
    base, result = memoryview(start + old), memoryview(new)
    plan = GroupPlan(0)
    for piece in pieces:
        plan.add(piece)
    coded = encode_group(plan, base, result)
    assert gives(coded, plan, base, result)
    told = few.told_again(pieces, 4)
    assert sum(piece.how is How.COPY for piece in told) == 40
    for inline in (frozenset(), few.NEW):
        assert len(coded) <= len(encode_pieces(plan, few.tidied(told, 0, result), base, result, inline))
