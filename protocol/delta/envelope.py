"""The envelope of a patch file between compressed files: what is inflated before, and deflated after.

In it lies a whole patch file between what the compressed files hold. Only files for the command line have it: releases
travel as plain archives (see `protocol/adr/compressed-archives.md`).
"""

from dataclasses import dataclass
from typing import BinaryIO, Final

from protocol.delta.patch import DIGEST_PREFIX_BYTES, read_varint, varint
from protocol.delta.recompress import MOST_BLOCK_TOKENS, Recipe
from protocol.errors import Reason, Refused

ENVELOPE_MAGIC: Final = b"HLDZ"
GZIP_HEADER_BYTES: Final = 512  # with the name of a file; a longer one is not made anew
RECIPE_BYTES: Final = 1 << 20  # of each of a recipe's two parts: they are held in memory
_HEAD_BYTES: Final = 64  # ample for all but the gzip header and the recipe's parts
_BASE, _RESULT, _TOKENS = 1, 2, 4  # bits of the flags
_GUESSES, _MUCH_MEMORY = 16, 32  # bits beside the level


@dataclass(frozen=True, slots=True)
class GzipRecipe:
    """How a gzip file is made from what it holds.

    Args:
        header: Its own bytes in front of the compressed ones.
        body: How these are made.
        plain: Whether they are what zlib itself writes; of `body` level and memory say all then.
    """

    header: bytes
    body: Recipe
    plain: bool


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands in front of the patch file inside.

    Args:
        base_prefix: The first bytes of the sha256 of the base as it is, compressed or not.
        output_prefix: Likewise of the result.
        inflates_base: Whether the base is a gzip file.
        recipe: For the result, when it is one.
        length_bytes: Of the envelope; the patch file follows.
    """

    base_prefix: bytes
    output_prefix: bytes
    inflates_base: bool
    recipe: GzipRecipe | None
    length_bytes: int = 0


def write_envelope(envelope: Envelope) -> bytes:
    """What goes in front of the patch file."""
    recipe = envelope.recipe
    flags = _BASE * envelope.inflates_base
    if recipe is None:
        return ENVELOPE_MAGIC + bytes([flags]) + envelope.base_prefix + envelope.output_prefix
    body = recipe.body
    flags |= _RESULT | _TOKENS * (not recipe.plain)
    way = body.level | _GUESSES * body.guesses | _MUCH_MEMORY * (body.memory == 9)
    head = ENVELOPE_MAGIC + bytes([flags]) + envelope.base_prefix + envelope.output_prefix + bytes([way])
    if recipe.plain:
        return head + varint(len(recipe.header)) + recipe.header
    lengths = b"".join(varint(number) for number in (len(recipe.header), body.most, len(body.edits), len(body.blocks)))
    return head + lengths + recipe.header + body.edits + body.blocks


def read_envelope(source: BinaryIO) -> Envelope | None:
    """The envelope that a file begins with, or None when it has none.

    Raises:
        OSError: The file cannot be read.
        Refused: `METADATA`, `LENGTH`, `LIMIT`: a damaged one.
    """
    data = source.read(_HEAD_BYTES)
    if data[: len(ENVELOPE_MAGIC)] != ENVELOPE_MAGIC:
        return None
    at = len(ENVELOPE_MAGIC) + 1 + 2 * DIGEST_PREFIX_BYTES
    middle = at - DIGEST_PREFIX_BYTES
    prefixes = data[middle - DIGEST_PREFIX_BYTES : middle], data[middle:at]
    if len(data) < at:
        raise Refused(Reason.LENGTH, "the patch file ends in its envelope")
    flags = data[len(ENVELOPE_MAGIC)]
    if flags not in (_BASE, _RESULT, _BASE | _RESULT, _RESULT | _TOKENS, _BASE | _RESULT | _TOKENS):
        raise Refused(Reason.METADATA, "a patch file with a damaged envelope")
    if not flags & _RESULT:
        return Envelope(*prefixes, inflates_base=True, recipe=None, length_bytes=at)
    lengths = []
    try:
        way = data[at]
        at += 1
        for _ in range(4 if flags & _TOKENS else 1):
            number, at = read_varint(data, at)
            lengths.append(number)
    except IndexError:
        raise Refused(Reason.LENGTH, "the patch file ends in its envelope") from None
    header_bytes, most, edits_bytes, blocks_bytes = (*lengths, 0, 0, 0)[:4]
    level, memory = way & 15, 9 if way & _MUCH_MEMORY else 8
    if not 1 <= level <= 9 or way >= 2 * _MUCH_MEMORY or header_bytes > GZIP_HEADER_BYTES:
        raise Refused(Reason.METADATA, "a patch file that compresses its result in an unknown way")
    if max(edits_bytes, blocks_bytes) > RECIPE_BYTES or most > MOST_BLOCK_TOKENS:
        raise Refused(Reason.LIMIT, "a patch file that says too much of how its result is compressed")
    source.seek(at)
    header, edits, blocks = (_exactly(source, length) for length in (header_bytes, edits_bytes, blocks_bytes))
    body = Recipe(level, memory, most, bool(way & _GUESSES), edits, blocks)
    recipe = GzipRecipe(header, body, plain=not flags & _TOKENS)
    return Envelope(*prefixes, bool(flags & _BASE), recipe, at + header_bytes + edits_bytes + blocks_bytes)


def _exactly(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) != length:
        raise Refused(Reason.LENGTH, "the patch file ends in its envelope")
    return data
