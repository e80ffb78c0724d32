"""The plug of one computer: pulled before a single effect on its disk, or at any moment; then nothing works any more.

Which computer does something is told by the context of its tasks, so that many run in one process. Effects are those of
`signing.durable` and the transactions of SQLite: before each, and after the commit of each.
"""

import asyncio
import contextlib
import contextvars
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.simulation.unsynced import Unsynced

NEVER = 1 << 60
SCRATCH = "headland-fleet-"
"""How the folders of plays are named, with letters by chance behind."""
OPEN_FILES = "/proc/self/fd/"
"""By way of which sticks are written to; no effect of a machine on its own disk goes that way."""


class PowerCut(BaseException):
    """No code of the product may catch it and go on."""


class Plug:
    """One life of one computer.

    Args:
        owner: Whose life.
        at: The effect that it ends before, counted from 0.
        on_cut: Told why, once.
        folder: Of which a cut may leave no more than what was synced; None: it is a process that ends, not a computer.
    """

    def __init__(self, owner: Any, at: int, on_cut: Callable[[str], None], folder: Path | None = None) -> None:
        self.owner = owner
        self.at = at
        self.effects = 0
        self.dead = False
        self._on_cut = on_cut
        self._connections: list[sqlite3.Connection] = []
        self._synced: dict[Path, int] = {}
        self._disk = Unsynced(folder) if folder is not None else None
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """All that this life has begun, in order."""

    def before(self, effect: str, path: Path | None = None) -> None:
        """As `signing.durable.Before`."""
        if not self.dead and self.effects >= self.at:
            self.cut(f"before {effect} {_kind(path)}".rstrip())
        self.check()
        self.effects += 1
        if path is not None and effect == "append":
            self._synced.setdefault(path, path.stat().st_size)
        elif path in self._synced and effect == "fsync":
            self._synced[path] = path.stat().st_size

    def synced(self, fd: int) -> None:
        """A file or a folder was synced just now."""
        if self._disk is not None:
            self._disk.synced(fd)

    def check(self) -> None:
        """Raises when there is no power."""
        if self.dead:
            raise PowerCut

    def cut(self, why: str) -> None:
        if not self.dead:
            self.dead = True
            self._on_cut(why)

    def keep(self, connection: sqlite3.Connection) -> None:
        self._connections.append(connection)

    def bury(self, chance: random.Random) -> None:
        """What the cut leaves: transactions that did not commit never were; of the rest either nothing is left but what
        was synced, or all but appended bytes that nobody synced: they may be there, be others, or not be there."""
        for connection in self._connections:
            sqlite3.Connection.close(connection)
        if self._disk is not None and chance.random() < 0.5:
            self._disk.lose()
            return
        for path, length in sorted(self._synced.items()):
            if path.exists() and (unsynced := path.stat().st_size - length) > 0:
                fate = chance.choice(("kept", "lost", "torn"))
                with path.open("r+b") as file:
                    if fate == "lost":
                        file.truncate(length)
                    elif fate == "torn":
                        file.seek(length)
                        file.write(b"?" * unsynced)


def task_of_plug(
    loop: asyncio.AbstractEventLoop, coroutine: Any, context: contextvars.Context | None = None
) -> "asyncio.Task[Any]":
    """As a loop's task factory: a life that ends takes all its tasks with it, also those that nobody waits for."""
    plug = CURRENT.get() if context is None else context.get(CURRENT)
    task = asyncio.Task(coroutine, loop=loop, context=context)
    if plug is not None:
        plug.tasks[task] = None
        task.add_done_callback(lambda done: plug.tasks.pop(done, None))
    return task


CURRENT: contextvars.ContextVar[Plug | None] = contextvars.ContextVar("plug", default=None)


def context_of(plug: Plug) -> contextvars.Context:
    """For the tasks of a computer."""
    context = contextvars.copy_context()
    context.run(CURRENT.set, plug)
    return context


def before(effect: str, path: Path | None = None) -> None:
    """For whoever does something now."""
    plug = CURRENT.get()
    if plug is not None:
        plug.before(effect, path)
        if _is_on_a_stick(path):
            plug.owner.slot.wrote()


def forgetting(forget: Callable[[Path], None]) -> Callable[[Path], None]:
    """A temporary file is not removed by one who has no power, nor from a stick that is gone."""

    def wrapped(temporary: Path) -> None:
        plug = CURRENT.get()
        if plug is None or not (plug.dead or (_is_on_a_stick(temporary) and plug.owner.slot.is_gone)):
            forget(temporary)

    return wrapped


_REAL_CONNECT = sqlite3.connect
_REAL_FSYNC = os.fsync


def fsync(fd: int) -> None:
    """As `os.fsync`, for whoever does it."""
    _REAL_FSYNC(fd)
    plug = CURRENT.get()
    if plug is not None:
        plug.synced(fd)


def connect(*arguments: Any, **more: Any) -> sqlite3.Connection:
    """As `sqlite3.connect`, with the plug of whoever opens."""
    plug = CURRENT.get()
    if plug is None:
        return _REAL_CONNECT(*arguments, **more)
    connection: _Connection = _REAL_CONNECT(*arguments, factory=_Connection, **more)
    connection.plug = plug
    connection.name = Path(str(arguments[0]).partition("?")[0]).name
    plug.keep(connection)
    return connection


class _Connection(sqlite3.Connection):
    plug: Plug
    name: str
    _changes = 0  # before the transaction

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:  # type: ignore[override]
        word = query.split(maxsplit=1)[0].upper()
        plug = getattr(self, "plug", None)
        if plug is not None:
            plug.check()
            if word in ("BEGIN", "COMMIT"):
                plug.before(f"{word.lower()} {self.name}")
            if word == "BEGIN":
                self._changes = self.total_changes
        cursor = super().execute(query, *values)
        if plug is not None and word == "COMMIT":
            if self.total_changes != self._changes:
                plug.owner.committed(self.name)
            plug.before(f"after commit {self.name}")
        return cursor


def catalog_write(write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`Catalog.write` of a server with a plug."""

    @contextlib.contextmanager
    def wrapped(catalog: Any) -> Iterator[Any]:
        before("begin catalog.db")
        with write(catalog) as session:
            yield session
            before("commit catalog.db")
        before("after commit catalog.db")

    return wrapped


def _kind(path: Path | None) -> str:
    """What a path is, without digests and without the play's own folder: the log shall not depend on them."""
    if path is None:
        return ""
    if _is_on_a_stick(path):
        return "on a stick"
    names = [name for name in (path.parent.name, path.name) if not name.startswith(SCRATCH)]
    return "/".join(name if len(name) < 30 else "DIGEST" for name in names)


def _is_on_a_stick(path: Path | None) -> bool:
    return path is not None and str(path).startswith(OPEN_FILES)
