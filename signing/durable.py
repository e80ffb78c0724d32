"""The one place where the product writes files: every effect on the disk is a step of `Disk`, in an order that a cut
cannot hurt.

What holds after a power cut, on a file system that keeps its word about fsync (ext4, xfs, btrfs, f2fs, APFS):

- once a function here has returned, its effect is durable;
- while it runs, the effect is there wholly or not at all; for `write` this means the old content or the new;
- what a cut can leave behind is an unused temporary file, which `sweep` removes; nothing else refers to it.

POSIX itself promises less: it does not order a rename after the data it names, so we fsync the file first, and it says
nothing of directory entries, so we fsync the folder last. FAT and some network file systems refuse to fsync a folder;
there the rename is only as durable as the system makes it, and we go on. A disk that lies about its cache is beyond us.

Databases are SQLite's own business; all else that must outlive a cut comes through here. A fail-point sweep hands a
`before` to `DISK` (or to a `Disk` of its own): it is called before each single effect with its name and path, and ends
the process or raises at the n-th. Before the next effect is after this one, so nothing is called after.
"""

import contextlib
import ctypes
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

TEMPORARY_PREFIX: Final = ".tmp-"
COPY_BYTES: Final = 1 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_FALLOCATE: Final = getattr(_LIBC, "fallocate64", getattr(_LIBC, "fallocate", None))  # Linux has it
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE
_FOLDER_SYNC_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM})

Before = Callable[[str, Path], None]
"""Called with the name of an effect (`write`, `fsync`, `rename`, ...) and its path, just before it happens."""


class Part:
    """A file that grows by appending: a download, a spool. Made by `Disk.open_part`.

    What was appended is durable up to the last `sync`; after a cut the tail behind it may be there, torn or absent, so
    a reader that goes on from it hashes what it finds.
    """

    def __init__(self, path: Path, before: Before) -> None:
        self.path = path
        self._before = before
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.length_bytes = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        """Adds `data` at the end. Not durable before `sync`."""
        self._before("append", self.path)
        _write_all(self._fd, data)
        self.length_bytes += len(data)

    def truncate(self, length_bytes: int) -> None:
        """Cuts the file to `length_bytes`. Not durable before `sync`."""
        self._before("truncate", self.path)
        os.ftruncate(self._fd, length_bytes)
        self.length_bytes = length_bytes

    def reserve(self, length_bytes: int) -> None:
        """Has the disk set aside what the file will take; its length stays, and a cut may forget it.

        Where the file system cannot do that, nothing happens.

        Raises:
            OSError: `ENOSPC`: there is no such room.
        """
        self._before("reserve", self.path)
        if _FALLOCATE is None or not _FALLOCATE(
            self._fd, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(max(length_bytes, 1))
        ):
            return
        code = ctypes.get_errno()
        if code == errno.ENOSPC:
            os.ftruncate(self._fd, self.length_bytes)  # what it got until there is given back
            raise OSError(code, os.strerror(code), str(self.path))

    def sync(self) -> None:
        """Makes all that was appended durable."""
        self._before("fsync", self.path)
        os.fsync(self._fd)

    def close(self) -> None:
        """Lets go of the file; idempotent. Does not sync."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Disk:
    """Durable effects on files. Blocking: in an event loop, call it from a thread.

    Args:
        before: Called before each single effect; for tests that cut the power there.
    """

    def __init__(self, before: Before | None = None) -> None:
        self.before: Before = before or _nothing

    def write(self, path: Path, data: bytes, mode: int | None = 0o600) -> None:
        """Gives `path` the content `data`: the old file or the new one, never a piece. The folder must exist.

        Args:
            path: Replaced if it exists; a symlink is replaced, not followed.
            data: The whole content.
            mode: Permissions of the new file, whatever the umask; None: as they come, for FAT, which has none to set.
        """
        temporary = self._temporary(path, data, mode)
        try:
            self.before("rename", path)
            temporary.replace(path)
        except BaseException:
            _forget(temporary)
            raise
        self.sync_dir(path.parent)

    def write_new(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """As `write`, but never replaces.

        Raises:
            FileExistsError: `path` exists; it is untouched.
        """
        temporary = self._temporary(path, data, mode)
        try:
            self.before("link", path)
            os.link(temporary, path)
            self.before("unlink", temporary)
        finally:
            _forget(temporary)
        self.sync_dir(path.parent)

    def make_dir(self, path: Path, mode: int | None = 0o700) -> None:
        """Makes the folder and those above it, with these permissions whatever the umask (None: as they come, for
        FAT); one that exists is left as it is."""
        missing = []
        folder = path
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            self.before("mkdir", each)
            with contextlib.suppress(FileExistsError):
                each.mkdir(0o777 if mode is None else mode)
                if mode is not None:
                    each.chmod(mode)
            self.sync_dir(each.parent)

    def rename(self, old: Path, new: Path) -> None:
        """Gives `old` the name `new`, replacing a file there. The content of `old` must have been synced."""
        self.before("rename", new)
        old.replace(new)
        self.sync_dir(new.parent)
        if old.parent != new.parent:
            self.sync_dir(old.parent)

    def link(self, old: Path, new: Path) -> None:
        """Gives the file `old` a second name.

        Raises:
            FileExistsError: `new` exists.
        """
        self.before("link", new)
        os.link(old, new)
        self.sync_dir(new.parent)

    def point(self, link: Path, target: str) -> None:
        """Makes the symlink `link` point at `target`, from the old target to the new in one step."""
        temporary = link.parent / f"{TEMPORARY_PREFIX}{link.name}"
        self.unlink(temporary)
        try:
            self.before("symlink", link)
            temporary.symlink_to(target)
            self.before("rename", link)
            temporary.replace(link)
        except BaseException:
            _forget(temporary)
            raise
        self.sync_dir(link.parent)

    def unlink(self, path: Path) -> None:
        """Removes the file or symlink; its absence is fine."""
        self.before("unlink", path)
        try:
            path.unlink()
        except FileNotFoundError:
            return
        self.sync_dir(path.parent)

    def unlink_all(self, paths: Iterable[Path]) -> None:
        """Removes files of one folder, one after the other; their absence is fine. A cut may leave some of them."""
        folders = set()
        for path in paths:
            self.before("unlink", path)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                folders.add(path.parent)
        for folder in folders:
            self.sync_dir(folder)

    def remove_tree(self, path: Path) -> None:
        """Removes a folder with all in it, following no symlink; its absence is fine. A cut may leave a part of it."""
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self.remove_tree(Path(entry.path))
            else:
                self.before("unlink", Path(entry.path))
                with contextlib.suppress(FileNotFoundError):
                    Path(entry.path).unlink()
        self.before("rmdir", path)
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        self.sync_dir(path.parent)

    def sync_dir(self, path: Path) -> None:
        """Makes the entries of a folder durable, where the file system can."""
        self.before("fsync-dir", path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _FOLDER_SYNC_UNSUPPORTED:
                raise
        finally:
            os.close(fd)

    def sync_file(self, path: Path, mode: int | None = None) -> None:
        """Makes the content of a file that something else wrote durable.

        Args:
            path: Of the file.
            mode: Its permissions from here on; as they are when None.
        """
        self.before("fsync", path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if mode is not None:
                os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)

    def copy(self, old: Path, new: Path) -> None:
        """Copies a file's content to a name that is free, piece by piece. A cut may leave a part of it.

        Raises:
            FileExistsError: `new` exists.
        """
        self.before("create", new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with old.open("rb") as source:
                while piece := source.read(COPY_BYTES):
                    self.before("write", new)
                    _write_all(fd, piece)
            os.fchmod(fd, old.stat().st_mode & 0o777)
            self.before("fsync", new)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.sync_dir(new.parent)

    def open_part(self, path: Path) -> Part:
        """Opens a file to append to, made when absent; its entry in the folder is durable on return."""
        fresh = not path.exists()
        if fresh:
            self.before("create", path)
        part = Part(path, self.before)
        if fresh:
            try:
                self.sync_dir(path.parent)
            except BaseException:
                part.close()
                raise
        return part

    def sweep(self, folder: Path) -> None:
        """Removes what a cut left behind in `folder`. Call it at start, before others write there.

        A folder of such a name is not ours and stays: nothing here makes one, and a stick is anybody's.
        """
        for entry in _temporaries(folder):
            if entry.is_symlink() or not entry.is_dir():
                self.unlink(entry)

    def _temporary(self, path: Path, data: bytes, mode: int | None) -> Path:
        """A synced file with this content beside `path`; none stays when that fails."""
        self.before("create", path)
        fd, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        temporary = Path(name)
        try:
            try:
                if mode is not None:
                    os.fchmod(fd, mode)
                self.before("write", path)
                _write_all(fd, data)
                self.before("fsync", path)
                os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            _forget(temporary)
            raise
        return temporary


def _nothing(effect: str, path: Path) -> None:
    """No fail point."""


def _temporaries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(folder.glob(f"{TEMPORARY_PREFIX}*"))


def _forget(temporary: Path) -> None:
    """Best effort: the failure that led here is the one to tell, and `sweep` finds what stays."""
    with contextlib.suppress(OSError):
        temporary.unlink()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


DISK: Final = Disk()
"""The real disk. The functions below are its methods, for callers that need no other."""

write = DISK.write
write_new = DISK.write_new
make_dir = DISK.make_dir
rename = DISK.rename
link = DISK.link
point = DISK.point
unlink = DISK.unlink
remove_tree = DISK.remove_tree
sync_dir = DISK.sync_dir
sync_file = DISK.sync_file
open_part = DISK.open_part
sweep = DISK.sweep
