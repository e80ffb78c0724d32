"""The outbox: results on their way, durable before acknowledged, deleted only on a receipt or with a counted loss.

Rows are known by (epoch, lane, number). One thread writes; the event loop never waits for the disk. Reading a batch
has a connection of its own, so that draining a backlog does not hold up new rows.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from device.outbox import changes, damage, schema
from device.outbox.book import Book, Draft, load
from device.outbox.reading import Pick, pick_epoch, read_pick
from device.outbox.room import make_room
from device.outbox.writer import Rows, Writer
from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.messages import LanePosition
from protocol.objects import ReceiptsBody
from protocol.results import LANES, BatchBody
from protocol.wire import Message

T = TypeVar("T")

CHECKED_BYTES: Final = 64 * limits.MIB  # up to here the whole file is checked at start: under a second on a slow card
SQUEEZE_BYTES: Final = 256 * limits.KIB  # what is dropped when the disk, not the budget, is full
RECALLED: Final = 1000
MIN_BUDGET_BYTES: Final = 256 * limits.KIB


@dataclass(frozen=True)
class LaneCounts:
    """Totals of a lane over all epochs: `produced = queued + receipted + lost`."""

    produced: int = 0
    queued: int = 0
    receipted: int = 0
    lost: int = 0


class Mark(Message):
    """A moment in the life of an outbox.

    Args:
        epoch: The current one.
        next_seqs: The number that the next row of each lane got.
    """

    epoch: str
    next_seqs: dict[str, int]


class Outbox:
    """See the module. Belongs to one event loop, and is the only writer of its file.

    Args:
        path: Of the database, as `STATE/outbox.db`.
        device: Whose rows these are.
        budget_bytes: What the database may take on the disk; beyond it the policy of `room.py` drops.
        now_ms: The time for loss records, sure or not.
        draw_token: 128 random bits as 32 hexadecimal digits, for epochs.
        on_damage: Told once per damaged file, with words for a person; called from the writing thread.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        *,
        budget_bytes: int,
        now_ms: Callable[[], int],
        draw_token: Callable[[], str],
        on_damage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.device = device
        self._path = path
        self._budget_bytes = max(budget_bytes, MIN_BUDGET_BYTES)
        self._now_ms = now_ms
        self._draw_token = draw_token
        self._on_damage = on_damage
        self._reading = threading.Lock()
        self._connection, self._reader, self._book = self._open()
        self._writer = Writer(self._append)
        self._writer.start()

    @classmethod
    async def opened(
        cls,
        path: Path,
        device: str,
        *,
        budget_bytes: int,
        now_ms: Callable[[], int],
        draw_token: Callable[[], str],
        on_damage: Callable[[str], None] = lambda _: None,
    ) -> "Outbox":
        """Opens without holding up the event loop; arguments as of the class."""
        return await asyncio.to_thread(
            cls,
            path,
            device,
            budget_bytes=budget_bytes,
            now_ms=now_ms,
            draw_token=draw_token,
            on_damage=on_damage,
        )

    async def close(self) -> None:
        """Finishes what waits and closes the file."""
        await self._writer.stop()
        await asyncio.to_thread(self._close_connections)

    # Rows in

    async def enqueue(self, lane: str, row: bytes) -> int:
        """Keeps a row; durable when this returns.

        Args:
            lane: One of `LANES`.
            row: The exact bytes that will travel.

        Returns:
            The row's number in its lane and epoch.

        Raises:
            Refused: `LIMIT`: larger than a row may be.
            StateError: The disk did not take the row, even after older ones were dropped. It has no number: try again.
        """
        return (await self.enqueue_all(((lane, row),)))[0]

    async def enqueue_all(self, rows: Rows) -> list[int]:
        """As `enqueue` for several rows: all are durable when this returns, or none is."""
        for lane, row in rows:
            if lane not in LANES:
                raise ValueError(f"no lane is called {lane!r}")
            if len(row) > limits.ROW_BYTES:
                raise Refused(Reason.LIMIT, f"a row of {len(row)} bytes: at most {limits.ROW_BYTES} travel")
        return await self._writer.append(rows)

    # What is there

    @property
    def epoch(self) -> str:
        """The current epoch: 128 random bits that name one life of this outbox."""
        return self._book.epoch

    @property
    def generation(self) -> str | None:
        """The server's generation that receipts are believed for."""
        return self._book.generation

    def positions(self) -> dict[str, LanePosition]:
        """How far the numbering of the current epoch is, by lane."""
        book = self._book
        found = {lane: book.lane(book.current, lane) for lane in LANES}
        return {
            lane: LanePosition(next_seq=facts.next_seq, queued=len(facts.queued), lost=len(facts.lost))
            for lane, facts in found.items()
        }

    def counts(self) -> dict[str, LaneCounts]:
        """Totals by lane over all epochs."""
        return count(self._book)

    def queued(self) -> int:
        """Rows that wait for a receipt, over all lanes and epochs."""
        return sum(lane.queued for lane in self.counts().values())

    def produced(self) -> int:
        """Rows that were ever enqueued, over all lanes and epochs."""
        return sum(lane.produced for lane in self.counts().values())

    def lost(self) -> int:
        """Rows that were dropped, each covered by a loss record."""
        return sum(lane.lost for lane in self.counts().values())

    def mark(self) -> Mark:
        """How far the current epoch is numbered now."""
        book = self._book
        return Mark(epoch=book.epoch, next_seqs={lane: book.lane(book.current, lane).next_seq for lane in LANES})

    async def rows_since(self, mark: Mark) -> list[bytes]:
        """The newest rows since `mark` that are still held, at most `RECALLED` a lane; none when its epoch ended."""
        if mark.epoch != self.epoch:
            return []
        return await asyncio.to_thread(self._recall, mark)

    # Rows out

    async def next_batch(self, limit_bytes: int = limits.BATCH_BYTES - 64 * limits.KIB) -> BatchBody | None:
        """The next rows and losses to send, alarms first; None when nothing waits.

        The same rows come again until a receipt for them was applied. One batch never mixes epochs.

        Args:
            limit_bytes: Of the rows' bytes together; one row comes even if it is longer.
        """
        while True:
            number = pick_epoch(self._book)
            if number is None:
                return None
            book = self._book
            try:
                pick = await asyncio.to_thread(self._read, book, number, limit_bytes)
            except sqlite3.DatabaseError as error:
                if not schema.is_damage(error):
                    raise
                await self._writer.run(partial(self._begin_anew, str(error)))
                continue
            # The pick was read beside the writer: rows that were dropped meanwhile must not go out, a loss names them.
            if await self._change(partial(changes.offer, pick=pick, now_ms=self._now_ms())):
                return BatchBody(
                    device=self.device, epoch=book.epochs[number], lanes=pick.lanes, losses=tuple(pick.losses)
                )

    async def apply_receipt(self, receipt: ReceiptsBody) -> int:
        """Settles what a verified receipt covers; applying it again changes nothing.

        A range counts only if its hash is that of the rows held here, and only for the generation that was last met.
        A range beyond our own numbering shows that this outbox was set back: a new epoch begins.

        Returns:
            How many rows and losses were settled by it.
        """
        if receipt.device != self.device:
            return 0
        return await self._change(lambda draft: changes.apply(draft, receipt, self._fresh_epoch))

    async def meet_generation(self, generation: str) -> bool:
        """Tells which life of the server's catalog answers; after a change all receipted rows held are queued again.

        Returns:
            Whether it was another one than before.
        """
        if self.generation == generation:
            return False
        await self._change(lambda draft: changes.meet_generation(draft, generation))
        return True

    async def begin_epoch(self) -> str:
        """New rows are numbered from 0 under fresh random bits; older rows stay queued under theirs."""
        await self._change(self._fresh_epoch)
        return self.epoch

    async def renumber(self, batch: BatchBody) -> int:
        """Gives the still queued rows of `batch` new numbers in a fresh epoch: the server holds other rows by the old.

        Returns:
            How many rows were moved.
        """
        return await self._change(lambda draft: changes.renumber(draft, batch, self._fresh_epoch))

    # Inside the writing thread

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection, Book]:
        known: Book | None = None
        for attempt in range(2):
            try:
                connection = schema.open_writer(self._path)
                try:
                    if schema.used_bytes(connection) <= CHECKED_BYTES:
                        _quick_check(connection)
                    book = self._begun(connection, load(connection), known)
                    return connection, schema.open_reader(self._path), book
                except BaseException:
                    connection.close()
                    raise
            except sqlite3.DatabaseError as error:
                if not schema.is_damage(error) or attempt:
                    raise
                known = damage.read_accounts(self._path)
                self._set_aside(str(error), known)
        raise AssertionError("the second attempt returns or raises")

    def _begun(self, connection: sqlite3.Connection, book: Book, known: Book | None) -> Book:
        """The book with a current epoch in it, after the accounts of a damaged predecessor."""
        if book.epochs:
            return book
        connection.execute("BEGIN IMMEDIATE")
        draft = Draft(connection, book)
        if known is not None:
            damage.carry_over(draft, known, self._now_ms())
        self._fresh_epoch(draft)
        connection.execute("COMMIT")
        return draft.book()

    def _begin_anew(self, why: str) -> None:
        """The file turned out to be damaged while it was in use."""
        known = self._book
        with self._reading:
            self._connection.close()
            self._reader.close()
            self._set_aside(why, known)
            connection = schema.open_writer(self._path)
            self._book = self._begun(connection, load(connection), known)
            self._connection, self._reader = connection, schema.open_reader(self._path)

    def _set_aside(self, why: str, known: Book | None) -> None:
        target = damage.set_aside(self._path, self._now_ms())
        at_most = "an unknown number of" if known is None else f"at most {sum(c.queued for c in count(known).values())}"
        self._on_damage(f"the outbox was damaged ({why}); kept as {target.name}; {at_most} results are lost")

    async def _change(self, change: Callable[[Draft], T]) -> T:
        return await self._writer.run(lambda: self._transact(change))

    def _append(self, rows: Rows) -> list[int]:
        try:
            return self._transact(lambda draft: changes.insert(draft, rows))
        except sqlite3.Error as error:
            if not schema.is_full(error):
                raise
        try:
            # The log of the last transactions is room that the disk has given already: it is used again from its start.
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            return self._transact(lambda draft: self._insert_squeezed(draft, rows))
        except sqlite3.Error as error:
            if not schema.is_full(error):
                raise
            raise StateError(
                f"the disk is full: {len(rows)} results were not kept",
                hint="free space on the disk that holds the state folder",
            ) from error

    def _transact(self, change: Callable[[Draft], T]) -> T:
        try:
            return self._try_transact(change)
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
            self._begin_anew(str(error))
            return self._try_transact(change)

    def _try_transact(self, change: Callable[[Draft], T]) -> T:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            draft = Draft(connection, self._book)
            result = change(draft)
            make_room(draft, self._budget_bytes, self._now_ms())
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._book = draft.book()
        return result

    def _insert_squeezed(self, draft: Draft, rows: Rows) -> list[int]:
        make_room(draft, schema.used_bytes(draft.connection) - SQUEEZE_BYTES, self._now_ms())
        return changes.insert(draft, rows)

    def _fresh_epoch(self, draft: Draft) -> None:
        draft.begin_epoch(self._draw_token(), self._now_ms())

    def _read(self, book: Book, number: int, limit_bytes: int) -> Pick:
        with self._reading:
            return read_pick(self._reader, book, number, limit_bytes)

    def _recall(self, mark: Mark) -> list[bytes]:
        query = "SELECT body FROM rows WHERE epoch = ? AND lane = ? AND seq >= ? ORDER BY seq DESC LIMIT ?"
        with self._reading:
            return [
                bytes(body)
                for lane, first in mark.next_seqs.items()
                for (body,) in self._reader.execute(query, (self._book.current, lane, first, RECALLED))
            ]

    def _close_connections(self) -> None:
        with self._reading:
            self._reader.close()
            self._connection.close()


def count(book: Book) -> dict[str, LaneCounts]:
    """Totals of a book by lane over all epochs."""
    found = {lane: LaneCounts() for lane in LANES}
    for (_, lane), facts in book.lanes.items():
        total = found.get(lane, LaneCounts())
        found[lane] = LaneCounts(
            produced=total.produced + facts.produced,
            queued=total.queued + len(facts.queued),
            receipted=total.receipted + len(facts.receipted) + len(facts.gone),
            lost=total.lost + len(facts.lost),
        )
    return found


def read_counts(path: Path) -> Mapping[str, LaneCounts]:
    """Totals by lane, read beside a running agent or without one.

    Raises:
        StateError: There is no outbox, or it cannot be read.
    """
    try:
        connection = schema.open_reader(path)
        try:
            return count(load(connection))
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StateError(f"{path} cannot be read: {error}") from error


def _quick_check(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        error = sqlite3.DatabaseError(str(verdict))
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
