"""The bytes of a segment that was still open when a transfer paused or the agent stopped in order.

They are kept unverified, so that a pause costs nothing; the segment's hash is checked once it is whole, as always. A
cut that leaves no time for this costs the open segment.
"""

import contextlib
import struct
from pathlib import Path
from typing import Final

from device.store import Store
from protocol.objects import Payload

LEAST_BYTES: Final = 4096  # less is not worth the writing
_NUMBER: Final = struct.Struct("<Q")


def keep_rest(store: Store, payload: Payload, number: int, data: bytes | bytearray | memoryview) -> None:
    """Keeps the beginning of segment `number`. A disk that does not take it costs bytes, nothing else. Blocking."""
    if len(data) >= LEAST_BYTES:
        with contextlib.suppress(OSError):
            store.disk.write(rest_path(store, payload), _NUMBER.pack(number) + bytes(data))


def read_rest(store: Store, payload: Payload, number: int, limit: int) -> bytes:
    """What is kept of segment `number`: less than `limit` bytes, perhaps none. Blocking."""
    try:
        with rest_path(store, payload).open("rb") as file:
            kept = file.read(_NUMBER.size + limit)
    except OSError:
        return b""
    data = kept[_NUMBER.size :]
    if len(kept) < _NUMBER.size or len(data) >= limit or _NUMBER.unpack_from(kept)[0] != number:
        return b""
    return data


def rest_path(store: Store, payload: Payload) -> Path:
    """Where it lies."""
    return store.part(f"{payload.sha256}.rest")
