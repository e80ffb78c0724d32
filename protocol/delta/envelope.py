"""The envelope of a patch file between compressed files: what is inflated before, and deflated after.

In it lies a whole patch file between what the compressed files hold. Only files for the command line have it: releases
travel as plain archives (see `protocol/adr/compressed-archives.md`).
"""

from dataclasses import dataclass
from typing import Final

from protocol.delta.patch import DIGEST_PREFIX_BYTES, read_varint, varint
from protocol.errors import Reason, Refused

ENVELOPE_MAGIC: Final = b"HLDZ"
GZIP_HEADER_BYTES: Final = 512  # with the name of a file; a longer one is not made anew
ENVELOPE_BYTES: Final = 1024  # the largest
_BASE, _RESULT = 1, 2  # bits of the flags


@dataclass(frozen=True, slots=True)
class GzipRecipe:
    """How a gzip file is made from what it holds.

    Args:
        header: Its own bytes in front of the compressed ones.
        level: Of zlib, 1 to 9.
        memory: zlib's `memLevel`, 8 or 9.
    """

    header: bytes
    level: int
    memory: int


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
    flags = _BASE * envelope.inflates_base | _RESULT * (recipe is not None)
    head = ENVELOPE_MAGIC + bytes([flags]) + envelope.base_prefix + envelope.output_prefix
    if recipe is None:
        return head
    return head + bytes([recipe.level, recipe.memory]) + varint(len(recipe.header)) + recipe.header


def read_envelope(data: bytes) -> Envelope | None:
    """The envelope that a file begins with, or None when it has none. `data` is up to `ENVELOPE_BYTES` of it.

    Raises:
        Refused: `METADATA`, `LENGTH`: a damaged one.
    """
    if data[: len(ENVELOPE_MAGIC)] != ENVELOPE_MAGIC:
        return None
    at = len(ENVELOPE_MAGIC) + 1 + 2 * DIGEST_PREFIX_BYTES
    try:
        flags = data[len(ENVELOPE_MAGIC)]
        recipe = None
        middle = at - DIGEST_PREFIX_BYTES
        prefixes = data[middle - DIGEST_PREFIX_BYTES : middle], data[middle:at]
        if flags & _RESULT:
            level, memory = data[at], data[at + 1]
            length, at = read_varint(data, at + 2)
            if not 1 <= level <= 9 or memory not in (8, 9) or length > GZIP_HEADER_BYTES:
                raise Refused(Reason.METADATA, "a patch file that compresses its result in an unknown way")
            recipe = GzipRecipe(data[at : at + length], level, memory)
            at += length
    except IndexError:
        raise Refused(Reason.LENGTH, "the patch file ends in its envelope") from None
    if flags > (_BASE | _RESULT) or at > len(data):
        raise Refused(Reason.METADATA, "a patch file with a damaged envelope")
    return Envelope(*prefixes, bool(flags & _BASE), recipe, at)
