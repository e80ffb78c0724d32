"""The outbox's database in use: opened or begun anew, changed one transaction after the other, watched for damage.

Synchronous, for the writing thread; `box.py` is how the rest of the agent meets it. A database that turns out to be
damaged is set aside and a new one begins within the same call, so that no row waits for salvage. Where the disk does
not let it begin, nothing is open, and every later call tries again.
"""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from device.damage import set_aside
from device.day import Instant
from device.outbox import changes, damage, folding, highwater, losses, schema, ttl
from device.outbox.book import Book, Draft, load
from device.outbox.carving import Found
from device.outbox.damage import Accounts
from device.outbox.highwater import Expected, Highwater
from device.outbox.keys import lane_prefix, row_id, row_seal
from device.outbox.reading import Pick, read_pick
from device.outbox.room import Policies, make_room, record_loss
from device.outbox.writer import Frames, Rows
from protocol import limits
from protocol.errors import StateError
from protocol.results import LANES
from protocol.spans import Spans
from signing import durable

T = TypeVar("T")
LOG: Final = logging.getLogger("headland.outbox")

CHECKED_BYTES: Final = 64 * limits.MIB  # up to here the whole file is checked at start: under a second on a slow card
SQUEEZE_BYTES: Final = 256 * limits.KIB  # what is dropped when the disk, not the budget, is full
NEWEST_GONE: Final = "its newest rows are not there"
DELETED: Final = "its file is not there"


@dataclass(frozen=True)
class _Ruin:
    """An outbox that was damaged, and that no new one could be begun for yet.

    Args:
        known: What is known of it.
        why: It is damaged.
        target: Where its file was set aside.
    """

    known: Accounts
    why: str
    target: Path | None


@dataclass(frozen=True)
class Means:
    """What an outbox works with.

    Args:
        path: Of the database.
        mark: Of the file beside it that says how far the numbering is.
        budget_bytes: What the database may take on the disk.
        policies: Of the lanes.
        now_ms: The time for records, sure or not.
        draw_token: 128 random bits as 32 hexadecimal digits.
        on_damage: Told once per damaged file, with words for a person.
        boot: Names this boot of the machine.
        remembered: An epoch and its lanes' next numbers, as kept elsewhere: for a database whose mark is gone too.
    """

    path: Path
    mark: Path
    budget_bytes: int
    policies: Policies
    now_ms: Callable[[], int]
    draw_token: Callable[[], str]
    on_damage: Callable[[str], None]
    boot: str
    remembered: tuple[str, Mapping[str, int]] | None = None


class Core:
    """See the module. All methods but `read` and `recall` belong to the writing thread.

    Raises:
        StateError: The disk cannot hold it durably, or a newer agent wrote it; later, nothing is open.
        sqlite3.Error: It cannot be opened, and damage is not why.
    """

    def __init__(self, means: Means) -> None:
        self._means = means
        self._reading = threading.Lock()
        self._highwater = Highwater(means.mark, means.boot)
        self._damaged = ""  # why nothing is open; empty when all is well
        self._ruin: _Ruin | None = None  # once the file was set aside
        self._connection, self._reader, self.book = self._open()
        self._write_mark()

    @property
    def connection(self) -> sqlite3.Connection:
        """For the writing thread. Raises as `ensure_open`."""
        self.ensure_open()
        return self._connection

    def ensure_open(self) -> None:
        """Where a damaged file could not be followed by a new one, that is tried again.

        Raises:
            StateError: The disk still does not let it begin.
        """
        if self._damaged:
            self._begin()

    def close(self) -> None:
        """Closes the file; what was written is durable with or without it."""
        if self._damaged:
            self._highwater.close()
            return
        try:
            self._highwater.write(self.book, self._told(), closed=True)
        except (OSError, sqlite3.Error):
            # Closing ends the log: one that is gone would look like a loss to the mark as it stands.
            with contextlib.suppress(OSError):
                durable.unlink(self._means.mark)
        self._highwater.close()
        with self._reading:
            self._reader.close()
            self._connection.close()

    # Changes

    def append(self, rows: Rows, frames: Frames = ()) -> list[int]:
        """Makes rows durable, dropping older ones where the disk is full, and in the same transaction marks frames as
        done. Returns the number of each row.

        A disk that refuses is first asked again for the same rows: in the room that it has given before, then in that
        of rows which the server has. Only then queued rows go, of no lane before those of the new ones.

        Raises:
            StateError: The disk did not take them. None is kept, and none has a number.
        """
        self.ensure_open()
        more = dict.fromkeys({lane for lane, _ in rows}, len(rows))  # at most
        with self.watched():
            self._highwater.reserve(self.book, more, self._told)
        try:
            free_queued = partial(self._free_queued, LANES[min(map(LANES.index, more), default=0) :])
            return self.transact_in_room(partial(self._insert, rows, frames), self._free_receipted, free_queued)
        except sqlite3.Error as error:
            if not schema.is_full(error):
                raise
            raise StateError(
                f"the disk is full: {len(rows)} results were not kept",
                hint="free space on the disk that holds the state folder",
            ) from error

    def transact(self, change: Callable[[Draft], T]) -> T:
        """Runs `change` in a transaction that is durable on return; in a new file, where this one shows damage.

        Where the disk erred it is run once more over a fresh connection, unless it turns out to be done.
        """
        try:
            return self._transact(change)
        except sqlite3.DatabaseError as error:
            if schema.is_damage(error):
                self.begin_anew(str(error))
            elif not (schema.is_unsure(error) and self._reconnect()):
                raise
            return self._transact(change)

    def transact_in_room(self, change: Callable[[Draft], T], *frees: Callable[[Draft], None]) -> T:
        """As `transact`. A disk that refuses is asked again for the same: in the room that it has given before, then
        after each of `frees`, in the same transaction."""
        left = [_nothing, _nothing, *frees]
        while True:
            try:
                return self.transact(partial(_after, left.pop(0), change))
            except sqlite3.Error as error:
                if not (left and schema.is_full(error)):
                    raise
            with contextlib.suppress(sqlite3.OperationalError):
                # The log of the last transactions is room that the disk has given already: it is used again from its
                # start.
                self.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def fresh_epoch(self, draft: Draft) -> None:
        """New rows are numbered from 0 under fresh random bits."""
        draft.begin_epoch(self._means.draw_token(), self._means.now_ms())

    def begin_anew(self, why: str) -> None:
        """Sets the file aside, which turned out to be damaged, and goes on in a new one.

        Raises:
            StateError: The disk does not let it begin: nothing is open until a later call could.
        """
        with self._reading:
            self._damaged = why
            self._connection.close()
            self._reader.close()
        try:
            self._begin()
        except StateError as error:
            LOG.critical("%s; it is tried again", error)
            raise

    @property
    def budget_bytes(self) -> int:
        """What the database may take on the disk."""
        return self._means.budget_bytes

    def pages_bytes(self) -> int:
        """How long the database's file is, once its log was taken in."""
        return int(self.connection.execute("PRAGMA page_count").fetchone()[0]) * schema.PAGE_BYTES

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around work on the connection itself: damage that shows there is seen to."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
            self.begin_anew(str(error))

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody in this process reads, and for as long as this lasts."""
        alone = self._reading.acquire(blocking=False)
        try:
            yield alone
        finally:
            if alone:
                self._reading.release()

    def tend(self, now: Instant) -> bool:
        """Looks after rows that are too old, and after the file beside this one. Returns whether more is to do."""
        self.ensure_open()
        policies = self._means.policies
        more = False
        if any(policy.ttl_s for policy in policies.values()):
            more = self.transact(lambda draft: self._age(draft, now))
        with self.watched():
            if self._highwater.is_stale(self.book, self._told()):
                self._write_mark()
            if folding.is_due(self.connection, self.book):
                more = self.transact(self._fold) or more
        return more

    # Salvage

    @property
    def astray(self) -> int:
        """Rows that are looked for in damaged files."""
        return sum(len(facts.astray) for facts in self.book.lanes.values())

    def adopt(self, found: Sequence[Found]) -> int:
        """Queues rows that were found in a damaged file and are astray. Returns how many those were.

        Raises:
            sqlite3.Error: The disk did not take them, even in the room of rows that the server has.
        """
        return self.transact_in_room(partial(_adopt, found), self._free_receipted)

    def give_up(self) -> int:
        """Counts what is still astray as lost: "at most" so much, for the server may have it. Returns how much."""
        lost = self.astray
        if lost:
            self.transact_in_room(self._give_up, self._free_receipted)
        return lost

    # Reading, beside the writer

    def read(self, book: Book, epoch: int, limit_bytes: int, *, in_order: bool = True) -> Pick:
        """See `read_pick`."""
        with self._reading:
            return read_pick(self._open_reader(), book, epoch, limit_bytes, in_order=in_order)

    def look(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Reads beside the writer."""
        with self._reading:
            return read(self._open_reader())

    def recall(self, next_seqs: Mapping[str, int], most: int) -> list[bytes]:
        """The newest rows of the current epoch from these numbers on, at most so many a lane."""
        query = f"SELECT {schema.BODY} FROM rows WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT ?"  # noqa: S608  (fixed)
        book = self.book
        with self._reading:
            reader = self._open_reader()
            return [
                bytes(body)
                for lane, first in next_seqs.items()
                for (body,) in reader.execute(
                    query,
                    (
                        row_id(book.current, lane, first),
                        row_id(book.current, lane, book.lane(book.current, lane).next_seq),
                        most,
                    ),
                )
            ]

    # How

    def _begin(self) -> None:
        """Goes on from a damaged file in a new one; each step may be done again.

        Raises:
            StateError: The disk does not let it.
        """
        with self._reading:
            try:
                if self._ruin is None:
                    self._ruin = self._set_aside()
                else:
                    # Begun before in vain. No row is in it, and set aside again and again it would drive out the
                    # damaged files that hold some.
                    damage.discard(self._means.path)
                ruin = self._ruin
                self._connection, self._reader, self.book = self._new(ruin.known, ruin.why, ruin.target)
            except (sqlite3.Error, OSError) as error:
                raise StateError(
                    f"the outbox was damaged ({self._damaged}), and a new one cannot be begun: {error}",
                    hint="is its disk full, or failing?",
                ) from error
            self._damaged, self._ruin = "", None
        self._highwater.forget_reserve()
        self._write_mark()

    def _set_aside(self) -> _Ruin:
        known = Accounts(self.book)
        target = set_aside(self._means.path)
        read = None if target is None else damage.read_accounts(target)
        if read is not None:
            known = replace(known, losses=read.losses)
        return _Ruin(known, self._damaged, target)

    def _open_reader(self) -> sqlite3.Connection:
        if self._damaged:
            raise StateError(f"the outbox was damaged ({self._damaged}), and a new one could not be begun yet")
        return self._reader

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection, Book]:
        path = self._means.path
        has_log = path.with_name(f"{path.name}-wal").exists()
        expected = highwater.read(self._means.mark, self._means.boot)
        if expected is None and self._means.remembered is not None:
            expected = highwater.by_mark(*self._means.remembered)
        target: Path | None = None
        known: Accounts | None = None
        why = DELETED
        if schema.was_cut_while_made(path):
            damage.discard(path)
        elif has_log and not damage.has_pages(path):
            target = set_aside(path)
        elif path.exists():
            try:
                book = self._look(expected, has_log=has_log)
                if book is not None:
                    return self._connected(book)
            except sqlite3.DatabaseError as error:
                if not schema.is_damage(error):
                    raise
                why = str(error)
                known = damage.read_accounts(path)
                target = set_aside(path)
        if known is None:
            # A cut between setting aside and beginning anew left the accounts in the damaged file.
            known = next(filter(None, map(damage.read_accounts, reversed(damage.quarantined(path)))), None)
        missing = (
            {} if known is None or expected is None else damage.missing_numbers(known.book, expected, has_log=has_log)
        )
        accounts = damage.lost_accounts(known, expected, missing)
        return self._new(accounts, why, target)

    def _look(self, expected: Expected | None, *, has_log: bool) -> Book | None:
        """The accounts of a file that is whole; None when it was cut before it had any.

        Raises:
            sqlite3.DatabaseError: It is damaged, or lacks rows.
        """
        book = damage.checked_book(self._means.path, CHECKED_BYTES)
        if book is None or not book.epochs:
            return None
        if expected is not None and damage.missing_numbers(book, expected, has_log=has_log):
            raise schema.damaged(NEWEST_GONE)
        return book

    def _connected(self, book: Book) -> tuple[sqlite3.Connection, sqlite3.Connection, Book]:
        connection = schema.open_writer(self._means.path)
        try:
            return connection, schema.open_reader(self._means.path), book
        except BaseException:
            connection.close()
            raise

    def _new(
        self, accounts: Accounts, why: str, target: Path | None
    ) -> tuple[sqlite3.Connection, sqlite3.Connection, Book]:
        """Begins an outbox with what is known of the one before it, and says so if rows are astray."""
        connection = schema.open_writer(self._means.path)
        try:
            connection.execute("BEGIN IMMEDIATE")
            draft = Draft(connection, load(connection))
            damage.carry_over(draft, accounts, self._means.now_ms())
            self.fresh_epoch(draft)
            connection.execute("COMMIT")
            reader = schema.open_reader(self._means.path)
        except BaseException:
            connection.close()
            raise
        book = draft.book()
        astray = sum(len(facts.astray) for facts in book.lanes.values())
        if target is not None:
            self._means.on_damage(
                f"the outbox was damaged ({why}); kept as {target.name}; at most {astray} results are lost, "
                "what is found in it is sent"
            )
        elif astray:
            self._means.on_damage(f"the outbox was damaged ({why}); at most {astray} results are lost")
        return connection, reader, book

    def _transact(self, change: Callable[[Draft], T]) -> T:
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            draft = Draft(connection, self.book)
            result = change(draft)
            make_room(draft, self._means.budget_bytes, self._means.policies, self._means.now_ms())
        except BaseException:
            self._roll_back()
            raise
        after = draft.book()
        try:
            connection.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if not (isinstance(error, sqlite3.DatabaseError) and schema.is_unsure(error) and self._is_durable(after)):
                raise
        before, self.book = self.book, after
        if self.book.current != before.current:
            self._highwater.forget_reserve()
            # The commit is done and must not be made once more: what is wrong shows where accounts are read next.
            with contextlib.suppress(sqlite3.Error):
                self._write_mark()
        elif self.book.next_seqs != before.next_seqs:
            self._highwater.reached(self.book)
        return result

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _is_durable(self, after: Book) -> bool:
        """Whether a commit that the disk erred in was done all the same.

        Raises:
            sqlite3.DatabaseError: The accounts are neither those before it nor those after it: `schema.is_damage`.
        """
        if not self._settle():
            return False
        found = load(self.connection)
        if found not in (self.book, after):
            raise schema.damaged("a commit that the disk erred in was done in part")
        return found == after != self.book

    def _settle(self) -> bool:
        """Takes the whole log into the database's file and empties it. False: the disk, or a reader, did not let it.

        A transaction whose commit failed may lie in the log whole: who opens it anew finds it committed, although
        nobody knows whether the disk has it. This connection does not count it, and writes over it with the next one.
        So the connection is let go only over an empty log, and what is seen then is what there is.
        """
        with self._reading:
            try:
                (busy, *_) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError:
                return False
        return not busy

    def _reconnect(self) -> bool:
        """Goes on over a fresh connection. False: there is none to be had, or the one that is here must stay."""
        if not self._settle():
            return False
        with contextlib.ExitStack() as opened:
            try:
                connection = opened.enter_context(contextlib.closing(schema.open_writer(self._means.path)))
                reader = opened.enter_context(contextlib.closing(schema.open_reader(self._means.path)))
            except (sqlite3.Error, OSError, StateError):
                return False
            opened.pop_all()
        with self._reading:
            self._reader.close()
            self._connection.close()
            self._connection, self._reader = connection, reader
        return True

    def _insert(self, rows: Rows, frames: Frames, draft: Draft) -> list[int]:
        if frames:
            draft.mark_done(frames)
        return changes.insert(draft, rows, self.fresh_epoch)

    def _free_receipted(self, draft: Draft) -> None:
        make_room(draft, self._squeezed_bytes(draft), self._means.policies, self._means.now_ms(), of=())

    def _free_queued(self, lanes: Collection[str], draft: Draft) -> None:
        make_room(draft, self._squeezed_bytes(draft), self._means.policies, self._means.now_ms(), of=lanes)

    def _squeezed_bytes(self, draft: Draft) -> int:
        return schema.used_bytes(draft.connection) - SQUEEZE_BYTES

    def _age(self, draft: Draft, now: Instant) -> bool:
        ttl.note(draft, self._means.policies, now)
        return ttl.expire(draft, self._means.policies, now, self._means.now_ms())

    def _fold(self, draft: Draft) -> bool:
        folding.fold_lanes(draft)
        # The file beside this one must not name an epoch that is no more: it would be missed.
        return not self._highwater.is_stale(self.book, self._told()) and folding.fold_epochs(draft)

    def _give_up(self, draft: Draft) -> None:
        for epoch, lane in list(self.book.lanes):
            astray = draft.lane(epoch, lane).astray
            if astray:
                record_loss(draft, (epoch, lane), astray, "damage", self._means.now_ms(), exact=False)

    def _told(self) -> Mapping[tuple[int, str], int]:
        return losses.oldest_waiting(self.connection)

    def _write_mark(self) -> None:
        with contextlib.suppress(OSError):
            self._highwater.write(self.book, self._told())


def _nothing(_: Draft) -> None:
    """Gives nothing up."""


def _after(free: Callable[[Draft], None], change: Callable[[Draft], T], draft: Draft) -> T:
    free(draft)
    return change(draft)


def _adopt(found: Sequence[Found], draft: Draft) -> int:
    adopted: dict[tuple[int, str], list[int]] = {}
    records = []
    for row in found:
        key = (row.epoch, row.lane)
        if draft.lane(*key).astray.within(row.seq, row.seq) and row.seq not in adopted.setdefault(key, []):
            adopted[key].append(row.seq)
            seal = row_seal(lane_prefix(draft.epochs[row.epoch], row.lane), row.seq, row.body)
            records.append((row_id(row.epoch, row.lane, row.seq), seal, row.body))
    draft.connection.executemany(changes.INSERT_ROW, records)
    for (epoch, lane), numbers in adopted.items():
        facts = draft.lane(epoch, lane)
        spans = Spans.of((number, number) for number in numbers)
        draft.write(epoch, lane, replace(facts, astray=facts.astray.minus(spans)))
    return len(records)
