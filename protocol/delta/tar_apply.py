"""The second pass over a group's tar operations: writes what the first one worked out."""

import base64
import hashlib
from array import array
from collections.abc import Callable, Iterable
from typing import Final

from protocol.delta.base import Base
from protocol.delta.tar import HEAD, Form, TarPlace
from protocol.delta.tar_blocks import (
    BLOCK_BYTES,
    SIZE,
    STAMP_BYTES,
    is_stamped,
    padded,
    read_number,
    read_stamp,
    restamped,
    retimed,
    write_number,
)
from protocol.delta.tar_records import Time, holds_times, read_records, times_of, with_times
from protocol.errors import Reason, Refused

WINDOW_BYTES: Final = 1 << 20


class Digests:
    """Hashes the files that digests are written of while they go by.

    Args:
        write: Takes the output.
        output: Where the output begins.
        contents: Offset and size of each file, one behind the other, as `TarPlace.contents`.
        wanted: Number of a file and `Form`, for each digest.

    Raises:
        Refused: `METADATA`: a file is not there, or lies in another one.
    """

    def __init__(
        self, write: Callable[[bytes], None], output: int, contents: "array[int]", wanted: Iterable[tuple[int, int]]
    ) -> None:
        self._write = write
        self._at = output
        self.texts: dict[tuple[int, int], bytes] = {}
        self._files: list[tuple[int, int, list[tuple[int, int]]]] = []
        for reference, form in sorted(set(wanted), reverse=True):
            if reference >= len(contents) // 2:
                raise Refused(Reason.METADATA, "a patch names a digest of a file that is not there")
            first, size = contents[2 * reference], contents[2 * reference + 1]
            if self._files and self._files[-1][0] == first:
                self._files[-1][2].append((reference, form))
            elif self._files and first + size > self._files[-1][0]:
                raise Refused(Reason.METADATA, "a patch hashes files that lie in one another")
            else:
                self._files.append((first, first + size, [(reference, form)]))
        self._hashes: list[hashlib._Hash] = []

    @property
    def waiting(self) -> bool:
        """Whether there are files that did not go by yet."""
        return bool(self._files)

    def wants(self, length: int) -> bool:
        """Whether so many bytes from here on hold some of a file."""
        return bool(self._files) and self._files[-1][0] < self._at + length

    def skip(self, length: int) -> None:
        """Goes on behind output that holds nothing of a file."""
        self._at += length

    def write(self, data: bytes) -> None:
        """Passes output on."""
        self._write(data)
        end = self._at + len(data)
        # A file of no bytes is over as soon as its header is written.
        while self._files and (self._files[-1][0] < end or self._files[-1][1] <= end):
            first, last, wanted = self._files[-1]
            if not self._hashes:
                self._hashes = [_new_hash(form) for _, form in wanted]
            part = memoryview(data)[max(0, first - self._at) : last - self._at]
            for hashed in self._hashes:
                hashed.update(part)
            if last > end:
                break
            for (reference, form), hashed in zip(wanted, self._hashes, strict=True):
                self.texts[reference, form] = _text(form, hashed.digest(), last - first)
            self._hashes = []
            self._files.pop()
        self._at = end


def _new_hash(form: int) -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False) if form == Form.MD5SUMS else hashlib.sha256()


def _text(form: int, digest: bytes, size: int) -> bytes:
    if form == Form.MD5SUMS:
        return digest.hex().encode()
    text = base64.urlsafe_b64encode(digest).rstrip(b"=")
    return text + b",%d" % size if form == Form.RECORD else text


class TarWriter:
    """Writes entries and blocks in the order of the first pass.

    Args:
        base: The old file.
        tar: What the first pass left.
        write: Takes the output, at most 1 MiB at a time.
    """

    def __init__(self, base: Base, tar: TarPlace, write: Callable[[bytes], None]) -> None:
        self._base = base
        self._times = iter(tar.times)
        self._blocks = memoryview(tar.blocks)
        self._write = write

    def block(self, kind: int) -> None:
        """The next header or stamp."""
        length = BLOCK_BYTES if kind == HEAD else STAMP_BYTES
        self._write(bytes(self._blocks[:length]))
        self._blocks = self._blocks[length:]

    def skip_block(self, kind: int) -> None:
        """Goes on behind the next header or stamp."""
        self._blocks = self._blocks[BLOCK_BYTES if kind == HEAD else STAMP_BYTES :]

    def _attributes(self, offset: int, size: int) -> bytes:
        """With other times, or nothing where they are not read."""
        records = read_records(self._base.read(offset, size))
        if records is None:
            return b""
        times = [Time(*(next(self._times) for _ in range(3))) for _ in times_of(records)]
        return with_times(records, times)

    def entries(self, offset: int, count: int) -> None:
        """So many entries of the base from `offset` on."""
        held = bytearray()
        for _ in range(count):
            left = min(BLOCK_BYTES + STAMP_BYTES, self._base.length_bytes - offset)
            head = self._base.read(offset, left)
            size = read_number(head, SIZE)
            time = next(self._times)
            rest = padded(size)
            block = bytearray(head[:BLOCK_BYTES])
            attributes = self._attributes(offset + BLOCK_BYTES, size) if holds_times(head, size) else b""
            if attributes:
                write_number(block, SIZE, len(attributes))
            held += retimed(block, time)
            held += attributes.ljust(rest, b"\0") if attributes else b""
            offset += BLOCK_BYTES
            if attributes:
                offset += rest
                rest = 0
            if size >= STAMP_BYTES and is_stamped(head[BLOCK_BYTES:]):
                stamp = head[BLOCK_BYTES:]
                held += restamped(stamp, next(self._times), read_stamp(stamp)[1])
                offset += STAMP_BYTES
                rest -= STAMP_BYTES
            while rest:
                piece = min(rest, WINDOW_BYTES - len(held))
                held += self._base.read(offset, piece)
                offset += piece
                rest -= piece
                if len(held) > WINDOW_BYTES - 2 * BLOCK_BYTES:
                    self._write(bytes(held))
                    held.clear()
            if len(held) > WINDOW_BYTES - 2 * BLOCK_BYTES:
                self._write(bytes(held))
                held.clear()
        if held:
            self._write(bytes(held))
