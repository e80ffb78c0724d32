"""What the harness itself is measured by: work whose truth is known.

SQLite in WAL mode with synchronous=NORMAL loses rows that it acknowledged, with FULL it loses none; in DELETE mode
FULL loses some and EXTRA none (its own documentation says so). A swap of two releases without fsync loses one, with
fsync none.
"""

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from signing import durable
from tests.simulation.workload import Promises, Workload

ROWS = 6


class SqliteRows:
    """Rows that are promised once their transaction has ended, and a checkpoint between them.

    Args:
        mode: Of the journal.
        synchronous: How much SQLite waits for.
    """

    def __init__(self, mode: str, synchronous: str) -> None:
        self.name = f"sqlite-{mode}-{synchronous}"
        self._mode = mode
        self._synchronous = synchronous

    def prepare(self, home: Path) -> None:
        (home / "state").mkdir()

    def act(self, home: Path, promise: Promises) -> None:
        with contextlib.closing(self._open(home)) as database:
            database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")
            for number in range(ROWS):
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT INTO rows VALUES (?, ?)", (number, "x" * 700))
                database.execute("COMMIT")
                promise(f"row {number}")
                if number == ROWS // 2:
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        with contextlib.closing(self._open(home)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def check(self, home: Path, promised: Sequence[str]) -> None:
        with contextlib.closing(self._open(home)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged"
            there = database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'rows'").fetchone()[0]
            rows = database.execute("SELECT number FROM rows").fetchall() if there else []
        missing = {int(line.split()[1]) for line in promised} - {number for (number,) in rows}
        assert not missing, f"promised rows are lost: {sorted(missing)}"

    def _open(self, home: Path) -> sqlite3.Connection:
        database = sqlite3.connect(home / "state" / "rows.db", isolation_level=None)
        database.execute(f"PRAGMA journal_mode = {self._mode}")
        database.execute(f"PRAGMA synchronous = {self._synchronous}")
        return database


class Swap:
    """A pointer that is moved from one release to the next one, which was written just before.

    Args:
        synced: Whether anything is waited for.
    """

    def __init__(self, *, synced: bool) -> None:
        self.name = "swap-synced" if synced else "swap-unsynced"
        self._synced = synced

    def prepare(self, home: Path) -> None:
        (home / "state").mkdir()

    def act(self, home: Path, promise: Promises) -> None:
        for release in ("one", "two"):
            if self._synced:
                durable.write(home / "state" / f"model-{release}", _model(release))
                durable.point(home / "state" / "active", f"model-{release}")
            else:
                (home / "state" / f"model-{release}").write_bytes(_model(release))
                (home / "state" / ".new").symlink_to(f"model-{release}")
                os.replace(home / "state" / ".new", home / "state" / "active")  # noqa: PTH105  (as careless code has it)
            promise(release)

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        durable.sweep(home / "state")

    def check(self, home: Path, promised: Sequence[str]) -> None:
        link = home / "state" / "active"
        if not link.is_symlink():
            assert not promised, "a release was promised, and none is active"
            return
        release = os.fsdecode(link.readlink()).removeprefix("model-")
        order = ["one", "two"]
        assert not promised or order.index(release) >= order.index(promised[-1]), "an older release is active"
        assert link.exists(), "the active release is not there"
        assert link.read_bytes() == _model(release), "the active release is torn"


def _model(release: str) -> bytes:
    return release.encode() * 2000


def workloads() -> tuple[Workload, ...]:
    return (
        SqliteRows("wal", "normal"),
        SqliteRows("wal", "full"),
        SqliteRows("delete", "full"),
        SqliteRows("delete", "extra"),
        Swap(synced=False),
        Swap(synced=True),
    )
