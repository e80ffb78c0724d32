"""Frames that a camera program writes into a folder.

The contract with that program: write under another name in the same folder (a leading dot, or an ending that is no
frame's) and rename, or write in place and close. Names are taken in their order, so a camera numbers them. What lies
there when the machine starts is taken up. At most so many wait: of more, the oldest are deleted and counted, as a
machine that cannot keep up wants to know what is before it now.

A file leaves the folder only when every result of it is durable. With the results it is marked as done, in one
transaction: a file that a power cut left here all the same is only removed then, so that a frame has its rows once. The
mark goes when the file cannot come back: the folder was synced without it.
"""

import asyncio
import contextlib
import heapq
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from device.cancelling import cancel
from device.inference.frames import FRAME_BYTES, SUFFIXES, DoneFrames, Frame, Mark, mark_of, name_of, plain_of
from device.supervision import keep_up
from protocol.errors import StateError
from signing import durable

_log = logging.getLogger(__name__)

DONE: Final = "done"
_FORGET_AT: Final = 64  # marks of files that are gone: one sync of the folder for so many frames
_SETTLED_S: Final = 2.0  # a file that nobody closed while we looked, and that has been still for so long, is whole
_ENDINGS: Final = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}


class FolderSource:
    """Implements `device.inference.frames.FrameSource`. Belongs to one event loop.

    Args:
        folder: Made when it is not there.
        marks: Of the frames that are done.
        waiting: The most frames that wait.
        keep: Whether frames move to `done/` instead of being deleted.
        clock: Seconds that only ever rise; the arrival of a frame is told by it.
        rescan_s: How often the folder is read as a whole, for what the watch has missed.
        forget_at: So many marks of files that are gone are let go of together.
    """

    def __init__(
        self,
        folder: Path,
        marks: DoneFrames,
        *,
        waiting: int = 1000,
        keep: bool = False,
        clock: Callable[[], float] = time.monotonic,
        rescan_s: float = 2.0,
        forget_at: int = _FORGET_AT,
    ) -> None:
        self._folder = folder
        self._marks = marks
        self._forget_at = forget_at
        self._gone: set[Mark] = set()  # done, and their files removed: what comes by these names now is a new frame
        self._forgetting = asyncio.Lock()
        self._most = waiting
        self._keep = keep
        self._clock = clock
        self._rescan_s = rescan_s
        self._heap: list[str] = []
        self._arrived: dict[str, float] = {}  # of those that wait
        self._taken: set[str] = set()  # given, and not yet finished
        self._news = asyncio.Event()
        self._dropped = 0
        self._observer: BaseObserver | None = None
        self._rescanner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Watches the folder, and takes up what lies there."""
        await asyncio.to_thread(self._prepare)
        self._gone |= await asyncio.to_thread(self._without_file, list(self._marks.done_frames.items()))
        await self._forget()
        loop = asyncio.get_running_loop()
        observer = Observer()
        observer.schedule(_Watch(loop, self._arrive), str(self._folder), recursive=False)
        try:
            await asyncio.to_thread(observer.start)
            self._observer = observer
        except OSError as error:
            # The system has no watch left to give: reading the folder finds the frames too, only later.
            _log.warning("the frame folder cannot be watched, it is read every %g s: %s", self._rescan_s, error)
        await self._rescan()
        self._rescanner = loop.create_task(
            keep_up(
                "reading the frame folder",
                self._keep_rescanning,
                monotonic=self._clock,
                sleep=asyncio.sleep,
                random=lambda: 1.0,  # no other machine waits for the same
            )
        )

    @property
    def dropped(self) -> int:
        """As in the port."""
        return self._dropped

    @property
    def waiting(self) -> int:
        """Frames that lie there and were not taken yet."""
        return len(self._heap)

    async def take(self) -> Frame:
        """As in the port."""
        while True:
            while not self._heap:
                self._news.clear()
                await self._news.wait()
            name = heapq.heappop(self._heap)
            arrived_s = self._arrived.pop(name)
            self._taken.add(name)
            try:
                data = await asyncio.to_thread(_read, self._folder / name)
            except FileNotFoundError:
                self._taken.discard(name)  # whoever wrote it took it away
                continue
            except OSError as error:
                # Not a plain file, too large, or the disk cannot read it: it would be so the next time too.
                _log.warning("frame %s is dropped: %s", name, error)
                self._dropped += 1
                await self._delete(name)
                continue
            except BaseException:
                self._taken.discard(name)
                raise
            mark = mark_of(name, data)
            frame = Frame(name, SUFFIXES[_suffix(name)], data, arrived_s, mark)
            if mark in self._gone:
                await self._forget()
            elif self._marks.is_done(mark):
                await self.finish(frame)
                continue
            return frame

    async def finish(self, frame: Frame) -> None:
        """As in the port."""
        try:
            await asyncio.to_thread(self._remove, frame.name, keep=self._keep)
        except OSError as error:
            # It stays listed as taken, so that it is not inferred over and over in this life.
            _log.warning("frame %s cannot be removed: %s", frame.name, error)
            return
        self._let_go(frame.name)
        if len(self._gone) >= self._forget_at:
            await self._forget()

    def give_back(self, frame: Frame) -> None:
        """As in the port."""
        if frame.name in self._taken:
            self._taken.discard(frame.name)
            self._arrive(frame.name)

    async def close(self) -> None:
        """As in the port."""
        if self._rescanner is not None:
            await cancel(self._rescanner)
            self._rescanner = None
        if self._observer is not None:
            observer, self._observer = self._observer, None
            await asyncio.to_thread(_end, observer)
        await self._forget()

    async def _forget(self) -> None:
        """Makes durable that files are gone, and lets go of their marks. What fails is tried the next time."""
        async with self._forgetting:
            gone = list(self._gone)
            if not gone:
                return
            try:
                await asyncio.to_thread(self._sync)
                await self._marks.forget_frames(gone)
            except (OSError, StateError) as error:
                _log.warning("marks of frames stay: %s", error)
                return
            self._gone.difference_update(gone)

    def _without_file(self, marks: Sequence[Mark]) -> set[Mark]:
        return {mark for mark in marks if not os.path.lexists(self._folder / name_of(mark))}

    def _sync(self) -> None:
        if self._keep:
            with contextlib.suppress(FileNotFoundError):  # whoever took it away has what was in it
                durable.sync_dir(self._folder / DONE)
        durable.sync_dir(self._folder)

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._keep:
            (self._folder / DONE).mkdir(exist_ok=True)

    def _arrive(self, name: str) -> None:
        """A whole file is there. Called in the loop."""
        if _suffix(name) not in SUFFIXES or name.startswith(".") or name in self._arrived or name in self._taken:
            return
        self._arrived[name] = self._clock()
        heapq.heappush(self._heap, name)
        if len(self._heap) > self._most:
            oldest = heapq.heappop(self._heap)
            del self._arrived[oldest]
            self._taken.add(oldest)
            self._dropped += 1
            task = asyncio.ensure_future(self._delete(oldest))
            task.add_done_callback(_report)
        self._news.set()

    async def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._remove, name, keep=False)
            self._let_go(name)

    def _let_go(self, name: str) -> None:
        self._taken.discard(name)
        plain = plain_of(name)
        content = self._marks.done_frames.get(plain)
        if content is not None:
            self._gone.add((plain, content))

    def _remove(self, name: str, *, keep: bool) -> None:
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            if not keep:
                path.unlink()
                return
            try:
                path.rename(self._folder / DONE / name)
            except FileNotFoundError:
                # A person who empties `done/` may take the folder itself, and the frame must not be one that is gone.
                (self._folder / DONE).mkdir(exist_ok=True)
                path.rename(self._folder / DONE / name)

    async def _keep_rescanning(self) -> None:
        while True:
            await asyncio.sleep(self._rescan_s)
            await self._rescan()

    async def _rescan(self) -> None:
        try:
            names = await asyncio.to_thread(_whole_files, self._folder, frozenset(self._arrived) | self._taken)
        except OSError as error:
            _log.warning("the frame folder cannot be read: %s", error)
            return
        for name in sorted(names):
            self._arrive(name)


class _Watch(FileSystemEventHandler):
    """Runs in watchdog's thread; hands names over to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, arrive: Callable[[str], None]) -> None:
        self._loop = loop
        self._arrive = arrive

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Tells of files that were closed after writing, or renamed into the folder."""
        match event:
            case FileClosedEvent():
                path = Path(os.fsdecode(event.src_path))
            case FileMovedEvent():
                path = Path(os.fsdecode(event.dest_path))
            case _ if event.event_type == "created" and not event.is_directory:
                # A rename from outside the folder looks like this too, but so does the first byte of a long write.
                path = Path(os.fsdecode(event.src_path))
                if not _ends_well(path):
                    return
            case _:
                return
        # The loop may have closed while the observer was ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrive, path.name)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _open_plain(path: Path) -> BinaryIO:
    """Opens a plain file: not through a link, and not a pipe that would hold us until somebody writes.

    Raises:
        OSError: It is something else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(fd, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        file.close()
        raise OSError("it is no plain file")
    return cast("BinaryIO", file)


def _read(path: Path) -> bytes:
    with _open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > FRAME_BYTES:
            raise OSError(f"{size} bytes: at most {FRAME_BYTES} are read")
        return file.read(size)


def _whole_files(folder: Path, known: frozenset[str]) -> list[str]:
    """Frames in the folder that nobody writes any more, as far as can be told."""
    now = time.time()  # compared with the file system's own stamps, which are of this clock
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in known or _suffix(entry.name) not in SUFFIXES or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                age_s = now - entry.stat(follow_symlinks=False).st_mtime
                # A stamp from the future is a clock's fault, not a sign of writing.
                if age_s < 0 or age_s >= _SETTLED_S or _ends_well(Path(entry.path)):
                    found.append(entry.name)
    return found


def _ends_well(path: Path) -> bool:
    """Whether the file ends as a whole one of its kind does; no for kinds that have no such end."""
    ending = _ENDINGS.get(path.suffix.lower())
    if ending is None:
        return False
    try:
        with _open_plain(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size < len(ending):
                return False
            file.seek(-len(ending), os.SEEK_END)
            return file.read() == ending
    except OSError:
        return False


def _end(observer: BaseObserver) -> None:
    observer.stop()
    observer.join(5.0)


def _report(task: "asyncio.Future[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.warning("a dropped frame could not be removed: %s", task.exception())
