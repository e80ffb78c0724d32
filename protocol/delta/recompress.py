"""Compresses as another program did: zlib chooses the tokens, a recipe says what that program did otherwise.

GNU gzip, pigz and others look for matches as zlib does at the same level, but close their blocks elsewhere, and near
some borders choose another match. So zlib's tokens are read out of what it writes, a few of them exchanged, and all
written again in blocks as the recipe says. Forward only, whatever the length. Where another zlib chooses otherwise than
the one with which the recipe was made, other bytes come out, which the caller sees by their hash.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from protocol.delta.base import Base
from protocol.delta.deflate_read import DISTANCE_EXTRA, STORED, DeflateReader, Ints
from protocol.delta.deflate_write import DISTANCE_CODES, STORED_BYTES, BlockWriter
from protocol.delta.deflated import code_token
from protocol.delta.numbers import NumberReader, Numbers
from protocol.errors import Reason, Refused

PIECE_BYTES: Final = 1 << 16  # zlib is fed with
MOST_BLOCK_TOKENS: Final = 1 << 18  # bounds the memory
LEAST_TOLD: Final = 1 << 10  # tokens, and one for each TOLD_SHARE bytes: with more it pays to send the bytes
TOLD_SHARE: Final = 64
MOST_EDIT_TOKENS: Final = 1 << 14
LEAST_BLOCKS: Final = 64  # and one for each BLOCK_SHARE bytes: their codes are slow to make
BLOCK_SHARE: Final = 512
LOOK_TOKENS: Final = 1 << 12  # GNU gzip looks so often whether a block should close
LITERAL_BITS: Final = 8  # what it takes a token for then
DISTANCE_BITS: Final = 5
LAST_FAST_LEVEL: Final = 3
GUESSING_LEVEL: Final = 3  # from it on GNU gzip looks at all

# Contexts beside those of `deflated.code_token`: symbols below, numbers 256 times higher.
_TELLS, _KIND, _MORE = 1280, 1284, 1300
_EDITS, _KEPT, _TOLD, _TOKENS = range(264, 268)

Tokens = tuple[Ints, Ints]
"""Lengths and values, as in `deflate_read.Part`."""


class Recipe(NamedTuple):
    """How a deflate stream is made of what it holds.

    Args:
        level: Of zlib, 1 to 9.
        memory: zlib's `memLevel`, 8 or 9.
        most: Tokens of a block, when nothing else closes it.
        guesses: Whether blocks close as those of GNU gzip.
        edits: Coded: the tokens that are not zlib's.
        blocks: Coded: kinds, and tokens where they are others than expected.
    """

    level: int
    memory: int
    most: int
    guesses: bool
    edits: bytes
    blocks: bytes


class Edit(NamedTuple):
    """Tokens that take the place of others.

    Args:
        kept: So many of zlib's stay before.
        lengths: Of the tokens that come: those of zlib for the same text go.
        values: Likewise.
    """

    kept: int
    lengths: Ints
    values: Ints


class TokenQueue:
    """Tokens that arrive in parts and are taken in others.

    Args:
        parts: In order.
    """

    def __init__(self, parts: Iterable[Tokens]) -> None:
        self._parts = iter(parts)
        self._lengths: Ints = np.zeros(0, np.uint16)
        self._values: Ints = self._lengths

    def ahead(self, count: int) -> Tokens:
        """The next tokens: at least `count`, or all there are."""
        if self._lengths.size < count:
            held, size = [(self._lengths, self._values)], self._lengths.size
            while size < count:
                part = next(self._parts, None)
                if part is None:
                    break
                held.append(part)
                size += part[0].size
            if len(held) > 1:
                self._lengths = np.concatenate([lengths for lengths, _ in held])
                self._values = np.concatenate([values for _, values in held])
        return self._lengths, self._values

    def take(self, count: int) -> Tokens:
        """The next tokens, which go: `count`, or all there are."""
        lengths, values = self.ahead(count)
        self._lengths, self._values = lengths[count:], values[count:]
        return lengths[:count], values[:count]


def tokens_of_zlib(content: Base, level: int, memory: int) -> Iterator[Tokens]:
    """What zlib chooses. It writes with fixed codes, which are quick to read and do not change its choice.

    Where it stores bytes because they hardly shrink, what it chose is lost: they are literals.
    """
    for part in DeflateReader(_pieces(content, level, memory)).parts():
        yield part.lengths, part.values


def _pieces(content: Base, level: int, memory: int) -> Iterator[bytes]:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, memory, zlib.Z_FIXED)
    for at in range(0, content.length_bytes, PIECE_BYTES):
        yield packer.compress(content.read(at, min(PIECE_BYTES, content.length_bytes - at)))
    yield packer.flush()


def recompress(recipe: Recipe, content: Base) -> Iterator[bytes]:
    """The deflate stream, in pieces.

    Args:
        recipe: How it is made.
        content: What it holds.

    Raises:
        Refused: `LIMIT`, `LENGTH`, `METADATA`: the recipe says what cannot be done.
    """
    tokens = TokenQueue(_edited(tokens_of_zlib(content, recipe.level, recipe.memory), recipe.edits, content))
    numbers = NumberReader(recipe.blocks)
    writer = BlockWriter()
    coding = BlockCoding()
    at = count = 0
    last = False
    while not last:
        told, size, kind = coding.code(numbers)
        if not told:
            size = expected_tokens(tokens, recipe)
            if size < 0:
                size = tokens.ahead(1)[0].size
        lengths, values = tokens.take(size)
        if lengths.size < size:
            raise Refused(Reason.LENGTH, "a patch makes a block of compressed data with more tokens than there are")
        length = int(lengths.sum())
        last = not tokens.ahead(1)[0].size and not coding.code_more(numbers)
        if kind != STORED:
            writer.write(kind, lengths, values, last=last)
        elif length <= STORED_BYTES:
            writer.store(content.read(at, length), last=last)
        else:
            raise Refused(Reason.LIMIT, "a patch stores too many bytes in one block of compressed data")
        at += length
        count += 1
        if count > LEAST_BLOCKS + at // BLOCK_SHARE:
            raise Refused(Reason.LIMIT, "a patch makes compressed data of too many blocks")
        yield writer.take()
    yield writer.finish()


class BlockCoding:
    """Codes what is said of blocks: each in the context of the last one."""

    def __init__(self) -> None:
        self._told = self._kind = 0

    def code(self, numbers: Numbers, *, told: bool = False, tokens: int = 0, kind: int = 0) -> tuple[bool, int, int]:
        """Whether its tokens are told because they are not as expected, how many (when told), and its kind."""
        self._told = numbers.symbol(_TELLS + self._told, 1, int(told))
        tokens = numbers.unsigned(_TOKENS, tokens) if self._told else 0
        self._kind = numbers.symbol(_KIND + 2 * self._kind + self._told, 2, kind)
        if tokens > MOST_BLOCK_TOKENS or self._kind == 3:  # the format has no fourth kind
            raise Refused(Reason.LIMIT, "a patch makes compressed data with a block that cannot be")
        return bool(self._told), tokens, self._kind

    def code_more(self, numbers: Numbers, *, more: bool = False) -> bool:
        """Whether another block follows although there are no tokens left."""
        return bool(numbers.symbol(_MORE, 1, int(more)))


def expected_tokens(tokens: TokenQueue, recipe: Recipe) -> int:
    """How many of the next tokens a block has, as far as one can tell from them; -1: they end before it does.

    Args:
        tokens: The next ones.
        recipe: Says what closes a block. All but level, most and guesses are ignored.
    """
    if recipe.guesses and recipe.level >= GUESSING_LEVEL:
        bits = size = matches = text = 0
        for count in range(LOOK_TOKENS, recipe.most, LOOK_TOKENS):
            lengths, values = tokens.ahead(count)
            if lengths.size < count:
                return -1
            some = slice(size, count)
            match = lengths[some] > 1
            codes = DISTANCE_CODES[values[some][match]]
            matches += codes.size
            bits += int(DISTANCE_EXTRA[codes].sum()) + DISTANCE_BITS * codes.size
            # It looks before it goes on behind the last one; lazily, it is a byte ahead.
            reached = text + int(lengths[size : count - 1].sum()) + int(recipe.level > LAST_FAST_LEVEL)
            if matches < count // 2 and (bits + LITERAL_BITS * count) >> 3 < reached // 2:
                return count
            text += int(lengths[some].sum())
            size = count
    return recipe.most if tokens.ahead(recipe.most)[0].size >= recipe.most else -1


def _edited(parts: Iterable[Tokens], coded: bytes, content: Base) -> Iterator[Tokens]:
    """zlib's tokens with those that are exchanged."""
    queue = TokenQueue(parts)
    numbers = NumberReader(coded)
    left = LEAST_TOLD + content.length_bytes // TOLD_SHARE
    for _ in range(numbers.unsigned(_EDITS)):
        edit = code_edit(numbers)
        left -= 1 + edit.lengths.size
        if left < 0:
            raise Refused(Reason.LIMIT, "a patch tells too much of compressed data")
        yield from _taken(queue, edit.kept)
        yield edit.lengths, edit.values
        _skip(queue, int(edit.lengths.sum()))
    while True:
        part = queue.take(queue.ahead(1)[0].size)
        if not part[0].size:
            return
        yield part


def _taken(queue: TokenQueue, count: int) -> Iterator[Tokens]:
    while count:
        part = queue.take(min(count, max(1, queue.ahead(1)[0].size)))
        if not part[0].size:
            raise Refused(Reason.LENGTH, "a patch keeps more tokens of compressed data than there are")
        count -= part[0].size
        yield part


def _skip(queue: TokenQueue, text: int) -> None:
    """Goes on behind so much text, where a token must begin."""
    while text:
        ends = np.cumsum(queue.ahead(1)[0], dtype=np.int64)
        count = int(ends.searchsorted(text, "right"))
        queue.take(max(count, 1))
        if not ends.size or ends[max(count, 1) - 1] > text:
            raise Refused(Reason.METADATA, "a patch exchanges a part of a token of compressed data")
        text -= int(ends[count - 1])


def code_edits(numbers: Numbers, edits: list[Edit]) -> None:
    """Writes all of them."""
    numbers.unsigned(_EDITS, len(edits))
    for edit in edits:
        code_edit(numbers, edit)


def code_edit(numbers: Numbers, edit: Edit | None = None) -> Edit:
    """Codes one of them."""
    kept = numbers.unsigned(_KEPT, edit.kept if edit else 0)
    count = 1 + numbers.unsigned(_TOLD, edit.lengths.size - 1 if edit else 0)
    if count > MOST_EDIT_TOKENS:
        raise Refused(Reason.LIMIT, "a patch tells too much of compressed data")
    tokens = np.zeros((2, count), np.uint16)
    for number in range(count):
        length, value = (int(edit.lengths[number]), int(edit.values[number])) if edit else (1, 0)
        tokens[:, number] = code_token(numbers, length, value)
    return Edit(kept, tokens[0], tokens[1])
