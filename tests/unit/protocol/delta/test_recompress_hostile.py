"""Recipes for compressed data that lie: whatever they say, little work is done and nothing else than refusing."""

import io
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.delta.deflate_read import DYNAMIC, FIXED, STORED, DeflateReader
from protocol.delta.envelope import RECIPE_BYTES, Envelope, GzipRecipe, read_envelope, write_envelope
from protocol.delta.recompress import (
    LEAST_BLOCKS,
    LEAST_TOLD,
    MOST_BLOCK_TOKENS,
    TOLD_SHARE,
    BlockCoding,
    Edit,
    Recipe,
    TokenQueue,
    code_edits,
    expected_tokens,
    recompress,
)
from protocol.errors import Reason, Refused
from server.delta.numbers import NumberWriter

TEXT = b"the quick brown fox jumps over the lazy dog, " * 200
SIMPLE = Recipe(6, 8, 16383, guesses=False, edits=b"", blocks=b"")


class Memory:
    """Bytes as `protocol.delta.base.Base`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length_bytes = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def made(recipe: Recipe, text: bytes = TEXT) -> bytes:
    return b"".join(recompress(recipe, Memory(text)))


def blocks(*said: tuple[bool, int, int]) -> bytes:
    numbers = NumberWriter()
    coding = BlockCoding()
    for told, tokens, kind in said:
        coding.code(numbers, told=told, tokens=tokens, kind=kind)
    return numbers.finish()


def edits(*given: Edit) -> bytes:
    numbers = NumberWriter()
    code_edits(numbers, list(given))
    return numbers.finish()


def literals(count: int, kept: int = 0) -> Edit:
    return Edit(kept, np.ones(count, np.uint16), np.full(count, 120, np.uint16))


def refusal(recipe: Recipe, text: bytes = TEXT) -> Reason:
    with pytest.raises(Refused) as refused:
        made(recipe, text)
    return refused.value.reason


def test_countless_blocks_are_refused_at_once() -> None:
    said = blocks(*[(True, 0, DYNAMIC)] * (2 * LEAST_BLOCKS))
    assert refusal(SIMPLE._replace(blocks=said)) is Reason.LIMIT
    assert refusal(SIMPLE._replace(blocks=blocks(*[(True, 1, FIXED)] * 4000)), bytes(range(256)) * 8) is Reason.LIMIT


def test_a_block_longer_than_the_text_or_the_bound_is_refused() -> None:
    assert refusal(SIMPLE._replace(blocks=blocks((True, MOST_BLOCK_TOKENS, DYNAMIC)))) is Reason.LENGTH
    numbers = NumberWriter()
    with pytest.raises(Refused):
        BlockCoding().code(numbers, told=True, tokens=MOST_BLOCK_TOKENS + 1, kind=DYNAMIC)
    assert refusal(SIMPLE._replace(blocks=numbers.finish())) is Reason.LIMIT


def test_a_fourth_kind_of_block_and_too_long_a_stored_one_are_refused() -> None:
    numbers = NumberWriter()
    with pytest.raises(Refused):
        BlockCoding().code(numbers, kind=3)
    assert refusal(SIMPLE._replace(blocks=numbers.finish())) is Reason.LIMIT
    assert refusal(SIMPLE._replace(blocks=blocks((False, 0, STORED))), bytes(100_000)) is Reason.LIMIT


def test_more_told_tokens_than_the_text_is_worth_are_refused() -> None:
    text = bytes(100_000)  # matches of 258 bytes
    most = LEAST_TOLD + len(text) // TOLD_SHARE
    said = edits(literals(258, kept=2), *[literals(258)] * (most // 258))
    assert refusal(SIMPLE._replace(edits=said, blocks=blocks((False, 0, FIXED))), text) is Reason.LIMIT


def test_an_edit_behind_the_end_or_within_a_token_is_refused() -> None:
    said = blocks((False, 0, FIXED))
    assert refusal(SIMPLE._replace(edits=edits(literals(1, kept=10**6)), blocks=said)) is Reason.LENGTH
    assert refusal(SIMPLE._replace(edits=edits(literals(3, kept=2)), blocks=said), b"ab" * 50) is Reason.METADATA
    assert refusal(SIMPLE._replace(edits=edits(literals(9)), blocks=said), b"abc") is Reason.METADATA


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 1 << 18), st.booleans(), st.integers(1, 9))
def test_noise_is_refused_or_gives_bytes(told: bytes, divided: bytes, most: int, guesses: bool, level: int) -> None:
    started = time.process_time()
    with suppress(Refused):
        made(Recipe(level, 8, most, guesses, told, divided))
    assert time.process_time() - started < 10


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_noise_read_as_compressed_data_is_refused_or_read(data: bytes) -> None:
    try:
        for part in DeflateReader([data]).parts():
            assert part.lengths.size == part.values.size
            assert part.lengths.size <= 8 * len(data)
    except Refused:
        pass


def enveloped(recipe: Recipe) -> bytes:
    return write_envelope(Envelope(b"a" * 4, b"b" * 4, True, GzipRecipe(b"header", recipe, plain=False)))


def test_an_envelope_with_a_recipe_is_read_again() -> None:
    recipe = Recipe(9, 9, MOST_BLOCK_TOKENS, guesses=True, edits=b"edits", blocks=b"blocks")
    data = enveloped(recipe)
    envelope = read_envelope(io.BytesIO(data + b"behind"))
    assert envelope is not None
    assert envelope.recipe == GzipRecipe(b"header", recipe, plain=False)
    assert (envelope.length_bytes, envelope.base_prefix, envelope.output_prefix) == (len(data), b"a" * 4, b"b" * 4)


@pytest.mark.parametrize(
    "recipe",
    [
        SIMPLE._replace(most=MOST_BLOCK_TOKENS + 1),
        SIMPLE._replace(level=0),
        SIMPLE._replace(level=10),
        SIMPLE._replace(edits=bytes(RECIPE_BYTES + 1)),
        SIMPLE._replace(blocks=bytes(RECIPE_BYTES + 1)),
    ],
)
def test_an_envelope_whose_recipe_breaks_a_bound_is_refused(recipe: Recipe) -> None:
    with pytest.raises(Refused):
        read_envelope(io.BytesIO(enveloped(recipe)))


@pytest.mark.parametrize(("level", "more", "closes"), [(6, 0, 4096), (6, -1, -1), (3, 1, 4096), (3, 0, -1), (2, 9, -1)])
def test_blocks_close_early_where_gnu_gzip_closes_them(level: int, more: int, closes: int) -> None:
    """2047 matches and 2049 literals take 5375 bytes as it reckons: they must stand for 10752 of text, in front."""
    lengths = np.concatenate((np.full(515 + more, 5), np.full(1532 - more, 4), np.ones(2049 + 100))).astype(np.uint16)
    tokens = TokenQueue([(lengths, np.ones_like(lengths))])
    assert expected_tokens(tokens, SIMPLE._replace(level=level, most=32767, guesses=True)) == closes
