"""Where received bytes go, blob by blob: what each spool wants next, and what it does when it has it.

A spool decides nothing about the link. It says where in the payload it goes on (`wants`), takes bytes from there
(`take`), and forgets what it cannot use (`restart`). No decoder gets a byte before its hash held.
"""

import hashlib
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import zstandard

from device.store import Store
from device.transfer.rest import keep_rest, read_rest
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.objects import Payload
from protocol.transfer import SegmentIndex, decode_segment
from signing.durable import Part

READ_BYTES: Final = limits.SEGMENT_OUTPUT_BYTES


class Spool(Protocol):
    """One payload on its way in."""

    @property
    def wants(self) -> int:
        """The offset of the next byte, counted from the payload's beginning."""
        ...

    def take(self, data: bytes) -> None:
        """Takes the bytes from `wants` on. Blocking.

        Raises:
            Refused: `HASH` and others: what was taken since the last `restart` point is worthless.
        """
        ...

    def restart(self) -> None:
        """Drops what was received and not yet verified, so that `wants` goes back to a verified point."""
        ...


class WholeSpool:
    """A small blob, kept in memory until its hash held.

    Args:
        payload: Of at most `limit` bytes.
        limit: Refused beyond, before anything is allocated.
    """

    def __init__(self, payload: Payload, limit: int) -> None:
        if payload.length_bytes > limit:
            raise Refused(Reason.LENGTH, f"a blob of {payload.length_bytes} bytes where at most {limit} are read whole")
        self._payload = payload
        self._data = bytearray()

    @property
    def wants(self) -> int:
        """As `Spool`."""
        return len(self._data)

    def take(self, data: bytes) -> None:
        """As `Spool`."""
        self._data += data
        if len(self._data) < self._payload.length_bytes:
            return
        actual = hashlib.sha256(self._data).hexdigest()
        if len(self._data) != self._payload.length_bytes or actual != self._payload.sha256:
            raise Refused(Reason.HASH, f"blob {self._payload.sha256[:12]} came with the hash {actual[:12]}")

    def content(self) -> bytes:
        """All of it, once `take` had the last byte."""
        assert len(self._data) == self._payload.length_bytes
        return bytes(self._data)

    def restart(self) -> None:
        """As `Spool`."""
        self._data.clear()


class SegmentSpool:
    """An indexed payload: each segment is verified, decoded and in the part before the next one is taken, and durable
    there too, but for a source whose bytes are free.

    A segment's payload is hashed before a decoder sees it, and its output into the hash of the whole, so that `digest`
    tells without another reading whether the part is what was signed.

    Args:
        index: Verified.
        payload: Its hash and length, signed.
        store: Holds the part.
        name: Of the part.
        sync_bytes: What a power cut may cost, about, where that is more than a segment: the disk then writes so much
            while the next is taken.
    """

    def __init__(self, index: SegmentIndex, payload: Payload, store: Store, name: str, sync_bytes: int = 0) -> None:
        self._index = index
        self._payload = payload
        self._store = store
        self._path = store.part(name)
        self._part: Part = store.disk.open_part(self._path)
        # A cancelled fetch closes the spool while a thread may still be in `take`.
        self._lock = threading.Lock()
        self._closed = False
        self._open = _Open()
        self._number = 0
        self._offset = 0
        self._whole = hashlib.sha256()
        self._sync_bytes = sync_bytes
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self._ahead: Future[bytes] | None = None  # the output of the first segment of the open bytes
        # One decodes ahead of `take`, one has the disk write.
        self._helpers = ThreadPoolExecutor(2, thread_name_prefix="segments")
        try:
            self._find_verified()
            if self._number < len(index.segments):
                limit = index.segments[self._number].payload_bytes
                self._open.add(read_rest(store, payload, self._number, limit))
        except BaseException:
            self._part.close()
            raise

    @property
    def path(self) -> Path:
        """Of the part."""
        return self._path

    @property
    def digest(self) -> str:
        """sha256 of all that was taken."""
        return self._whole.hexdigest()

    @property
    def wants(self) -> int:
        """As `Spool`."""
        return self._offset + len(self._open)

    def take(self, data: bytes) -> None:
        """As `Spool`."""
        with self._lock:
            if self._closed:
                return
            self._open.add(data)
            self._advance()

    def _advance(self) -> None:
        """Goes as far as the open bytes reach. While a segment is hashed and written the next is decoded, and no more
        than that: a small payload may give a thousand outputs. Where bytes are free the last may wait for more."""
        segments = self._index.segments
        while True:
            before, number, first = self._ahead, self._number, 0
            if before is not None:
                first = segments[number].payload_bytes
                number += 1
            if number < len(segments) and first + segments[number].payload_bytes <= len(self._open):
                payload = self._open.view(first, segments[number].payload_bytes)
                self._ahead = self._helpers.submit(decode_segment, self._index, number, payload)
            elif before is not None and (number == len(segments) or not self._sync_bytes):
                self._ahead = None
            else:
                return
            if before is not None:
                self._settle(before.result())

    def _settle(self, output: bytes) -> None:
        """Takes in what the first segment of the open bytes gave."""
        self._whole.update(output)
        self._part.append(output)
        length = self._index.segments[self._number].payload_bytes
        self._open.drop(length)
        self._number += 1
        self._offset += length
        self._sync(len(output))

    def _sync(self, more: int) -> None:
        self._unsynced += more
        if self._unsynced < self._sync_bytes:
            return
        self._unsynced = 0
        if not self._sync_bytes:  # one segment is what a power cut may cost
            self._part.sync()
            return
        self._end_sync()
        self._syncing = self._helpers.submit(self._part.sync)

    def _end_sync(self) -> None:
        """Raises OSError: what was taken before is not on the disk."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def restart(self) -> None:
        """As `Spool`."""
        self._open.clear()
        self._ahead = None

    def close(self) -> None:
        """Lets go of the part, and keeps the open segment's beginning for the next time. Safe to repeat.

        Raises:
            OSError: What was taken did not get to the disk.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._helpers.shutdown()
            try:
                self._end_sync()
            finally:
                self._part.close()
                if self._ahead is None:
                    keep_rest(self._store, self._payload, self._number, self._open.view(0, len(self._open)))

    def _find_verified(self) -> None:
        """Goes on after the last whole segment whose output still has its hash.

        A cut may have torn the tail, and a disk may not read it any more.
        """
        with self._path.open("rb", buffering=0) as file:
            for number, segment in enumerate(self._index.segments):
                try:
                    output = file.read(self._index.output_length(number))
                except OSError:
                    break
                if hashlib.sha256(output).digest() != segment.output_sha256:
                    break
                self._whole.update(output)
                self._number = number + 1
                self._offset += segment.payload_bytes
        verified = min(self._number * self._index.segment_bytes, self._index.output_bytes)
        if self._part.length_bytes != verified:
            self._part.truncate(verified)
            self._part.sync()


class _Open:
    """Bytes that came and are not settled: what lies within one piece of them is not copied."""

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, data: bytes) -> None:
        if data:
            self._pieces.append(memoryview(data))
            self._length += len(data)

    def view(self, first: int, count: int) -> bytes | memoryview:
        found = []
        for piece in self._pieces:
            here = piece[first : first + count]
            first = max(0, first - len(piece))
            if here:
                found.append(here)
                count -= len(here)
            if not count:
                break
        return found[0] if len(found) == 1 else b"".join(found)

    def drop(self, count: int) -> None:
        self._length -= count
        while count:
            piece = self._pieces.popleft()
            if count < len(piece):
                self._pieces.appendleft(piece[count:])
                return
            count -= len(piece)

    def clear(self) -> None:
        self._pieces.clear()
        self._length = 0


def unpack_whole(payload: bytes, store: Store, name: str, output_bytes: int) -> Path:
    """Decodes a small verified payload into a part, in bounded memory: 1 MiB may hold gigabytes of zeros.

    Args:
        payload: One zstd frame whose hash held.
        store: Holds the part.
        name: Of the part.
        output_bytes: The signed length.

    Raises:
        Refused: `LENGTH`, `LIMIT`: it decodes to something else; the part is gone.
    """
    path = store.part(name)
    store.disk.unlink(path)
    written = 0
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=limits.ZSTD_WINDOW_BYTES)
        with (
            store.disk.open_part(path) as part,
            decompressor.stream_reader(payload, read_across_frames=False) as reader,
        ):
            while chunk := reader.read(READ_BYTES):
                written += len(chunk)
                if written > output_bytes:
                    break
                part.append(chunk)
    except zstandard.ZstdError as error:
        store.disk.unlink(path)
        raise Refused(Reason.LIMIT, f"compressed bytes that no decoder within bounds reads: {error}") from error
    if written != output_bytes:
        store.disk.unlink(path)
        raise Refused(Reason.LENGTH, f"compressed bytes that give another length than the signed {output_bytes}")
    return path
