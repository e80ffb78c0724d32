"""Fail points: each effect on the disk through `signing.durable`, and each commit of SQLite, counted as they happen.

At the n-th something goes wrong: the process is killed, the power is cut, or the disk takes nothing.
"""

import contextlib
import errno
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from signing import durable

Harm = Literal["none", "kill", "cut", "enospc", "eio", "full"]
"""A killed process leaves what the kernel has, a cut only what was synced; `enospc` and `eio` happen once; `full` is
ENOSPC from there on until the restart."""

HARMS: tuple[Harm, ...] = ("kill", "cut", "enospc", "eio", "full")
PATIENCE = 8  # so often a full disk says no before somebody turns the machine off

TAKES_NOTHING = frozenset({"unlink", "rmdir", "truncate"})
"""Effects that give room instead of taking it: a full disk does not stop them."""

READING = frozenset({"SELECT", "PRAGMA", "SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT", "--"})
"""First words of statements that change nothing by themselves."""

SQLITE_CODES = {errno.ENOSPC: sqlite3.SQLITE_FULL, errno.EIO: sqlite3.SQLITE_IOERR}
SQLITE_WORDS = {errno.ENOSPC: "database or disk is full", errno.EIO: "disk I/O error"}


class Tripwire:
    """Counts effects, and does harm at one of them.

    Args:
        at: Which, from 0.
        harm: What happens there.
        on_refusal: Told each time that the disk takes nothing.
        on_end: Called before the process dies of this.
    """

    def __init__(
        self,
        at: int,
        harm: Harm,
        on_refusal: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.at = at
        self.harm = harm
        self._on_refusal = on_refusal
        self._on_end = on_end
        self.effects: list[str] = []
        self._lock = threading.Lock()
        self._refused = 0

    def before(self, effect: str, path: Path) -> None:
        """As `signing.durable.Before`."""
        code = self._step(effect, path.name)
        if code is None:
            return
        self._on_refusal()
        if effect == "append":  # what a disk takes before it says no
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"torn")
            os.close(fd)
        raise OSError(code, os.strerror(code), str(path))

    def before_commit(self, connection: sqlite3.Connection) -> None:
        """A transaction is about to be durable."""
        code = self._step("commit", "")
        if code is not None:
            self._on_refusal()
            sqlite3.Connection.execute(connection, "ROLLBACK")  # as SQLite itself does
            error = sqlite3.OperationalError(SQLITE_WORDS[code])
            error.sqlite_errorcode = SQLITE_CODES[code]
            raise error

    def _step(self, effect: str, name: str) -> int | None:
        """The errno to fail with, if any."""
        with self._lock:
            number = len(self.effects)
            self.effects.append(f"{effect} {name}".rstrip())
            if number < self.at or self.harm == "none":
                return None
            if self.harm in ("kill", "cut"):
                self._on_end()
                die()
            if self.harm == "full":
                if effect in TAKES_NOTHING:
                    return None
                self._refused += 1
                if self._refused > PATIENCE:
                    die()
                return errno.ENOSPC
            if number > self.at or (effect in TAKES_NOTHING and self.harm == "enospc"):
                return None
            return errno.ENOSPC if self.harm == "enospc" else errno.EIO

    @contextlib.contextmanager
    def stretched(self) -> Iterator[None]:
        """All disks and all databases are watched."""
        with (
            mock.patch.object(durable.DISK, "before", self.before),
            mock.patch.object(sqlite3, "connect", self._watched(sqlite3.connect)),
            mock.patch.object(sqlite3.dbapi2, "connect", self._watched(sqlite3.dbapi2.connect)),
        ):
            yield

    def _watched(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        wire = self

        class Watched(sqlite3.Connection):
            """Goes through the tripwire before what is durable. A transaction without changes writes nothing."""

            is_changed = False

            def see(self, sql: str) -> None:
                word = sql.lstrip().partition(" ")[0].upper()
                if word == "BEGIN":
                    self.is_changed = False
                elif word not in READING:
                    self.is_changed = True

            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                if sql == "COMMIT" and self.is_changed:
                    wire.before_commit(self)
                return super().execute(sql, *arguments)

            def commit(self) -> None:
                if self.in_transaction and self.is_changed:
                    wire.before_commit(self)
                super().commit()

        def watched(*arguments: Any, **more: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **{"factory": Watched, **more})
            connection.set_trace_callback(connection.see)
            return connection

        return watched


def die() -> None:
    """As the kernel ends a process: nothing tidies up."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
