"""Where received bytes go, blob by blob: what each spool wants next, and what it does when it has it.

A spool decides nothing about the link. It says where in the payload it goes on (`wants`), takes bytes from there
(`take`), and forgets what it cannot use (`restart`). No decoder gets a byte before its hash held.
"""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import zstandard

from device.store import Store
from device.transfer.rest import keep_rest, read_rest
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.objects import Payload
from protocol.transfer import SegmentIndex, open_segment
from signing.durable import Part

READ_BYTES: Final = limits.SEGMENT_OUTPUT_BYTES
AT_ONCE: Final = 2


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
    """An indexed payload: each segment is verified, decoded and durable in the part before the next one is taken.

    Args:
        index: Verified.
        payload: Its hash and length, signed.
        store: Holds the part.
        name: Of the part.
        sync_bytes: What a power cut may cost, where that is more than a segment.
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
        self._open = bytearray()
        self._number = 0
        self._offset = 0
        self._sync_bytes = sync_bytes
        self._unsynced = 0
        try:
            self._find_verified()
            if self._number < len(index.segments):
                limit = index.segments[self._number].payload_bytes
                self._open += read_rest(store, payload, self._number, limit)
        except BaseException:
            self._part.close()
            raise

    @property
    def path(self) -> Path:
        """Of the part."""
        return self._path

    @property
    def wants(self) -> int:
        """As `Spool`."""
        return self._offset + len(self._open)

    def take(self, data: bytes) -> None:
        """As `Spool`."""
        with self._lock:
            if self._closed:
                return
            self._open += data
            for length, output in self._outputs():
                self._part.append(output)
                self._unsynced += len(output)
                # One segment is what a power cut may cost, so each is synced, but for a source whose bytes are free.
                if self._unsynced >= self._sync_bytes:
                    self._part.sync()
                    self._unsynced = 0
                del self._open[:length]
                self._offset += length
                self._number += 1

    def _outputs(self) -> Iterator[tuple[int, bytes]]:
        """What the whole segments in the open bytes give, each with its length: decoded side by side where there are
        several, for hashing is what takes the time."""
        segments, number, first = self._index.segments, self._number, 0
        payloads: list[bytes] = []
        while number < len(segments) and first + segments[number].payload_bytes <= len(self._open):
            payloads.append(bytes(self._open[first : first + segments[number].payload_bytes]))
            first += segments[number].payload_bytes
            number += 1
        numbers = range(self._number, number)
        if len(payloads) < AT_ONCE:
            for n, payload in zip(numbers, payloads, strict=True):
                yield len(payload), open_segment(self._index, n, payload)
            return
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="segments") as pool:
            outputs = pool.map(partial(open_segment, self._index), numbers, payloads)
            yield from zip(map(len, payloads), outputs, strict=True)

    def restart(self) -> None:
        """As `Spool`."""
        self._open.clear()

    def close(self) -> None:
        """Lets go of the part, and keeps the open segment's beginning for the next time. Safe to repeat."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._part.close()
            keep_rest(self._store, self._payload, self._number, self._open)

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
                self._number = number + 1
                self._offset += segment.payload_bytes
        verified = min(self._number * self._index.segment_bytes, self._index.output_bytes)
        if self._part.length_bytes != verified:
            self._part.truncate(verified)
            self._part.sync()


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
