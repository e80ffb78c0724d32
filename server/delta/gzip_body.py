"""Explains a deflate stream by what zlib would choose: which of its settings, which tokens differ, where blocks end."""

from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np

from protocol.delta.base import Base
from protocol.delta.deflate_read import DeflateReader, Ints, Part
from protocol.delta.envelope import RECIPE_BYTES
from protocol.delta.recompress import (
    BLOCK_SHARE,
    LEAST_BLOCKS,
    LEAST_TOLD,
    MOST_EDIT_TOKENS,
    PIECE_BYTES,
    TOLD_SHARE,
    BlockCoding,
    Edit,
    Recipe,
    TokenQueue,
    Tokens,
    code_edits,
    expected_tokens,
    tokens_of_zlib,
)
from protocol.errors import Reason, Refused
from server.delta.numbers import NumberWriter

TRIED_TOKENS: Final = 1 << 15  # of the stream, to choose zlib's settings
ALIKE: Final = 0.95  # of them that are zlib's; with fewer it is another algorithm
COMPARED_TOKENS: Final = 1 << 15  # at once
FIRST_LOOK: Final = 32  # tokens behind a difference, four times as many at each further look
_SETTINGS: Final = [(level, 8) for level in (6, 9, 1, 2, 3, 4, 5, 7, 8)]
_BLOCKS: Final = ((32767, True), (32767, False), (16383, False))  # of GNU gzip, and of zlib, which pigz takes


def find_body(file: BinaryIO, offset: int, content: Base) -> Recipe | None:
    """How to make a deflate stream from what it holds, or None when that would take much.

    Args:
        file: It begins at `offset`; a gzip trailer and nothing else follows.
        offset: In bytes.
        content: What it holds.
    """
    try:
        settings = _find_settings(file, offset, content)
        if settings is None:
            return None
        blocks = _Blocks(settings)
        wanted = TokenQueue(blocks.watch(_parts(file, offset)))
        edits = _find_edits(wanted, TokenQueue(tokens_of_zlib(content, *settings)), content.length_bytes)
    except Refused:
        return None
    if edits is None:
        return None
    numbers = NumberWriter()
    code_edits(numbers, edits)
    coded = numbers.finish()
    recipe = blocks.recipe(coded)
    return recipe if max(len(recipe.edits), len(recipe.blocks)) <= RECIPE_BYTES else None


def _parts(file: BinaryIO, offset: int) -> Iterator[Part]:
    file.seek(offset)
    return DeflateReader(iter(lambda: file.read(PIECE_BYTES), b"")).parts()


def _find_settings(file: BinaryIO, offset: int, content: Base) -> tuple[int, int] | None:
    """Level and memory whose tokens are most like those of the stream."""
    wanted, _ = TokenQueue((part.lengths, part.values) for part in _parts(file, offset)).ahead(TRIED_TOKENS)
    best, most = None, ALIKE
    for settings in _SETTINGS:
        found, _ = TokenQueue(tokens_of_zlib(content, *settings)).ahead(wanted.size)
        ends = np.cumsum(wanted[:TRIED_TOKENS], dtype=np.int64), np.cumsum(found[:TRIED_TOKENS], dtype=np.int64)
        alike = np.intersect1d(*ends, assume_unique=True).size / max(1, ends[0].size)
        if alike > most or not wanted.size:
            best, most = settings, alike
        if alike == 1:
            break
    return best


class _Blocks:
    """What is to be said of blocks, for each way of closing them.

    Args:
        settings: Level and memory.
    """

    def __init__(self, settings: tuple[int, int]) -> None:
        self._ways = [Recipe(*settings, most, guesses, b"", b"") for most, guesses in _BLOCKS]
        self._found: list[tuple[int, int]] = []  # tokens and kind of each
        self._expected: list[list[int]] = [[] for _ in self._ways]

    def watch(self, parts: Iterator[Part]) -> Iterator[Tokens]:
        """Passes tokens on, and notes how they are divided."""
        lengths: list[Ints] = []
        values: list[Ints] = []
        text = 0
        for part in parts:
            lengths.append(part.lengths)
            text += int(part.lengths.sum())
            values.append(part.values)
            if part.ends:
                self._add(part.kind, np.concatenate(lengths), np.concatenate(values))
                lengths, values = [], []
            if len(self._found) > LEAST_BLOCKS + text // BLOCK_SHARE:
                raise Refused(Reason.LIMIT, "compressed data of too many blocks")
            yield part.lengths, part.values

    def _add(self, kind: int, lengths: Ints, values: Ints) -> None:
        self._found.append((lengths.size, kind))
        for way, expected in zip(self._ways, self._expected, strict=True):
            expected.append(expected_tokens(TokenQueue([(lengths, values)]), way))

    def recipe(self, edits: bytes) -> Recipe:
        """The way that takes the fewest bytes."""
        made = [way._replace(edits=edits, blocks=self._coded(way, number)) for number, way in enumerate(self._ways)]
        return min(made, key=lambda recipe: len(recipe.blocks))

    def _coded(self, way: Recipe, number: int) -> bytes:
        numbers = NumberWriter()
        coding = BlockCoding()
        tokens = sum(count for count, _ in self._found)
        for block, ((count, kind), expected) in enumerate(zip(self._found, self._expected[number], strict=True)):
            tokens -= count
            told = not (expected == count or (expected == -1 and not tokens))
            coding.code(numbers, told=told, tokens=count, kind=kind)
            if not tokens:
                coding.code_more(numbers, more=block < len(self._found) - 1)
        return numbers.finish()


def _find_edits(wanted: TokenQueue, zlib: TokenQueue, text_bytes: int) -> list[Edit] | None:
    """Which of zlib's tokens are exchanged, or None when they are too many."""
    edits: list[Edit] = []
    left = LEAST_TOLD + text_bytes // TOLD_SHARE
    kept = 0
    while True:
        lengths, values = wanted.ahead(COMPARED_TOKENS)
        guessed, chosen = zlib.ahead(COMPARED_TOKENS)
        count = min(lengths.size, guessed.size)
        if not count:
            return edits if lengths.size == guessed.size else None
        other = (lengths[:count] != guessed[:count]) | (values[:count] != chosen[:count])
        same = int(other.argmax()) if other.any() else count
        wanted.take(same)
        zlib.take(same)
        kept += same
        if same == count:
            continue
        told, gone = _meeting(wanted.ahead(COMPARED_TOKENS)[0], zlib.ahead(COMPARED_TOKENS)[0])
        left -= 1 + told
        if not 0 < told <= MOST_EDIT_TOKENS or left < 0:
            return None
        edits.append(Edit(kept, *wanted.take(told)))
        zlib.take(gone)
        kept = 0


def _meeting(one: Ints, other: Ints) -> tuple[int, int]:
    """After how many tokens of both the same text is told for the first time; 0 when that is far away."""
    look = FIRST_LOOK
    while True:
        ends = np.cumsum(one[:look], dtype=np.int64), np.cumsum(other[:look], dtype=np.int64)
        _, first, second = np.intersect1d(*ends, assume_unique=True, return_indices=True)
        if first.size:
            return int(first[0]) + 1, int(second[0]) + 1
        if look >= max(one.size, other.size):
            return 0, 0
        look *= 4
