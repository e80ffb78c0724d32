"""Gzip files: what they hold, and how to make the same bytes again.

Inflating gives the same everywhere. Deflating does so only with zlib's own algorithm: a recipe is kept when it gave the
very bytes here, and what it gives elsewhere is hashed before anybody sees it.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import BinaryIO, Final

from protocol import limits
from protocol.delta.envelope import GZIP_HEADER_BYTES, GzipRecipe
from protocol.delta.recompress import Recipe, recompress
from protocol.errors import Reason, Refused
from server.delta.gzip_body import find_body

MAGIC: Final = b"\x1f\x8b\x08"
PIECE_BYTES: Final = limits.MIB
TRIED_BYTES: Final = limits.MIB // 4  # of the content, to rule recipes out
_WAYS: Final = sorted(product(range(1, 10), (8, 9)), key=lambda way: way not in ((6, 8), (9, 8), (9, 9)))
_TRAILER_BYTES: Final = 8
_CHECKED, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16  # flags of the header (RFC 1952)


def is_gzip(path: Path) -> bool:
    """Whether a file begins as a gzip file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def inflate(path: Path, to: BinaryIO) -> bool:
    """Writes what a gzip file holds. False: it is damaged, and nothing can be said of it."""
    try:
        with gzip.open(path, "rb") as source:
            for piece in iter(lambda: source.read(PIECE_BYTES), b""):
                to.write(piece)
                if to.tell() > limits.ARTIFACT_BYTES:
                    return False
    except (OSError, EOFError, zlib.error):
        return False
    to.flush()
    return True


class FileBase:
    """A file as the base of a patch, read by position.

    Args:
        file: Open for reading, unbuffered.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self.length_bytes = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """As `protocol.delta.apply.Base`."""
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise Refused(Reason.LENGTH, "the base became shorter while it was read")
        return data


def find_recipe(path: Path, content: Path) -> GzipRecipe | None:
    """How to make a gzip file from what it holds, or None when that would take much.

    Args:
        path: The gzip file.
        content: What it holds.
    """
    with path.open("rb") as file:
        start = file.read(GZIP_HEADER_BYTES + TRIED_BYTES)
    length = header_bytes(start)
    if length is None:
        return None
    with content.open("rb") as file:
        first = file.read(TRIED_BYTES)
    for level, memory in _WAYS:
        packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, memory)
        packed = packer.compress(first)
        if start[length : length + len(packed)] == packed[: len(start) - length]:
            recipe = GzipRecipe(start[:length], Recipe(level, memory, 0, False, b"", b""), plain=True)
            if _gives(recipe, content, path):
                return recipe
    with path.open("rb") as file, content.open("rb", buffering=0) as plain:
        body = find_body(file, length, FileBase(plain))
    if body is None:
        return None
    recipe = GzipRecipe(start[:length], body, plain=False)
    return recipe if _gives(recipe, content, path) else None


def deflate(recipe: GzipRecipe, content: Path) -> Iterator[bytes]:
    """The gzip file, in pieces.

    Raises:
        OSError: The content cannot be read.
        Refused: The recipe says what cannot be done.
    """
    yield recipe.header
    with content.open("rb", buffering=0) as source:
        if recipe.plain:
            yield from _deflated(recipe.body, source)
        else:
            yield from recompress(recipe.body, FileBase(source))
        source.seek(0)
        checksum = length = 0
        for piece in iter(lambda: source.read(PIECE_BYTES), b""):
            checksum = zlib.crc32(piece, checksum)
            length += len(piece)
    yield checksum.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little")


def _deflated(body: Recipe, source: BinaryIO) -> Iterator[bytes]:
    packer = zlib.compressobj(body.level, zlib.DEFLATED, -zlib.MAX_WBITS, body.memory)
    for piece in iter(lambda: source.read(PIECE_BYTES), b""):
        yield packer.compress(piece)
    yield packer.flush()


def _gives(recipe: GzipRecipe, content: Path, wanted: Path) -> bool:
    with wanted.open("rb") as file:
        try:
            if any(file.read(len(piece)) != piece for piece in deflate(recipe, content)):
                return False
        except Refused:
            return False
        return not file.read(1)


def header_bytes(data: bytes) -> int | None:
    """Length of the header that `data` begins with."""
    if len(data) < 10 + _TRAILER_BYTES or data[: len(MAGIC)] != MAGIC:
        return None
    flags = data[3]
    at = 10
    if flags & _EXTRA:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            end = data.find(b"\0", at)
            if end < 0:
                return None
            at = end + 1
    at += 2 * bool(flags & _CHECKED)
    return at if at <= min(GZIP_HEADER_BYTES, len(data)) else None


def refuse_other_zlib() -> Refused:
    """What is raised when a recipe gives other bytes here than where the patch was made."""
    return Refused(
        Reason.HASH,
        "this machine's zlib compresses otherwise than that of the machine where the patch was made",
        hint="make the patch between the archives that are not compressed",
    )
