"""A damaged outbox: the file is set aside for salvage, and a new one starts with what is known of the loss."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Final

from device.outbox.book import Book, Draft, load
from device.outbox.schema import open_reader
from device.outbox.spans import EMPTY
from signing import durable

KEPT_FILES: Final = 3  # for salvage; older ones go, as a disk that keeps damaging files must not be filled by it
_MARK: Final = ".damaged-"


def set_aside(path: Path, now_ms: int) -> Path:
    """Renames database and log, so that a new database can begin. Returns the damaged file's new path."""
    target = path.with_name(f"{path.stem}{_MARK}{now_ms:015d}{path.suffix}")
    number = 0
    while target.exists():
        number += 1
        target = path.with_name(f"{path.stem}{_MARK}{now_ms:015d}-{number}{path.suffix}")
    for suffix in ("-wal", "-shm", ""):  # the log first: the new database must never find the old one's
        part = path.with_name(path.name + suffix)
        if part.exists():
            durable.rename(part, target.with_name(target.name + suffix))
    for old in quarantined(path)[:-KEPT_FILES]:
        for suffix in ("-wal", "-shm", ""):
            old.with_name(old.name + suffix).unlink(missing_ok=True)
    return target


def quarantined(path: Path) -> list[Path]:
    """The damaged files kept beside the outbox, oldest first."""
    return sorted(path.parent.glob(f"{path.stem}{_MARK}*{path.suffix}"))


def read_accounts(path: Path) -> Book | None:
    """The accounts of a damaged file if they can still be read, else None."""
    try:
        connection = open_reader(path)
        try:
            return load(connection)
        finally:
            connection.close()
    except (sqlite3.Error, OverflowError, TypeError, ValueError):
        return None


def carry_over(draft: Draft, old: Book, now_ms: int) -> None:
    """Takes the accounts of a damaged outbox into a new one: what was queued there counts as lost, "at most" so many.

    "At most", for the server may hold rows whose receipt never came.
    """
    for number, token in sorted(old.epochs.items()):
        draft.begin_epoch(token, now_ms)
        for (epoch, lane), book in sorted(old.lanes.items()):
            if epoch != number:
                continue
            queued = book.queued
            draft.connection.executemany(
                "INSERT INTO losses(epoch, lane, first, last, reason, at_ms, exact, offered, receipted) "
                "VALUES (?, ?, ?, ?, 'damage', ?, 0, 0, 0)",
                [(draft.current, lane, first, last, now_ms) for first, last in queued],
            )
            draft.write(
                draft.current,
                lane,
                replace(
                    book,
                    sent_before=book.next_seq,
                    receipted=EMPTY,
                    gone=book.gone.union(book.receipted),
                    lost=book.lost.union(queued),
                ),
            )
    draft.count_pending_losses()
