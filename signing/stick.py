"""A folder on a stick, to read from and write to: held open, so that what lies there cannot lead anywhere else.

A stick is anybody's. A symlink on it, or one that takes a folder's place meanwhile, must not have us write into our own
state, and a file in it may be a pipe, or endless. So each folder is opened from the one above it without following
links, everything goes by the open folder, and only regular files are read, up to a length. The file system may be FAT:
no permissions are set, and a folder that cannot be synced is as durable as the system makes it.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from protocol.errors import LinkError, Reason, Refused, StateError
from signing.durable import DISK, TEMPORARY_PREFIX, Disk, Part

FILES_LOOKED_AT: Final = 100_000  # of one folder: a stick of any size in pieces of some kilobytes
CHUNK_BYTES: Final = 1 << 20
NO_LOCKS: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
_NAME: Final = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9])?\Z")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def one_part(name: str) -> str:
    """Returns the name if it is that of an entry of one folder, and no way out of it: it may come from a server.

    Raises:
        Refused: `METADATA`.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise Refused(Reason.METADATA, f"{name!r:.80} is no name of a file on a stick")
    return name


class StickFolder:
    """See the module. Made by `stick_folder`. Blocking; raises OSError as the stick does: full, read-only, gone."""

    def __init__(self, fd: int, disk: Disk) -> None:
        self._fd = fd
        self._disk = disk
        self._path = Path(f"/proc/self/fd/{fd}")

    def names(self, suffix: str = "") -> list[str]:
        """Names of the entries that end so, in whatever case the file system gives them; sorted."""
        with os.scandir(self._fd) as entries:
            found = [entry.name for entry, _ in zip(entries, range(FILES_LOOKED_AT), strict=False)]
        return sorted(name for name in found if _NAME.match(name) and name.lower().endswith(suffix))

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A file's whole content.

        Raises:
            Refused: `LENGTH`: it is longer; `METADATA`: it is no regular file.
        """
        fd = os.open(one_part(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fd)
        with os.fdopen(fd, "rb") as reader:
            if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
                raise Refused(Reason.METADATA, f"{name} is no file")
            data = reader.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise Refused(Reason.LENGTH, f"{name} is longer than {limit_bytes} bytes")
        return data

    def length(self, name: str) -> int | None:
        """How long a file is; None where there is none, or no regular one."""
        try:
            found = os.stat(one_part(name), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content, piece by piece.

        Raises:
            Refused: `METADATA`: it is no regular file.
        """
        fd = os.open(one_part(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fd)
        with os.fdopen(fd, "rb", buffering=0) as reader:
            if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
                raise Refused(Reason.METADATA, f"{name} is no file")
            while piece := reader.read(CHUNK_BYTES):
                yield piece

    def _at(self, name: str) -> Path:
        return self._path / one_part(name)

    def part(self, name: str) -> Part:
        """A file to append to, made when absent. What stands there and is no file goes."""
        if self.length(name) is None:
            self._disk.unlink(self._at(name))
        return self._disk.open_part(self._at(name))

    def settle(self, old: str, new: str) -> None:
        """Gives a file that was synced its name, in place of what had it."""
        self._disk.rename(self._at(old), self._at(new))

    def write(self, name: str, data: bytes) -> None:
        """A file with this content: wholly there, or not at all."""
        self._disk.write(self._at(name), data, mode=None)

    def remove(self, name: str) -> None:
        """Removes a file; its absence is fine."""
        self._disk.unlink(self._at(name))

    def sweep(self) -> None:
        """Removes what a pulled stick left half written by us."""
        self._disk.sweep(self._path)

    def free_bytes(self) -> int | None:
        """What may still be written there; None where the file system does not say (a driver of FAT that counts
        nothing)."""
        found = os.statvfs(self._fd)
        return found.f_bavail * found.f_frsize if found.f_blocks else None

    @property
    def device(self) -> int:
        """Number of the file system that it is on."""
        return os.fstat(self._fd).st_dev

    def alone(self) -> None:
        """Keeps other commands of ours from writing here too, until this folder is closed.

        Raises:
            StateError: One does.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError("another command is writing to this stick", hint="wait for its end") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    @contextmanager
    def below(self, name: str, *, make: bool = False) -> Iterator["StickFolder"]:
        """A folder in this one.

        Args:
            name: Of it.
            make: Make it when it is absent.

        Raises:
            FileNotFoundError: It is absent.
            OSError: It is no folder, but a link for one.
        """
        if make:
            try:
                os.stat(one_part(name), dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                self._disk.make_dir(self._at(name), mode=None)
        fd = os.open(one_part(name), _FOLDER, dir_fd=self._fd)
        try:
            yield StickFolder(fd, self._disk)
        finally:
            os.close(fd)


@contextmanager
def stick_folder(path: Path, *, disk: Disk = DISK) -> Iterator[StickFolder]:
    """Opens the place where a stick is mounted, for as long as the block lasts. The path itself is ours and may be a
    link.

    Raises:
        OSError: Nothing is there, or no folder.
    """
    fd = os.open(path, _FOLDER & ~os.O_NOFOLLOW)
    try:
        yield StickFolder(fd, disk)
    finally:
        os.close(fd)


@contextmanager
def stick_errors(stick: Path) -> Iterator[None]:
    """Says what a stick does wrong in the words of whoever holds it: what was to be written, not how it is held open.

    Raises:
        LinkError: It is gone.
        StateError: It is full, not to be written to, or something else lies in the way.
    """
    try:
        yield
    except OSError as error:
        name = Path(str(error.filename or "a file")).name.removeprefix(TEMPORARY_PREFIX)
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                raise StateError(f"{stick} is full", hint="make room; the same again goes on") from error
            case errno.EROFS | errno.EACCES | errno.EPERM:
                raise StateError(f"{stick} cannot be written to: {error.strerror}", hint="is it locked?") from error
            case errno.EISDIR | errno.ENOTDIR | errno.ELOOP | errno.EEXIST | errno.ENOTEMPTY:
                raise StateError(
                    f"{stick}: something else lies where {name} belongs ({error.strerror})", hint="move it away"
                ) from error
            case _:
                raise LinkError(
                    f"{stick} is gone, or fails: {error.strerror or error}",
                    hint="plug it in; the same again goes on",
                ) from error
