"""The received bytes of a patch, segment by segment on the disk, until the groups in them are applied.

Each segment is a file of its own that appears by one rename, so a cut leaves it whole or absent: at most the segment
that was open travels again, and after a mere pause not even that. A segment's hash is checked before it is kept;
without an index all of the payload (1 MiB at most) is kept first and hashed whole, and `ready` stays 0 until then: no
decoder sees a byte before its hash held.
"""

import hashlib
from pathlib import Path
from typing import Final

from device.store import Store
from device.transfer.rest import keep_rest, read_rest
from protocol import limits
from protocol.delta.patch import PatchIndex
from protocol.errors import Reason, Refused, StateError
from protocol.objects import Payload

SEGMENT_BYTES: Final = limits.PATCH_SEGMENT_BYTES


class Pieces:
    """The kept segments of one payload. Blocking; one thread adds, another may read and drop what was added.

    Args:
        payload: Its hash and length, signed.
        index: Verified; None for a payload that is hashed whole.
        store: Among whose parts the segments lie.
        applied: The payload offset before which everything was applied and is not needed any more.
    """

    def __init__(self, payload: Payload, index: PatchIndex | None, store: Store, applied: int) -> None:
        self._payload = payload
        self._index = index
        self._store = store
        self._open = bytearray()
        self._whole = b""  # of a payload without index, once it was hashed
        self._kept = 0 if index is None else min(applied - applied % SEGMENT_BYTES, payload.length_bytes)
        self._dropped = self._kept // SEGMENT_BYTES
        self._find_kept()
        if length := self._length(self._kept):
            self._open += read_rest(store, payload, self._kept // SEGMENT_BYTES, length)

    @property
    def wants(self) -> int:
        """The payload offset of the next byte."""
        return self._kept + len(self._open)

    @property
    def ready(self) -> int:
        """Everything before this payload offset may be read (or was dropped): its hash held."""
        if self._index is not None:
            return self._kept
        return self._payload.length_bytes if self._is_hashed() else 0

    def add(self, data: bytes) -> None:
        """Takes the bytes from `wants` on; whole segments are durable on return.

        Raises:
            Refused: `HASH`: these are not the signed bytes. `restart` drops what is worthless.
        """
        self._open += data
        while (length := self._length(self._kept)) and len(self._open) >= length:
            piece = bytes(self._open[:length])
            self._check(self._kept // SEGMENT_BYTES, piece)
            self._store.disk.write(self._path(self._kept // SEGMENT_BYTES), piece)
            del self._open[:length]
            self._kept += length
        if self._kept == self._payload.length_bytes:
            self._hash_whole()

    def restart(self) -> None:
        """Forgets what was not verified, so that `wants` goes back to a verified point."""
        self._open.clear()
        if self._index is None and not self._is_hashed():
            self.discard()
            self._kept = 0

    def read(self, first: int, end: int) -> bytearray:
        """Payload bytes `first` to `end`, which is at most `ready`. They are hashed again: disks forget.

        Raises:
            StateError: They are not what they were.
        """
        if self._index is None:
            return bytearray(self._whole[first:end])
        found = bytearray()
        for number in range(first // SEGMENT_BYTES, -(-end // SEGMENT_BYTES)):
            begins = number * SEGMENT_BYTES
            piece = self._piece(number)
            if piece is None:
                raise StateError(f"segment {number} of payload {self._payload.sha256[:12]} is not what was kept")
            found += memoryview(piece)[max(first - begins, 0) : end - begins]
        return found

    def drop(self, before: int) -> None:
        """Deletes the segments that lie wholly before a payload offset. Without an index all are kept to the end."""
        if self._index is None:
            return
        whole = before == self._payload.length_bytes
        until = -(-before // SEGMENT_BYTES) if whole else before // SEGMENT_BYTES
        self._store.disk.unlink_all(self._path(number) for number in range(self._dropped, until))
        self._dropped = max(self._dropped, until)

    def close(self) -> None:
        """Keeps the open segment's beginning for the next time."""
        keep_rest(self._store, self._payload, self._kept // SEGMENT_BYTES, self._open)

    def discard(self) -> None:
        """Deletes all that is kept."""
        self._store.disk.unlink_all(held_pieces(self._store, self._payload))

    def _find_kept(self) -> None:
        while self._kept < self._payload.length_bytes:
            piece = self._piece(self._kept // SEGMENT_BYTES)
            if piece is None:
                break
            self._kept += len(piece)
        try:
            self._hash_whole()
        except Refused:
            self.restart()

    def _piece(self, number: int) -> bytes | None:
        """A segment that is here and good."""
        length = self._length(number * SEGMENT_BYTES)
        try:
            with self._path(number).open("rb", buffering=0) as file:
                piece = file.read(length + 1)
            self._check(number, piece)
        except (OSError, Refused):
            return None
        return piece if len(piece) == length else None

    def _check(self, number: int, piece: bytes) -> None:
        if self._index is not None and hashlib.sha256(piece).digest() != self._index.segments[number]:
            raise Refused(Reason.HASH, f"segment {number} of a patch came with another hash than the signed index's")

    def _hash_whole(self) -> None:
        if self._index is not None or self._kept < self._payload.length_bytes:
            return
        whole = b"".join(path.read_bytes() for path in held_pieces(self._store, self._payload))
        actual = hashlib.sha256(whole).hexdigest()
        if len(whole) != self._payload.length_bytes or actual != self._payload.sha256:
            raise Refused(Reason.HASH, f"patch {self._payload.sha256[:12]} came with the hash {actual[:12]}")
        self._whole = whole

    def _is_hashed(self) -> bool:
        return len(self._whole) == self._payload.length_bytes

    def _length(self, begins: int) -> int:
        return min(SEGMENT_BYTES, self._payload.length_bytes - begins)

    def _path(self, number: int) -> Path:
        return self._store.part(f"{self._payload.sha256}.{number:06d}")


def held_pieces(store: Store, payload: Payload) -> list[Path]:
    """The segments of a payload that lie here, in order, not looked into. Blocking."""
    folder = store.part(payload.sha256).parent
    return sorted(path for path in folder.glob(f"{payload.sha256}.*") if path.suffix[1:].isdigit())
