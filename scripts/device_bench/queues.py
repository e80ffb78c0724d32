"""The queues that are compared, each as its own documentation uses it: one row at a time, and many together."""

import sqlite3
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Protocol

from device.outbox.box import Outbox

BIG_BYTES = 1 << 34


class Queue(Protocol):
    """One way to keep rows. Both methods return once the rows are as durable as the queue makes them."""

    title: str

    def put(self, row: bytes) -> Awaitable[None] | None:
        """Keeps one row."""
        ...

    def put_many(self, rows: Sequence[bytes]) -> Awaitable[None] | None:
        """Keeps rows together."""
        ...

    def close(self) -> Awaitable[None] | None:
        """Lets go of the file."""
        ...


class Headland:
    title = "Headland's outbox"

    def __init__(self, box: Outbox) -> None:
        self._box = box

    @classmethod
    async def opened(cls, folder: Path) -> "Headland":
        return cls(
            await Outbox.opened(
                folder / "outbox.db", "bench", budget_bytes=BIG_BYTES, now_ms=lambda: 0, draw_token=lambda: "a" * 32
            )
        )

    async def put(self, row: bytes) -> None:
        await self._box.enqueue("results", row)

    async def put_many(self, rows: Sequence[bytes]) -> None:
        await self._box.enqueue_all([("results", row) for row in rows])

    async def close(self) -> None:
        await self._box.close()


class Bare:
    """What SQLite takes for the same promise, and nothing else."""

    title = "bare SQLite (WAL, FULL)"

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS queue (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")

    def put(self, row: bytes) -> None:
        self.put_many((row,))

    def put_many(self, rows: Sequence[bytes]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO queue (body) VALUES (?)", [(row,) for row in rows])
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


class PersistQueue:
    title = "persist-queue, SQLiteQueue"

    def __init__(self, folder: Path) -> None:
        from persistqueue import SQLiteQueue

        self._one: Any = SQLiteQueue(str(folder / "one"), auto_commit=True)
        self._many: Any = SQLiteQueue(str(folder / "many"), auto_commit=False)

    def put(self, row: bytes) -> None:
        self._one.put(row)

    def put_many(self, rows: Sequence[bytes]) -> None:
        for row in rows:
            self._many.put(row)
        self._many.task_done()  # its word for a commit

    def close(self) -> None:
        self._one.close()
        self._many.close()


class LiteQueue:
    """Its own setting is synchronous=NORMAL, which loses rows when the power goes."""

    title = "litequeue (NORMAL: not durable)"
    full = False

    def __init__(self, folder: Path) -> None:
        from litequeue import LiteQueue as Theirs

        self._queue: Any = Theirs(str(folder / "lite.db"))
        if self.full:
            self._queue.conn.execute("PRAGMA synchronous=FULL")

    def put(self, row: bytes) -> None:
        self._queue.put(row.decode())

    def put_many(self, rows: Sequence[bytes]) -> None:
        with self._queue.transaction(mode="IMMEDIATE"):
            for row in rows:
                self._queue.put(row.decode())

    def close(self) -> None:
        self._queue.close()


class FullLiteQueue(LiteQueue):
    title = "litequeue, set to FULL"
    full = True


PEERS = {"persist-queue": PersistQueue, "litequeue": LiteQueue, "litequeue-full": FullLiteQueue}
NAMES = ("headland", "bare", *PEERS)
TITLES = {"headland": Headland.title, "bare": Bare.title, **{name: kind.title for name, kind in PEERS.items()}}


async def opened(name: str, folder: Path, packages: Path) -> Queue:
    """A queue in a folder of its own, which is there."""
    if name == "headland":
        return await Headland.opened(folder)
    if name == "bare":
        return Bare(folder)
    sys.path.append(str(packages))
    return PEERS[name](folder)
