"""The outbox: results on their way, durable before acknowledged, deleted only on a receipt or with a counted loss.

Rows are known by (epoch, lane, number). One thread writes; the event loop never waits for the disk. Reading a batch
has a connection of its own, so that draining a backlog does not hold up new rows.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from device.day import Instant
from device.outbox import changes, damage, schema, space
from device.outbox.book import Book, Draft, FrameMark, load
from device.outbox.copying import NOWHERE, Copies, Elsewhere, LaneSpans, is_settled
from device.outbox.core import Core, Means
from device.outbox.reading import pick_epoch
from device.outbox.room import Policies
from device.outbox.salvage import Salvage
from device.outbox.writer import STOP_S, Frames, Rows, Writer
from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.messages import LanePosition
from protocol.objects import ReceiptsBody
from protocol.results import LANES, BatchBody
from protocol.wire import Message

T = TypeVar("T")

BATCH_ROWS_BYTES: Final = limits.BATCH_BYTES - 64 * limits.KIB  # a batch's, if nothing compresses
RECALLED: Final = 1000
MIN_BUDGET_BYTES: Final = 256 * limits.KIB


@dataclass(frozen=True)
class LaneCounts:
    """Totals of a lane over all epochs: `produced = queued + receipted + lost + astray`.

    `astray` are rows that are looked for in a damaged file: they will be queued, or lost.
    """

    produced: int = 0
    queued: int = 0
    receipted: int = 0
    lost: int = 0
    astray: int = 0


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
        path: Of the database, as `STATE/outbox.db`; the file that says how far the numbering is lies beside it.
        device: Whose rows these are.
        budget_bytes: What the database may take on the disk; beyond it the lanes' policies drop.
        now_ms: The time for loss records, sure or not.
        draw_token: 128 random bits as 32 hexadecimal digits, for epochs.
        on_damage: Told once per damaged file, with words for a person; called from the writing thread.
        policies: Of the lanes.
        boot: Names this boot of the machine.
        keep_free_bytes: Of the disk; below that receipted rows are deleted, and their space is given back.
        remembered: A mark of this outbox that was kept elsewhere: tells of one that was deleted with all its files.
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
        policies: Policies | None = None,
        boot: str = "",
        keep_free_bytes: int = 0,
        remembered: Mark | None = None,
    ) -> None:
        self.device = device
        self._path = path
        self._now_ms = now_ms
        self._keep_free_bytes = keep_free_bytes
        means = Means(
            path=path,
            mark=path.with_suffix(".mark"),
            budget_bytes=max(budget_bytes, MIN_BUDGET_BYTES),
            policies=policies or {},
            now_ms=now_ms,
            draw_token=draw_token,
            on_damage=on_damage,
            boot=boot,
            remembered=None if remembered is None else (remembered.epoch, remembered.next_seqs),
        )
        try:
            self._core = Core(means)
        except sqlite3.Error as error:
            raise StateError(f"the outbox cannot be opened: {error}", hint="is its disk full, or failing?") from error
        self._writer = Writer(self._core.append)
        self._salvage = Salvage(self._core, path, self._writer.run_blocking)
        self._writer.start()
        self._salvage.start_if_needed()

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
        policies: Policies | None = None,
        boot: str = "",
        keep_free_bytes: int = 0,
        remembered: Mark | None = None,
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
            policies=policies,
            boot=boot,
            keep_free_bytes=keep_free_bytes,
            remembered=remembered,
        )

    async def close(self) -> None:
        """Finishes what waits and closes the file."""
        await asyncio.to_thread(self._salvage.stop, STOP_S)
        await self._writer.stop()
        await asyncio.to_thread(self._core.close)

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

    async def enqueue_all(self, rows: Rows, *, done_frames: Frames = ()) -> list[int]:
        """As `enqueue` for several rows: all are durable when this returns, or none is.

        Args:
            rows: Lane and exact bytes of each.
            done_frames: Frames that have all their rows with these: marked as such in the same transaction.
        """
        for lane in {lane for lane, _ in rows}:
            if lane not in LANES:
                raise ValueError(f"no lane is called {lane!r}")
        longest = max((len(row) for _, row in rows), default=0)
        if longest > limits.ROW_BYTES:
            raise Refused(Reason.LIMIT, f"a row of {longest} bytes: at most {limits.ROW_BYTES} travel")
        return await self._writer.append(rows, done_frames)

    def is_done(self, frame: FrameMark) -> bool:
        """Whether all rows of this frame were made durable, now or before a cut."""
        name, content = frame
        return self._core.book.done_frames.get(name) == content

    @property
    def done_frames(self) -> dict[str, str]:
        """The frames that are marked as done: contents by name."""
        return dict(self._core.book.done_frames)

    async def forget_frames(self, frames: Frames) -> None:
        """Lets go of the marks of frames that will never be met again: their removal from the source is durable."""
        await self._change(lambda draft: draft.forget_done(frames))

    # What is there

    @property
    def epoch(self) -> str:
        """The current epoch: 128 random bits that name one life of this outbox."""
        return self._core.book.epoch

    @property
    def generation(self) -> str | None:
        """The server's generation that receipts are believed for."""
        return self._core.book.generation

    def positions(self) -> dict[str, LanePosition]:
        """How far the numbering of the current epoch is, by lane."""
        book = self._core.book
        found = {lane: book.lane(book.current, lane) for lane in LANES}
        return {
            lane: LanePosition(next_seq=facts.next_seq, queued=len(facts.queued), lost=facts.dropped)
            for lane, facts in found.items()
        }

    def counts(self) -> dict[str, LaneCounts]:
        """Totals by lane over all epochs."""
        return count(self._core.book)

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
        book = self._core.book
        return Mark(epoch=book.epoch, next_seqs=dict(book.next_seqs))

    async def rows_since(self, mark: Mark) -> list[bytes]:
        """The newest rows since `mark` that are still held, at most `RECALLED` a lane; none when its epoch ended."""
        if mark.epoch != self.epoch:
            return []
        return await asyncio.to_thread(self._core.recall, mark.next_seqs, RECALLED)

    # Rows out

    async def next_batch(self, limit_bytes: int = BATCH_ROWS_BYTES) -> BatchBody | None:
        """The next rows and losses to send; None when nothing waits. Alarms go first, and alone.

        The same rows come again until a receipt for them was applied. One batch never mixes epochs.

        Args:
            limit_bytes: Of the rows' bytes together, and of the losses'; one comes even if it is longer.

        Raises:
            StateError: The disk does not let it be read, or what goes be noted.
        """
        while True:
            in_order = not self._salvage.is_stuck
            number = pick_epoch(self._core.book, in_order=in_order)
            if number is None:
                return None
            book = self._core.book
            try:
                pick = await asyncio.to_thread(self._core.read, book, number, limit_bytes, in_order=in_order)
            except sqlite3.DatabaseError as error:
                if not schema.is_damage(error):
                    raise StateError(f"the outbox cannot be read: {error}", hint="is its disk failing?") from error
                await self._writer.run(partial(self._begin_anew, str(error)))
                continue
            if not (pick.lanes or pick.losses or pick.damaged or pick.missing):
                return None
            # The pick was read beside the writer: rows that were dropped meanwhile must not go out, a loss names them.
            if await self._change(partial(changes.offer, pick=pick, now_ms=self._now_ms())):
                return BatchBody(
                    device=self.device,
                    epoch=book.epochs[number],
                    lanes=pick.lanes,
                    losses=tuple(loss.record() for loss in pick.losses),
                )

    def copies(self, elsewhere: Elsewhere = NOWHERE) -> Copies:
        """What waits for a receipt at this moment and does not lie elsewhere yet, to be read by `next_copy`."""
        return Copies(self._core.book, self.device, elsewhere)

    async def next_copy(self, copies: Copies, limit_bytes: int = BATCH_ROWS_BYTES) -> BatchBody | None:
        """The next batch of a copy; None at its end. Nothing in the outbox changes by it, and no row counts as sent.

        Rows that were receipted or dropped since the copy began may be left out, and rows that came since are not in
        it: the server counts each once, however many ways it comes.

        Args:
            copies: By `copies`.
            limit_bytes: As of `next_batch`.

        Raises:
            StateError: The outbox cannot be read.
        """
        try:
            return await asyncio.to_thread(self._core.look, lambda reader: copies.read(reader, limit_bytes))
        except sqlite3.Error as error:
            raise StateError(f"the outbox cannot be read: {error}", hint="is its disk failing?") from error

    async def is_settled(self, epoch: str, rows: LaneSpans, losses: LaneSpans) -> bool:
        """Whether the server has receipted all of these, so that no copy of them is needed any more.

        A row that was dropped here is not: a copy of it may be all that there is.

        Raises:
            StateError: The outbox cannot be read.
        """
        book = self._core.book
        try:
            return await asyncio.to_thread(
                self._core.look, lambda reader: is_settled(reader, book, epoch, rows, losses)
            )
        except sqlite3.Error as error:
            raise StateError(f"the outbox cannot be read: {error}", hint="is its disk failing?") from error

    async def apply_receipt(self, receipt: ReceiptsBody) -> int:
        """Settles what a verified receipt covers; applying it again changes nothing.

        A range counts only if its hash is that of the rows held here, and only for the generation that was last met.
        A range beyond our own numbering shows that this outbox was set back: a new epoch begins.

        Returns:
            How many rows and losses were settled by it.
        """
        if receipt.device != self.device:
            return 0
        return await self._change(lambda draft: changes.apply(draft, receipt, self._core.fresh_epoch))

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
        await self._change(self._core.fresh_epoch)
        return self.epoch

    async def renumber(self, batch: BatchBody) -> int:
        """Gives the still queued rows of `batch` new numbers in a fresh epoch: the server holds other rows by the old.

        Returns:
            How many rows were moved.
        """
        return await self._change(lambda draft: changes.renumber(draft, batch, self._core.fresh_epoch))

    # Upkeep

    async def tend(self, now: Instant, free_bytes: int | None = None) -> None:
        """What is to be done now and then: drops rows that are too old, gives space back, goes on with salvage.

        Done in short pieces; rows that come meanwhile go in between.

        Args:
            now: What is known of the time.
            free_bytes: Of the disk; None when that is not known.

        Raises:
            StateError: The disk did not take it; the next time it goes on.
        """
        failed: list[Exception] = []
        # What one cannot do on a full disk must not keep the next from making room.
        for piece in (
            partial(self._tend, now),
            partial(self._give_back_if_short, free_bytes),
            partial(self._writer.run, self._salvage.tend),
        ):
            try:
                await piece()
            except (sqlite3.Error, OSError, StateError) as error:
                failed.append(error)
        if failed:
            raise StateError(f"the outbox could not be looked after: {failed[0]}") from failed[0]

    async def _tend(self, now: Instant) -> None:
        while await self._writer.run(partial(self._core.tend, now)):
            pass

    async def _give_back_if_short(self, free_bytes: int | None) -> None:
        short_bytes = 0 if free_bytes is None else self._keep_free_bytes - free_bytes
        if short_bytes > 0:
            await self.give_back(short_bytes)
        elif await self._writer.run(partial(space.is_over, self._core)):
            await self._shrink(lambda: space.is_over(self._core), receipted=False)

    async def give_back(self, need_bytes: int) -> int:
        """Gives space back to the file system: a damaged file that was looked through and is kept for a person, free
        pages, and rows that the server has receipted. Queued rows stay.

        Returns:
            How many bytes the files are shorter.
        """
        removed_bytes = await asyncio.to_thread(damage.remove_salvaged, self._path)
        need_bytes -= removed_bytes
        before_bytes = await asyncio.to_thread(self._size_bytes)

        def goes_on() -> bool:
            return before_bytes - self._core.pages_bytes() < need_bytes

        await self._shrink(goes_on, receipted=True)
        return removed_bytes + max(0, before_bytes - await asyncio.to_thread(self._size_bytes))

    # Damage

    async def salvaged(self) -> None:
        """Returns once no damaged file is being looked through."""
        await asyncio.to_thread(self._salvage.join)

    # How

    async def _shrink(self, goes_on: Callable[[], bool], *, receipted: bool) -> None:
        def piece() -> bool:
            return goes_on() and space.step(self._core, receipted=receipted)

        while await self._writer.run(piece):
            pass
        await self._writer.run(partial(space.finish, self._core))

    def _size_bytes(self) -> int:
        found = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                found += self._path.with_name(self._path.name + suffix).stat().st_size
        return found

    async def _change(self, change: Callable[[Draft], T]) -> T:
        try:
            return await self._writer.run(lambda: self._changed(change))
        except sqlite3.Error as error:
            raise StateError(f"the outbox cannot be written: {error}", hint="is its disk full, or failing?") from error

    def _changed(self, change: Callable[[Draft], T]) -> T:
        result = self._core.transact_in_room(change)
        self._salvage.start_if_needed()  # the file may have been begun anew
        return result

    def _begin_anew(self, why: str) -> None:
        self._core.begin_anew(why)
        self._salvage.start_if_needed()


def count(book: Book) -> dict[str, LaneCounts]:
    """Totals of a book by lane over all epochs."""
    found = {lane: LaneCounts() for lane in LANES}
    for (_, lane), facts in book.lanes.items():
        total = found.get(lane, LaneCounts())
        found[lane] = LaneCounts(
            produced=total.produced + facts.produced,
            queued=total.queued + len(facts.queued),
            receipted=total.receipted + facts.sent,
            lost=total.lost + facts.dropped,
            astray=total.astray + len(facts.astray),
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
    except (sqlite3.Error, OverflowError, TypeError, ValueError) as error:  # a damaged text does not even decode
        raise StateError(f"{path} cannot be read: {error}") from error
