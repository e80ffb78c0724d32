"""A stick, read without trusting it: damaged, hostile, slow, or pulled out at any byte.

Every name is opened below an open folder, one part at a time and through no link; only plain files are read, so many
bytes and not more; nothing stays open in between, so that a stick can be unmounted at any time. What its device or
file system does is a `LinkError`: plugged in again, it goes on.

A read of a bad stick may never return. Each work on it has a thread of its own that holds up neither the loop nor the
end of the agent; while one is overdue, nothing else is asked of that stick.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.kits import KIT_FILE, KITS_FOLDER, KitId, is_kit

T = TypeVar("T")

ANSWER_S: Final = 30.0
"""A stick that needs longer for a few MiB is of no use."""
NAMES_LOOKED_AT: Final = 4096
"""In the folder of kits: what else somebody put there hides no kit."""
METADATA_FOLDERS: Final = ("image", "director")
_METADATA_NAME: Final = re.compile(r"^[0-9a-z][0-9a-z._-]{0,127}\.json\Z")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHER_KIND: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EINVAL, errno.ENAMETOOLONG})

Mark = tuple[int, int, int]
"""Length, time of change and number of a file: the same as long as nobody wrote it anew."""


class MissingError(LinkError):
    """There is no such file on a stick that is there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


@dataclass
class _Outcome(Generic[T]):
    """Of a work in a thread; `is_there` and `is_overdue` belong to the loop."""

    results: list[T] = field(default_factory=list)
    error: BaseException | None = None
    is_there: bool = False
    is_overdue: bool = False


class GoneError(LinkError):
    """The stick is not there: plugged in again, it goes on."""


class Stick:
    """One folder that may hold kits: where a stick is mounted, or any other. Belongs to one event loop.

    Args:
        root: The folder.
        answer_s: How long one work on it may take.
    """

    def __init__(self, root: Path, *, answer_s: float = ANSWER_S) -> None:
        self.root = root
        self._answer_s = answer_s
        self._overdue = 0

    async def do(self, work: Callable[[int], T]) -> T:
        """Does a work in a thread of its own.

        Args:
            work: Blocks; is given the open folder, and leaves nothing open.

        Raises:
            LinkError: The stick is gone (`GoneError`: its folder is), damaged, or does not answer.
            MissingError: A file that the work opens is not there.
            Refused: What the work finds is not what may lie there.
        """
        if self._overdue:
            raise LinkError(f"the stick at {self.root} does not answer: pull it out and plug it in again")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        outcome = _Outcome[T]()

        def settle() -> None:
            outcome.is_there = True
            if outcome.is_overdue:
                self._overdue -= 1
            if done.done():
                return
            if outcome.error is not None:
                done.set_exception(outcome.error)
            else:
                done.set_result(outcome.results[0])

        def run() -> None:
            try:
                with _named_errors(self.root), _opened_root(self.root) as root:
                    outcome.results.append(work(root))
            except BaseException as error:  # whatever it is, it is told to the one who waits
                outcome.error = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle)

        # A daemon: one that hangs in a read must not keep the agent from ending, as an executor's would.
        threading.Thread(target=run, name=f"stick {self.root.name}", daemon=True).start()
        try:
            async with asyncio.timeout(self._answer_s):
                return await done
        except TimeoutError as error:
            if not outcome.is_there:
                outcome.is_overdue = True
                self._overdue += 1
            raise LinkError(f"the stick at {self.root} does not answer") from error

    async def kits(self) -> dict[KitId, Mark]:
        """The kits that lie there whole, at most `KITS_LOOKED_AT`; none where there is no folder of kits."""
        return await self.do(_find_kits)

    async def read_kit(self, kit: KitId) -> bytes:
        """`kit.json`."""
        return await self.do(lambda root: read_file(root, (KITS_FOLDER, kit, KIT_FILE), limits.KIT_BYTES))

    async def copy_metadata(self, kit: KitId, into: Path, expected: str) -> None:
        """Copies what a kit says of itself; everything later works with the copy.

        Args:
            kit: Its name.
            into: A folder of our own that holds nothing yet.
            expected: sha256 of `kit.json`, as it was when the kit was found.

        Raises:
            LinkError: As `do`; also when `kit.json` is another one by now.
            Refused: `LIMIT`: it is more than anybody signs.
            OSError: Our own disk takes no more.
        """
        content = await self.read_kit(kit)
        if digest(content) != expected:
            raise LinkError(f"{kit} is being written anew")
        await asyncio.to_thread(_write, into / KIT_FILE, content)
        files, total = 0, len(content)
        for folder in METADATA_FOLDERS:
            for name in await self._metadata_names(kit, folder):
                content = await self._read_metadata(kit, folder, name)
                files, total = files + 1, total + len(content)
                if files > limits.KIT_METADATA_FILES or total > limits.KIT_METADATA_BYTES:
                    raise Refused(
                        Reason.LIMIT,
                        f"more than {limits.KIT_METADATA_FILES} files or {limits.KIT_METADATA_BYTES} bytes of metadata",
                    )
                await asyncio.to_thread(_write, into / folder / name, content)

    async def _metadata_names(self, kit: KitId, folder: str) -> list[str]:
        def find(root: int) -> list[str]:
            return names_in(root, (KITS_FOLDER, kit, folder), limits.KIT_METADATA_FILES + 1)

        return sorted(name for name in await self.do(find) if _METADATA_NAME.match(name))

    async def _read_metadata(self, kit: KitId, folder: str, name: str) -> bytes:
        return await self.do(lambda root: read_file(root, (KITS_FOLDER, kit, folder, name), limits.METADATA_BYTES))


def read_file(root: int, path: tuple[str, ...], limit: int) -> bytes:
    """A whole plain file below an open folder. Blocking.

    Args:
        root: The open folder.
        path: One part a folder, the file's name last.
        limit: The most bytes.

    Raises:
        OSError: The stick's.
        Refused: `LENGTH`: it is longer; `METADATA`: it is no plain file.
    """
    content = read_part(root, path, 0, limit + 1)
    if len(content) > limit:
        raise Refused(Reason.LENGTH, f"{path[-1]} has more than {limit} bytes")
    return content


def read_part(root: int, path: tuple[str, ...], first: int, length: int) -> bytes:
    """So many bytes of a plain file, from `first` on; fewer at its end. Blocking; as `read_file`."""
    with _opened_file(root, path) as file:
        return _read(file, first, length)


def names_in(root: int, path: tuple[str, ...], most: int) -> list[str]:
    """The first names in a folder below an open one, as its file system orders them. Blocking.

    Raises:
        OSError: The stick's.
    """
    with _opened_folder(root, path) as folder, os.scandir(folder) as entries:
        found: list[str] = []
        for entry in entries:
            if len(found) == most:
                break
            found.append(entry.name)
        return found


def folders_in(root: int, most: int) -> list[str]:
    """The first folders in an open one; links are none. Blocking.

    Raises:
        OSError: The stick's.
    """
    with os.scandir(root) as entries:
        return list(itertools.islice((entry.name for entry in entries if entry.is_dir(follow_symlinks=False)), most))


def mark_of(root: int, path: tuple[str, ...]) -> Mark | None:
    """The mark of a plain file; None: there is none, or something else by that name. Blocking."""
    try:
        with _opened_folder(root, path[:-1]) as folder:
            found = os.stat(path[-1], dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in _OTHER_KIND:
            return None
        raise
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _find_kits(root: int) -> dict[KitId, Mark]:
    try:
        names = names_in(root, (KITS_FOLDER,), NAMES_LOOKED_AT)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if error.errno in _OTHER_KIND:
            return {}
        raise
    found = {}
    for name in sorted(name for name in names if is_kit(name))[: limits.KITS_LOOKED_AT]:
        mark = mark_of(root, (KITS_FOLDER, name, KIT_FILE))
        if mark is not None:
            found[name] = mark
    return found


@contextlib.contextmanager
def _opened_root(root: Path) -> Iterator[int]:
    try:
        folder = os.open(root, _FOLDER)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GoneError(f"the stick is gone: there is no folder {root}") from error
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _opened_folder(root: int, path: tuple[str, ...]) -> Iterator[int]:
    folder = os.dup(root)
    try:
        for name in path:
            assert name not in ("", ".", "..")
            assert "/" not in name
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _opened_file(root: int, path: tuple[str, ...]) -> Iterator[int]:
    with _opened_folder(root, path[:-1]) as folder:
        try:
            file = os.open(path[-1], _FILE, dir_fd=folder)
        except OSError as error:
            if error.errno in _OTHER_KIND:
                raise Refused(Reason.METADATA, f"{path[-1]} is no plain file") from error
            raise
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Refused(Reason.METADATA, f"{path[-1]} is no plain file")
        yield file
    finally:
        os.close(file)


def _read(file: int, first: int, length: int) -> bytes:
    pieces = []
    while length > 0 and (piece := os.pread(file, length, first)):
        pieces.append(piece)
        first += len(piece)
        length -= len(piece)
    return b"".join(pieces)


def _write(path: Path, content: bytes) -> None:
    """Not synced: the copy does not outlive the agent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextlib.contextmanager
def _named_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"there is no {error.filename} on the stick at {root}") from error
    except OSError as error:
        raise LinkError(f"the stick at {root} is gone or damaged: {error.strerror or error}") from error
