"""The content-addressed store: every file is named by the sha256 of its bytes, and is whole or not there at all.

`FOLDER/sha256/DIGEST` holds what was verified, `FOLDER/parts/` what is being fetched; `FOLDER/aside` holds room for
others on this disk. A file enters by one rename after its hash held and its bytes were synced. What may go is decided
by the caller (`collect`); the store itself deletes nothing that it is told to keep, and never deletes to make room.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from protocol.errors import Reason, Refused, StateError
from protocol.ids import Digest, digest, is_digest
from protocol.limits import MIB
from signing.durable import DISK, TEMPORARY_PREFIX, Disk

READ_BYTES: Final = MIB
KEEP_FREE_BYTES: Final = 64 * MIB  # for the log, the two databases and their journals


class NoSpaceError(StateError):
    """The disk or the store's budget is too small for what was asked; nothing was deleted to make room.

    Args:
        message: As `HeadlandError`.
        hint: Likewise.
        lacks_bytes: So much more free on the disk would do; 0 where that would not help.
        over_bytes: So much less in the store would do; 0 where that would not help.
    """

    def __init__(self, message: str, *, hint: str = "", lacks_bytes: int = 0, over_bytes: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.lacks_bytes = lacks_bytes
        self.over_bytes = over_bytes


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write on the disk of `path`."""
    return shutil.disk_usage(path).free


def taken_bytes(stat: os.stat_result) -> int:
    """What a file takes of its disk: its length, and what is set aside for it beyond its last block."""
    block = stat.st_blksize or 4096
    return stat.st_size + max(stat.st_blocks * 512 - -(-stat.st_size // block) * block, 0)


class Store:
    """Artifacts and manifests on the disk. Blocking: in an event loop, call it from a thread.

    Args:
        folder: Made when absent.
        disk: Through which every effect goes.
        keep_free_bytes: Left on the disk for everything else.
        budget_bytes: The most that the store may hold; None leaves it to the disk.
        free: Tells the free bytes of a folder's disk.
        sweep: Removes what a cut left behind. Not for one who looks beside an agent that works.
    """

    def __init__(
        self,
        folder: Path,
        *,
        disk: Disk = DISK,
        keep_free_bytes: int = KEEP_FREE_BYTES,
        budget_bytes: int | None = None,
        free: Callable[[Path], int] = free_bytes,
        sweep: bool = True,
    ) -> None:
        self.disk = disk
        self.folder = folder
        self._files = folder / "sha256"
        self._parts = folder / "parts"
        self._aside = folder / "aside"
        self._aside_bytes = 0
        self._doubted: set[Digest] = set()
        self._keep_free_bytes = keep_free_bytes
        self._budget_bytes = budget_bytes
        self._free = free
        for each in (self._files, self._parts):
            disk.make_dir(each)
            if sweep:
                with contextlib.suppress(OSError):  # a disk that takes no writes now still has what is to serve
                    disk.sweep(each)
        if sweep and self._aside.exists():  # it was for something that a cut has ended
            with contextlib.suppress(OSError):
                disk.unlink(self._aside)

    def path(self, name: Digest) -> Path:
        """Where the artifact lies, or would lie."""
        assert is_digest(name)
        return self._files / name

    def part(self, name: str) -> Path:
        """Where the unfinished file `name` lies, or would lie."""
        assert "/" not in name and not name.startswith(".")
        return self._parts / name

    def has(self, name: Digest, length_bytes: int | None = None) -> bool:
        """Whether the artifact is there, with that length. Cheap: does not read it."""
        try:
            found = self.path(name).stat().st_size
        except FileNotFoundError:
            return False
        return length_bytes is None or found == length_bytes

    def is_whole(self, name: Digest, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Whether the artifact is there and its bytes still have its hash. Reads all of it.

        Args:
            name: Of the artifact.
            go_on: Asked now and then; when it says no, so does this.
        """
        try:
            return _hash_file(self.path(name), go_on) == name
        except OSError:  # absent, or a disk that no longer reads it
            return False

    def is_file(self, part: Path, name: Digest, length_bytes: int) -> bool:
        """Whether an unfinished file is all of an artifact. Reads it only when its length fits."""
        try:
            return part.stat().st_size == length_bytes and _hash_file(part) == name
        except OSError:
            return False

    def doubt(self, name: Digest) -> None:
        """Does not count on an artifact that `is_whole` denied, until this store is opened again or gets it anew.

        It is not deleted: what runs may be better off with it than without, and a disk that does not read it now may
        do so later.
        """
        self._doubted.add(name)

    def can_count_on(self, name: Digest) -> bool:
        """Whether the artifact is there and not doubted. Cheap: does not read it."""
        return name not in self._doubted and self.has(name)

    def digests(self) -> tuple[Digest, ...]:
        """All that is kept and not doubted, in no order that means anything."""
        return tuple(
            sorted(e.name for e in os.scandir(self._files) if is_digest(e.name) and e.name not in self._doubted)
        )

    def read(self, name: Digest, limit: int) -> bytes:
        """The bytes of a small artifact, hashed again.

        Raises:
            StateError: It is not there.
            Refused: `HASH`, `LENGTH`: it is not what it was.
        """
        try:
            with self.path(name).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise StateError(f"{name[:12]} is not in the store: {error}") from error
        if len(data) > limit:
            raise Refused(Reason.LENGTH, f"{name[:12]} in the store is longer than {limit} bytes")
        if digest(data) != name:
            raise Refused(Reason.HASH, f"{name[:12]} in the store was changed")
        return data

    def put(self, data: bytes) -> Digest:
        """Keeps `data`, durably; again changes nothing."""
        name = digest(data)
        if not self.is_whole(name):
            self.disk.write(self.path(name), data, 0o444)
        return name

    def adopt(self, part: Path, name: Digest, length_bytes: int, hashed: str | None = None) -> None:
        """Moves a fetched file in, if it is what it should be; durable on return. A file that is not is deleted.

        Args:
            part: The file.
            name: Its digest, signed.
            length_bytes: Likewise.
            hashed: Its sha256 where whoever wrote it hashed every byte on the way; else it is read.

        Raises:
            Refused: `LENGTH`, `HASH`.
            OSError: The disk does not read it, and it is deleted, or does not move it.
        """
        found = part.stat().st_size
        try:
            actual = (hashed or _hash_file(part)) if found == length_bytes else None
        except OSError:
            self.disk.unlink(part)  # kept, it would be gone on from for ever
            raise
        if actual != name:
            self.disk.unlink(part)
            if actual is None:  # not even hashed
                raise Refused(Reason.LENGTH, f"artifact {name[:12]} came as {found} bytes; {length_bytes} are signed")
            raise Refused(Reason.HASH, f"artifact {name[:12]} came with the hash {actual[:12]}")
        self.disk.sync_file(part, 0o444)
        self.disk.rename(part, self.path(name))
        self._doubted.discard(name)

    def discard(self, name: Digest) -> None:
        """Deletes an artifact whose bytes were found changed."""
        self.disk.unlink(self.path(name))

    def used_bytes(self) -> int:
        """What artifacts and parts take."""
        return sum(
            taken_bytes(entry.stat(follow_symlinks=False))
            for folder in (self._files, self._parts)
            for entry in os.scandir(folder)
        )

    def check_space(self, need_bytes: int) -> None:
        """Holds a planned fetch against disk and budget.

        Args:
            need_bytes: What will be written at the peak, beyond what lies here now.

        Raises:
            NoSpaceError: With both numbers.
        """
        self._check_free(need_bytes + self._aside_bytes - self._held_aside())
        used = self.used_bytes()
        if self._budget_bytes is not None and used + need_bytes > self._budget_bytes:
            raise NoSpaceError(
                f"{need_bytes} bytes are needed on top of {used}; the budget is {self._budget_bytes}",
                hint="raise the store's budget in the settings",
                over_bytes=used + need_bytes - self._budget_bytes,
            )

    def set_aside(self, length_bytes: int) -> None:
        """Holds room on this disk for what others are about to write there; it counts against no budget of the store.

        A cut forgets it. Where the file system holds none, `check_space` counts it all the same.

        Args:
            length_bytes: All that is held from now on; 0 gives it back.

        Raises:
            NoSpaceError: There is not so much, and nothing is held.
        """
        self._aside_bytes = 0
        if self._aside.exists():
            self.disk.unlink(self._aside)
        if not length_bytes:
            return
        self._check_free(length_bytes)
        try:
            with self.disk.open_part(self._aside) as part:
                part.reserve(length_bytes)
        except OSError as error:
            self.disk.unlink(self._aside)
            if error.errno != errno.ENOSPC:
                raise
            raise NoSpaceError(
                f"the disk has no room for the {length_bytes} bytes that an engine will take",
                hint="free space on the disk of the state folder",
                lacks_bytes=length_bytes,
            ) from error
        self._aside_bytes = length_bytes

    def _check_free(self, need_bytes: int) -> None:
        free = self._free(self._files) - self._keep_free_bytes
        if need_bytes > free:
            raise NoSpaceError(
                f"{need_bytes} bytes are needed, {max(free, 0)} are free beside the {self._keep_free_bytes} kept back",
                hint="free space on the disk of the state folder",
                lacks_bytes=need_bytes - free,
            )

    def _held_aside(self) -> int:
        try:
            return min(taken_bytes(self._aside.stat()), self._aside_bytes)
        except FileNotFoundError:
            return 0

    def collect(self, keep: Collection[Digest], keep_parts: Collection[str] = ()) -> int:
        """Deletes what is not to be kept; safe to repeat.

        Args:
            keep: Digests.
            keep_parts: Of the parts that a later fetch goes on from, their names up to the first dot.

        Returns:
            Bytes given back.
        """
        freed = 0
        for folder, kept in ((self._files, keep), (self._parts, keep_parts)):
            for entry in list(os.scandir(folder)):
                if entry.name.partition(".")[0] in kept or entry.name.startswith(TEMPORARY_PREFIX):
                    continue
                freed += entry.stat(follow_symlinks=False).st_size
                if entry.is_dir(follow_symlinks=False):  # none of ours; left there, it would end every cleaning
                    self.disk.remove_tree(Path(entry.path))
                else:
                    self.disk.unlink(Path(entry.path))
        return freed


def _hash_file(path: Path, go_on: Callable[[], bool] = lambda: True) -> str | None:
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_BYTES):
            hasher.update(chunk)
            if not go_on():
                return None
    return hasher.hexdigest()
