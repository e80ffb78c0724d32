"""A patch on its way in: while the next bytes come, each whole group is applied to the base, forward only.

What a cut leaves behind: the result up to the last finished group (synced), a note that says so, and the verified
segments from there on. So after a cut at any byte at most one segment is fetched again and one group applied again.
The note is written after the result was synced and before the group's segments go; whatever stands behind it in the
result is cut off when the patch goes on.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from device.store import Store
from device.transfer.applier import Applier, Appliers
from device.transfer.pieces import SEGMENT_BYTES, Pieces, held_pieces
from device.transfer.rest import read_rest, rest_path
from protocol import limits
from protocol.delta.patch import GroupHeader, PatchIndex, read_group_header
from protocol.errors import HeadlandError, LinkError, Reason, Refused
from protocol.ids import Digest, Length
from protocol.objects import Payload
from protocol.wire import Message, decode, encode
from signing.durable import Part

LOG: Final = logging.getLogger("headland.transfer")
AHEAD_BYTES: Final = 2 * limits.GROUP_PAYLOAD_BYTES  # the group that is being applied, and one more
HEADER_BYTES: Final = 2 * limits.KIB  # more than the longest header of a group: 95 numbers
NOTE_BYTES: Final = 4 * limits.KIB
RESULT: Final = ".result"
NOTE: Final = ".note"


@dataclass(frozen=True)
class Patch:
    """A step that patches.

    Args:
        artifact: The result.
        length_bytes: Of the result.
        base: What it is made from.
        payload: The groups.
        lifted_ms: When a person last let it be tried again.
        saves_bytes: What compressed full would take more.
    """

    artifact: Digest
    length_bytes: int
    base: Digest
    payload: Payload
    lifted_ms: int = 0
    saves_bytes: int = 0


class PatchFailedError(HeadlandError):
    """A patch whose bytes are those that were signed gives no result here. The same bytes are not tried again.

    Args:
        patch: Which.
        reason: The stable code.
        message: The facts for a person.
    """

    def __init__(self, patch: Patch, reason: Reason, message: str) -> None:
        super().__init__(message, hint="the next plan of the server does without this patch")
        self.patch = patch
        self.reason = reason


class PatchNote(Message):
    """How far a patch is applied.

    Args:
        artifact: The result.
        base: Of the patch.
        base_seen: Inode, length, and times (ns) of content and inode of the base when it was hashed.
        applied_bytes: Of the payload.
        output_bytes: Of the result: so many are durable.
        saves_bytes: Of the patch: known here also to a plan that does not name it any more.
    """

    artifact: Digest
    base: Digest
    base_seen: tuple[int, int, int, int]
    applied_bytes: Length = 0
    output_bytes: Length = 0
    saves_bytes: Length = 0


class _ClosedError(Exception):
    """The spool was closed while a group was being applied."""


class PatchSpool:
    """Takes a patch's payload and applies its groups in a thread of its own. Blocking; `open` it first, close it last.

    Args:
        patch: What is to be made.
        index: Verified; None for a payload of at most 1 MiB.
        store: Holds the base, the segments and the result.
        appliers: Make what applies groups.
        applied: Told of each group's output bytes and seconds.
    """

    def __init__(
        self,
        patch: Patch,
        index: PatchIndex | None,
        store: Store,
        appliers: Appliers,
        applied: Callable[[int, float], None],
    ) -> None:
        self._patch = patch
        self._index = index
        self._store = store
        self._appliers = appliers
        self._told = applied
        self._header: GroupHeader | None = None
        self._closed = False
        self._error: BaseException | None = None
        self._turn = threading.Condition()
        # A cancelled fetch closes the spool while a thread may still be in `open` or `take`.
        self._taking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._note: PatchNote
        self._pieces: Pieces
        self._part: Part
        self._applier: Applier

    def open(self) -> None:
        """Finds what is here already, hashes the base where that is due, and begins to apply what is whole.

        Raises:
            LinkError: The base is not here or not what it was: the plan does not fit, whatever the patch is worth.
        """
        with self._taking:
            self._note = self._go_on(read_note(self._store, self._patch.payload))
            if self._closed:
                return
            self._pieces = Pieces(self._patch.payload, self._index, self._store, self._note.applied_bytes)
            self._part = self._store.disk.open_part(self.path)
            try:
                if self._part.length_bytes != self._note.output_bytes:
                    self._part.truncate(self._note.output_bytes)
                    self._part.sync()
                self._applier = self._appliers(self._store.path(self._patch.base))
            except BaseException:
                self._part.close()
                raise
            name = f"patch-{self._patch.artifact[:12]}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    @property
    def path(self) -> Path:
        """Of the result."""
        return result_path(self._store, self._patch.payload)

    @property
    def wants(self) -> int:
        """As `device.transfer.spool.Spool`."""
        return self._pieces.wants

    def take(self, data: bytes) -> None:
        """As `device.transfer.spool.Spool`. Waits while the applier is a whole group behind.

        Raises:
            PatchFailedError: A group cannot be applied.
        """
        with self._taking:
            with self._turn:
                self._turn.wait_for(lambda: self._closed or self._error is not None or not self._is_ahead())
                if self._closed:
                    return
                self._raise_error()
            self._pieces.add(data)
            with self._turn:
                self._turn.notify_all()

    def restart(self) -> None:
        """As `device.transfer.spool.Spool`."""
        with self._taking:
            self._pieces.restart()

    def finish(self) -> None:
        """Waits until all of the payload is applied; the result is durable then, and not yet hashed.

        Raises:
            PatchFailedError: A group cannot be applied, or the payload gives another length.
        """
        thread = self._thread
        if thread is not None:  # else it was closed
            thread.join()
        with self._turn:
            self._raise_error()
        if self._note.output_bytes != self._patch.length_bytes:
            raise self._failed(
                Reason.LENGTH, f"it gives {self._note.output_bytes} bytes; {self._patch.length_bytes} are signed"
            )

    def close(self) -> None:
        """Stops applying and lets go of all files; what was verified or applied stays. Safe to repeat."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        with self._taking:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._applier.cancel()
            thread.join()
            try:
                self._pieces.close()
            finally:
                self._part.close()
                self._applier.close()

    # The thread

    def _run(self) -> None:
        try:
            while (header := self._await_group()) is not None:
                self._apply(header)
        except _ClosedError:
            pass
        except BaseException as error:  # whoever takes or finishes gets it
            with self._turn:
                self._error = None if self._closed else error
                self._turn.notify_all()

    def _await_group(self) -> GroupHeader | None:
        """The next group, once all of it is verified; None when the payload is done or the spool closed."""
        with self._turn:
            while not self._closed:
                if self._note.applied_bytes == self._patch.payload.length_bytes:
                    return None
                if self._header is None:
                    self._header = self._read_header()
                if self._header is not None and self._end(self._header) <= self._pieces.ready:
                    return self._header
                self._turn.wait()
        return None

    def _read_header(self) -> GroupHeader | None:
        applied, total = self._note.applied_bytes, self._patch.payload.length_bytes
        if self._pieces.ready <= applied:
            return None
        end = min(applied + HEADER_BYTES, self._pieces.ready)
        try:
            header = read_group_header(bytes(self._pieces.read(applied, end)))
            self._check_header(header, is_all=end in (total, applied + HEADER_BYTES))
        except Refused as refused:
            raise self._failed(refused.reason, f"the group at byte {applied}: {refused.message}") from refused
        return header

    def _check_header(self, header: GroupHeader | None, *, is_all: bool) -> None:
        """Holds a group against the signed lengths before any of it is applied."""
        if header is None:
            if is_all:
                raise Refused(Reason.LENGTH, "the payload ends in its head")
            return
        if self._end(header) > self._patch.payload.length_bytes:
            raise Refused(Reason.LENGTH, "it goes on behind the payload's end")
        if self._note.output_bytes + header.output_bytes > self._patch.length_bytes:
            raise Refused(Reason.LENGTH, "it goes on behind the result's end")

    def _apply(self, header: GroupHeader) -> None:
        note, end = self._note, self._end(header)
        LOG.info("patch %s: applying the group at byte %d", self._patch.payload.sha256[:12], note.applied_bytes)
        began = time.monotonic()
        group = self._pieces.read(note.applied_bytes, end)
        try:
            self._write_output(group, note.output_bytes, header.output_bytes)
        except Refused as refused:
            where = f"the group at byte {note.applied_bytes}"
            raise self._failed(refused.reason, f"{where}: {refused.message}") from refused
        took_s = time.monotonic() - began
        self._part.sync()
        self._keep(
            msgspec.structs.replace(note, applied_bytes=end, output_bytes=note.output_bytes + header.output_bytes)
        )
        self._pieces.drop(end)
        self._told(header.output_bytes, took_s)

    def _write_output(self, group: bytearray, offset: int, length: int) -> None:
        written = 0

        def write(data: bytes) -> None:
            nonlocal written
            if self._closed:
                raise _ClosedError
            written += len(data)
            if written > length:
                raise Refused(Reason.LENGTH, f"it gives more than the {length} bytes that its head says")
            self._part.append(data)

        try:
            self._applier.apply(group, offset, write)
        except (_ClosedError, OSError, ImportError, HeadlandError):
            raise
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "no memory to apply a patch") from error
        except Exception as error:
            # What a decoder did not foresee is the patch's fault as well: tried again, it would fail again.
            raise Refused(Reason.LIMIT, f"{type(error).__name__}: {error}") from error
        if written != length:
            raise Refused(Reason.LENGTH, f"it gives {written} bytes where its head says {length}")

    # Pieces

    def _go_on(self, found: PatchNote | None) -> PatchNote:
        """The note to go on from: the one that is here if it fits, else a new one, with the base hashed whole.

        After a restart a look at the base's inode, length and times is enough. Nothing of ours writes a kept file in
        place, whoever else does changes its times, and it was synced long before this patch began, so no cut tears it.
        What a disk forgets by itself could happen after a second hashing as well: the result's own hash finds that.
        """
        patch = self._patch
        base = self._store.path(patch.base)
        try:
            at = base.stat()
        except FileNotFoundError as error:
            raise baseless(patch) from error
        seen = (at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
        result = self.path.stat().st_size if self.path.exists() else 0
        if (
            found is not None
            and (found.artifact, found.base, found.base_seen) == (patch.artifact, patch.base, seen)
            and found.output_bytes <= result
            and found.applied_bytes <= patch.payload.length_bytes
        ):
            return found
        fresh = PatchNote(artifact=patch.artifact, base=patch.base, base_seen=seen, saves_bytes=patch.saves_bytes)
        is_whole = self._store.is_whole(patch.base, lambda: not self._closed)
        if self._closed:
            return fresh
        if not is_whole:
            self._store.doubt(patch.base)
            raise baseless(patch)
        self._write_note(fresh)
        return fresh

    def _keep(self, note: PatchNote) -> None:
        self._write_note(note)
        with self._turn:
            self._note = note
            self._header = None
            self._turn.notify_all()

    def _write_note(self, note: PatchNote) -> None:
        self._store.disk.write(note_path(self._store, self._patch.payload), encode(note))

    def _is_ahead(self) -> bool:
        return self._pieces.wants - self._note.applied_bytes >= AHEAD_BYTES

    def _end(self, header: GroupHeader) -> int:
        return self._note.applied_bytes + header.group_bytes

    def _failed(self, reason: Reason, message: str) -> PatchFailedError:
        patch = self._patch
        return PatchFailedError(patch, reason, f"patch {patch.payload.sha256[:12]}: {message}")

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def baseless(patch: Patch) -> LinkError:
    """What to raise for a base that is missing or damaged: the next plan is made for what is here."""
    return LinkError(f"the plan patches {patch.base[:12]}, which is not here whole", retryable=False)


def read_note(store: Store, payload: Payload) -> PatchNote | None:
    """How far a patch was applied; None when it was never begun. Blocking."""
    return read_note_file(note_path(store, payload))


def read_note_file(path: Path) -> PatchNote | None:
    """As `read_note`, of any patch's note."""
    try:
        with path.open("rb") as file:
            return decode(file.read(NOTE_BYTES), PatchNote, limit=NOTE_BYTES)
    except (OSError, Refused):
        return None


def held_bytes(store: Store, payload: Payload) -> int:
    """How many bytes of a patch's payload need not travel again, as far as names and lengths tell. Blocking."""
    note = read_note(store, payload)
    applied = note.applied_bytes if note is not None and result_path(store, payload).exists() else 0
    end = applied - applied % SEGMENT_BYTES
    pieces = {int(path.suffix[1:]): _length(path) for path in held_pieces(store, payload)}
    while (more := pieces.get(end // SEGMENT_BYTES, 0)) and end < payload.length_bytes:
        end += more
    end += len(read_rest(store, payload, end // SEGMENT_BYTES, min(SEGMENT_BYTES, payload.length_bytes - end)))
    return min(max(end, applied), payload.length_bytes)


def _length(path: Path) -> int:
    """0 for one that the applier has just dropped."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def forget(store: Store, payload: Payload) -> None:
    """Deletes all that a patch left: result, segments, note. Safe to repeat. Blocking."""
    store.disk.unlink(note_path(store, payload))  # first: without it nothing else is gone on from
    store.disk.unlink_all((*held_pieces(store, payload), rest_path(store, payload), result_path(store, payload)))


def result_path(store: Store, payload: Payload) -> Path:
    """Where the result grows."""
    return store.part(f"{payload.sha256}{RESULT}")


def note_path(store: Store, payload: Payload) -> Path:
    """Where it is noted how far the patch is applied."""
    return store.part(f"{payload.sha256}{NOTE}")


def spool_bytes(store: Store, payload: Payload) -> int:
    """What the segments of a payload will take on the disk at most, beyond those that are here. Blocking."""
    note = read_note(store, payload)
    left = payload.length_bytes - (note.applied_bytes if note is not None else 0)
    here = sum(path.stat().st_size for path in held_pieces(store, payload))
    return max(min(left, AHEAD_BYTES) + 2 * SEGMENT_BYTES - here, 0)
