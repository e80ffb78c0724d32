"""Finds sticks: folders that hold kits, below the configured folders or named by hand.

The kernel tells of each mount by way of /proc/self/mountinfo, and watchdog of each new folder; a slow look finds the
rest. The kits of one stick hold up nobody who looks for those of another.
"""

import asyncio
import contextlib
import logging
import os
import re
import select
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from device.kits.folder import ANSWER_S, GoneError, Mark, Stick, folders_in
from protocol.errors import LinkError, Refused
from protocol.kits import KITS_FOLDER, RESULTS_FOLDER, KitId

_log = logging.getLogger(__name__)

MOUNTS: Final = Path("/proc/self/mountinfo")
MOUNTS_BYTES: Final = 1 << 20
FOLDERS: Final = 64  # that are looked into below one
LOOKED_INTO: Final = 256  # in one look: a data disk below /mnt has any number
AT_ONCE: Final = 8  # each takes a thread
NAMED: Final = 16  # by a person; the oldest goes
DEPTH: Final = 2  # of a stick below a configured folder: /run/media/PERSON/STICK
SETTLED_S: Final = 0.3  # a mount comes with a handful of events
WATCHING_S: Final = 2.0  # after which a new watch surely watches
LOOK_S: Final = 30.0  # what no event told of is found by then
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")
CAREFUL: Final = ("nosuid", "nodev", "noexec")


@dataclass(frozen=True)
class Found:
    """A kit on a stick. `mark` changes when `kit.json` is written anew."""

    stick: Stick
    kit: KitId
    mark: Mark


@dataclass
class _Look:
    """One look at everything."""

    sticks: dict[Path, Stick] = field(default_factory=dict)
    troubles: dict[Path, str] = field(default_factory=dict)
    carriers: dict[Path, int] = field(default_factory=dict)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class Finder:
    """Watches for sticks. Belongs to one event loop.

    Args:
        folders: Sticks are mounted in them, or one below.
        mounts: What the kernel says of mounts.
        answer_s: How long a stick may take for one answer.
    """

    def __init__(self, folders: Iterable[Path], *, mounts: Path = MOUNTS, answer_s: float = ANSWER_S) -> None:
        self._folders = tuple(folders)
        self._answer_s = answer_s
        self._mounts = mounts
        self._by_hand: dict[Path, None] = {}
        self._sticks: dict[Path, Stick] = {}
        self._told: dict[Path, str] = {}  # what was logged of a mount
        self._news = asyncio.Event()
        self._observer: BaseObserver | None = None
        self._watched: set[Path] = set()
        self._kernel: _Mounts | None = None
        self.troubles: dict[Path, str] = {}
        self.carriers: dict[Path, int] = {}
        """Where results may be written, and the number of the file system there: folders with a folder of ours in them
        that are mounted, or that a person named. What lies in an empty mount point lies on our own disk."""

    async def start(self) -> None:
        """Watches from now on. What the system does not let be watched is found by looking."""
        try:
            self._kernel = _Mounts(self._mounts, asyncio.get_running_loop(), self._news.set)
        except OSError as error:
            _log.info("the kernel tells of no mounts: %s", error)

    async def close(self) -> None:
        """Watches no more."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
        observer, self._observer = self._observer, None
        self._watched.clear()
        if observer is not None:
            await asyncio.to_thread(_end, observer)

    def add(self, root: Path) -> None:
        """A person named a folder: it counts as a stick until the agent ends, or others were named after it."""
        self._by_hand.pop(root, None)
        self._by_hand[root] = None
        while len(self._by_hand) > NAMED:
            del self._by_hand[next(iter(self._by_hand))]
        self._news.set()

    def wake(self) -> None:
        """Something may have changed."""
        self._news.set()

    async def news(self) -> None:
        """Returns when something may have changed, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._news.wait()
                await asyncio.sleep(SETTLED_S)
        self._news.clear()

    async def look(self) -> tuple[Found, ...]:
        """The kits that are there now. A stick that cannot be read is among `troubles`."""
        this = _Look()
        looks = [self._look_into(root, 0, this) for root in self._by_hand]
        looks += [self._look_into(folder, DEPTH, this) for folder in self._folders]
        found = {(one.stick.root, one.kit): one for each in await asyncio.gather(*looks) for one in each}
        self._sticks = this.sticks
        for root, trouble in this.troubles.items():
            if self.troubles.get(root) != trouble:
                _log.warning("kits: %s", trouble)
        self.troubles, self.carriers = this.troubles, this.carriers
        await asyncio.to_thread(self._tell_mounts, {root for root, _ in found})
        return tuple(found.values())

    async def _look_into(self, root: Path, depth: int, this: _Look) -> list[Found]:
        """The kits in a folder; where it has no folder of ours, those in the folders below it.

        Nothing is looked for in the depths of a mount: what a stick has for us lies at its top.
        """
        if len(this.sticks) >= LOOKED_INTO:
            return []
        stick = this.sticks.setdefault(root, self._sticks.get(root) or Stick(root, answer_s=self._answer_s))
        try:
            async with this.turns:
                if root in self._folders and root not in self._watched:
                    loop = asyncio.get_running_loop()
                    await stick.do(lambda _: self._watch(root, loop))
                below, is_ours, device, is_mounted = await stick.do(_look_at)
                if is_ours and (is_mounted or root in self._by_hand):
                    this.carriers[root] = device
                if is_ours or not depth:
                    return [Found(stick, kit, mark) for kit, mark in (await stick.kits()).items()]
        except GoneError:
            return []
        except (LinkError, Refused) as error:
            this.troubles[root] = error.message
            return []
        if is_mounted and depth < DEPTH:
            return []
        deeper = []
        for name in below:
            if _can_be_shown(name):
                deeper.append(self._look_into(root / name, depth - 1, this))
            else:
                shown = os.fsencode(name).decode(errors="replace")
                this.troubles[root / name] = f"{root / shown} is not looked into: its name is no UTF-8"
        return [one for each in await asyncio.gather(*deeper) for one in each]

    def _watch(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        """Has watchdog tell of what is made in a folder. Blocking."""
        self._watched.add(folder)
        try:
            if self._observer is None:
                self._observer = Observer()
                self._observer.start()
            self._observer.schedule(_Watch(loop, self._news.set), str(folder), recursive=False)
            # It begins to watch in a thread of its own, some time after this: what came before that is looked for.
            loop.call_soon_threadsafe(loop.call_later, WATCHING_S, self._news.set)
        except OSError as error:
            _log.info("%s is not watched, it is looked at every %g s: %s", folder, LOOK_S, error)

    def _tell_mounts(self, roots: set[Path]) -> None:
        """Says once how a stick is mounted less carefully than it could be: kits need none of it. Blocking."""
        mounted = {root: options for root, options in mounts_in(self._mounts).items() if root in roots}
        for root, options in mounted.items():
            lacking = ", ".join(option for option in CAREFUL if option not in options)
            if lacking and self._told.get(root) != lacking:
                _log.warning("the stick at %s is mounted without %s, and kits need none of it", root, lacking)
            self._told[root] = lacking
        for root in self._told.keys() - mounted.keys():
            del self._told[root]


def _look_at(folder: int) -> tuple[list[str], bool, int, bool]:
    """The folders in an open one, whether one is ours, the file system's number, and whether it begins here."""
    device = os.fstat(folder).st_dev
    is_ours = False
    for name in (KITS_FOLDER, RESULTS_FOLDER):
        with contextlib.suppress(FileNotFoundError):
            is_ours |= stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return folders_in(folder, FOLDERS), is_ours, device, os.stat("..", dir_fd=folder).st_dev != device


def _can_be_shown(name: str) -> bool:
    """Whether a name is UTF-8: everything that people and programs are told is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Mounts:
    """Calls whenever anything is mounted or unmounted.

    Args:
        path: /proc/self/mountinfo, whose change `poll` tells as an exceptional condition.
        loop: Calls in it.
        tell: Is called.
    """

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop, tell: Callable[[], None]) -> None:
        self._loop = loop
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("rb", buffering=0))
            # Of its own: the loop's would call it readable all the time.
            self._poll = stack.enter_context(select.epoll())
            self._poll.register(file.fileno(), select.EPOLLPRI)
            self._poll.poll(0)  # that there are mounts is no news
            loop.add_reader(self._poll.fileno(), self._heard)
            self._tell = tell
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Tells no more."""
        self._loop.remove_reader(self._poll.fileno())
        self._stack.close()

    def _heard(self) -> None:
        self._poll.poll(0)
        self._tell()


class _Watch(FileSystemEventHandler):
    """Runs in watchdog's thread.

    Args:
        loop: Calls in it.
        tell: Is called for each change in the folder.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[], None]) -> None:
        self._loop = loop
        self._tell = tell

    def on_any_event(self, event: FileSystemEvent) -> None:
        """As in watchdog. Our own looks open and close folders, which is no news."""
        if event.event_type in ("created", "moved", "deleted"):
            with contextlib.suppress(RuntimeError):  # the loop may have closed meanwhile
                self._loop.call_soon_threadsafe(self._tell)


def mounts_in(path: Path = MOUNTS) -> dict[Path, frozenset[str]]:
    """Mount points and their options; where several lie over each other, the last one's. Blocking."""
    try:
        with path.open("rb") as file:
            lines = file.read(MOUNTS_BYTES).splitlines()
    except OSError:
        return {}
    fields = [line.split(b" ") for line in lines]
    return {
        Path(os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), one[4]))): frozenset(
            os.fsdecode(one[5]).split(",")
        )
        for one in fields
        if len(one) > 5
    }


def _end(observer: BaseObserver) -> None:
    observer.stop()
    observer.join(5.0)
