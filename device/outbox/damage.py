"""A damaged outbox: the file is set aside, and a new one begins with the accounts of the old, so that intake goes on.

What was queued in it is *astray* until `salvage.py` has looked for it in the ruins.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from device.damage import kept, mark_as, remove, with_logs
from device.outbox import losses, schema
from device.outbox.book import GENERATION, Book, Draft, LaneBook, load
from device.outbox.highwater import Expected
from device.outbox.keys import lane_prefix, place_of, row_seal
from device.outbox.losses import LossRow
from protocol.errors import StateError
from protocol.results import LANES
from protocol.spans import EMPTY, Spans
from signing import durable

_DONE: Final = ".salvaged-"


@dataclass(frozen=True)
class Accounts:
    """What is known of an outbox whose file cannot be gone on with.

    Args:
        book: Its accounts.
        losses: Its loss records.
    """

    book: Book
    losses: tuple[LossRow, ...] = ()


def quarantined(path: Path) -> list[Path]:
    """The damaged files that were not looked through yet, oldest first."""
    return kept(path)


def salvaged(path: Path) -> list[Path]:
    """The damaged files that were looked through and lacked rows, oldest first: kept for a person."""
    return kept(path, _DONE)


def finish(path: Path, file: Path, *, keep: bool) -> None:
    """Notes that a damaged file was looked through: it goes, or is the one that is kept for a person."""
    if not keep:
        remove(file)
        return
    for old in salvaged(path):
        remove(old)
    mark_as(file, _DONE)


def remove_salvaged(path: Path) -> int:
    """Removes the damaged files that are kept for a person: what was in them is queued, or counted.

    Returns:
        How many bytes they had. One that the disk does not let go stays.
    """
    length_bytes = 0
    for file in salvaged(path):
        with contextlib.suppress(OSError):
            file_bytes = sum(part.stat().st_size for part in with_logs(file))
            remove(file)
            length_bytes += file_bytes
    return length_bytes


def checked_book(path: Path, whole_bytes: int) -> Book | None:
    """The accounts of a file in which no damage shows; None when it was cut before it had any.

    Args:
        path: Of the database.
        whole_bytes: Up to this length all of the file is looked at, else its accounts.

    Raises:
        sqlite3.DatabaseError: It is damaged.
        StateError: A newer agent wrote it.
    """
    schema.check_header(path)
    # A reader, for a writer's first step might end what a damaged log still holds.
    connection = schema.open_reader(path)
    try:
        if schema.is_empty(connection):
            return None
        schema.check_version(connection, path)
        schema.check(connection, whole_bytes)
        return load(connection)
    except (OverflowError, TypeError, ValueError) as error:
        raise schema.damaged(f"accounts that cannot be read: {error}") from error
    finally:
        connection.close()


def why_damaged(path: Path) -> str:
    """What is wrong with an outbox, by a look at every page and row; empty when nothing is. Changes nothing. Blocking.

    Raises:
        StateError: A newer agent wrote it, or the disk does not let it be read.
    """
    if not path.exists():
        return ""
    try:
        book = checked_book(path, sys.maxsize)
        torn = 0 if book is None else _count_torn(path, book)
    except sqlite3.DatabaseError as error:
        if not schema.is_damage(error):
            raise StateError(f"{path.name} cannot be read: {error}") from error
        return str(error)
    return f"{torn} of its rows are not what was put in" if torn else ""


def _count_torn(path: Path, book: Book) -> int:
    prefixes = {(epoch, lane): lane_prefix(token, lane) for epoch, token in book.epochs.items() for lane in LANES}
    torn = 0
    with contextlib.closing(schema.open_reader(path)) as connection:
        for key, seal, body in connection.execute(f"SELECT id, seal, {schema.BODY} FROM rows"):  # noqa: S608  (fixed)
            place = place_of(key)
            prefix = None if place is None else prefixes.get(place[:2])  # one of an epoch that began since is new
            torn += place is None or (prefix is not None and row_seal(prefix, place[2], body) != seal)
    return torn


def discard(path: Path) -> None:
    """Removes a file that no row was ever in: set aside, such files would drive out those that hold some.

    Safe to repeat after a cut: no log is left without its database, and the journal goes last, which tells what it was.
    """
    for suffix in ("-wal", "-shm", "", "-journal"):
        durable.unlink(path.with_name(path.name + suffix))


def read_accounts(path: Path) -> Accounts | None:
    """The accounts of a damaged file if it has any and they can still be believed, else None."""
    if not has_pages(path):
        return None
    try:
        connection = schema.open_reader(path)
        try:
            schema.check(connection, 0)
            book = load(connection)
            return Accounts(book, tuple(losses.all_of(connection))) if book.epochs else None
        finally:
            connection.close()
    # A damaged text does not decode, a damaged number does not fit.
    except (OSError, sqlite3.Error, OverflowError, TypeError, ValueError):
        return None


def has_pages(path: Path) -> bool:
    """Whether there is any of a database: without, SQLite would throw its log away, in which rows may lie."""
    return path.exists() and path.stat().st_size >= schema.PAGE_BYTES


def missing_numbers(book: Book, expected: Expected, *, has_log: bool) -> dict[tuple[str, str], int]:
    """By epoch's token and lane, the number up to which rows should be there and are not.

    Args:
        book: What the database knows.
        expected: What the numbering had reached.
        has_log: Whether the database's log was there: without one, after a cut, what it held is gone.
    """
    numbers = {token: number for number, token in book.epochs.items()}
    found = {}
    for (token, lane), least in expected.at_least.items():
        there = book.lane(numbers[token], lane).next_seq if token in numbers else 0
        most = expected.at_most[token, lane]
        if there < least or (there < most and not expected.clean and not has_log):
            found[token, lane] = max(least, most)
    return found


def lost_accounts(
    known: Accounts | None, expected: Expected | None, missing: Mapping[tuple[str, str], int]
) -> Accounts:
    """The accounts from which a new outbox goes on: those of the old one, grown by what should have been there.

    Args:
        known: What could be read of the old file.
        expected: What the numbering had reached.
        missing: As `missing_numbers`; without `known`, all that is expected is missing.
    """
    book = known.book if known is not None else Book(current=0, epochs={}, lanes={})
    epochs = dict(book.epochs)
    lanes = dict(book.lanes)
    for number, token in expected.epochs.items() if expected is not None else ():
        if token not in epochs.values():
            epochs[number if number not in epochs else max(epochs) + 1] = token
    numbers = {token: number for number, token in epochs.items()}
    if known is None and expected is not None:
        missing = expected.at_most
    for (token, lane), end in missing.items():
        facts = lanes.get((numbers[token], lane))
        if facts is None:
            settled = expected.settled.get((token, lane), 0) if expected is not None else 0
            facts = LaneBook(gone=Spans.of([(0, settled - 1)]))
        lanes[numbers[token], lane] = replace(facts, next_seq=max(facts.next_seq, end))
    return Accounts(replace(book, epochs=epochs, lanes=lanes), known.losses if known is not None else ())


def carry_over(draft: Draft, old: Accounts, now_ms: int) -> None:
    """Takes the accounts of a damaged outbox into a new one; what was queued there is astray.

    Epochs keep their numbers, so that rows of the old file say themselves where they belong.
    """
    for number, token in sorted(old.book.epochs.items()):
        draft.begin_epoch(token, now_ms, number)
    for (epoch, lane), facts in sorted(old.book.lanes.items()):
        draft.write(
            epoch,
            lane,
            replace(
                facts,
                sent_before=facts.next_seq,
                receipted=EMPTY,
                gone=facts.gone.union(facts.receipted),
                astray=facts.astray.union(facts.queued),
            ),
        )
    recorded: dict[tuple[int, str], Spans] = {}
    for loss in old.losses:
        losses.add(draft.connection, replace(loss, id=0))
        key = (loss.epoch, loss.lane)
        recorded[key] = recorded.get(key, EMPTY).add(loss.first, loss.last)
    for (epoch, lane), facts in old.book.lanes.items():
        # Known from memory alone: the record's exact bytes are not, and the server counts a number once.
        for first, last in facts.lost.minus(recorded.get((epoch, lane), EMPTY)):
            losses.add(draft.connection, LossRow(0, epoch, lane, first, last, "damage", now_ms, exact=False))
    if old.book.generation is not None:
        draft.remember(GENERATION, old.book.generation)
    draft.mark_done(old.book.done_frames.items())
    draft.count_pending_losses()
