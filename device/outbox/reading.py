"""What goes into the next batch: the choice among epochs and lanes, and rows that are hashed again before they go."""

import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from device.outbox.book import Book, LaneKey
from device.outbox.room import loss_record
from device.outbox.spans import EMPTY, Span, Spans
from protocol import limits
from protocol.results import LANES, LaneRows

LOSSES_A_BATCH: Final = 1000  # 100 bytes each; more come with the next batch
RUNS_A_BATCH: Final = 1000  # each is a range of the receipt, which may hold no more than limits.RECEIPT_RANGES


@dataclass(frozen=True)
class Pick:
    """Rows and losses of one epoch, as they were read.

    Args:
        epoch: Its number.
        lanes: Runs of consecutive rows, alarms first.
        losses: Encoded loss records.
        loss_ids: Id and last number of each, to mark them as sent if they are still the same.
        damaged: Rows by lane that are missing or whose bytes no longer have their hash.
    """

    epoch: int
    lanes: tuple[LaneRows, ...]
    losses: tuple[bytes, ...]
    loss_ids: tuple[tuple[int, int], ...]
    damaged: Mapping[str, Spans]


def pick_epoch(book: Book) -> int | None:
    """The oldest epoch with queued alarms, else with queued results, else with a loss to tell; None when idle."""
    for lane in LANES:
        for epoch in sorted(book.epochs):
            if book.lane(epoch, lane).queued:
                return epoch
    return min(book.pending_losses, default=None)


def read_pick(connection: sqlite3.Connection, book: Book, epoch: int, limit_bytes: int) -> Pick:
    """Reads up to `limit_bytes` of rows, and the losses that wait."""
    runs: list[LaneRows] = []
    damaged: dict[str, Spans] = {}
    room_bytes, room_rows = limit_bytes, limits.BATCH_ROWS
    for lane in LANES:
        for first, last in book.lane(epoch, lane).queued:
            if room_bytes <= 0 or room_rows <= 0 or len(runs) >= RUNS_A_BATCH:
                break
            rows, bad = _read_run(
                connection, (epoch, lane), (first, min(last, first + room_rows - 1)), room_bytes, oblige=not runs
            )
            if bad:
                damaged[lane] = damaged.get(lane, EMPTY).union(bad)
            if not rows:
                break
            runs.append(LaneRows(lane=lane, first=first, rows=tuple(rows)))
            room_bytes -= sum(len(row) for row in rows)
            room_rows -= len(rows)
    losses = connection.execute(
        "SELECT id, lane, first, last, reason, at_ms, exact FROM losses "
        "WHERE epoch = ? AND receipted = 0 ORDER BY id LIMIT ?",
        (epoch, LOSSES_A_BATCH),
    ).fetchall()
    return Pick(
        epoch=epoch,
        lanes=tuple(runs),
        losses=tuple(
            loss_record(lane, first, last, reason=reason, at_ms=at_ms, exact=exact)
            for _, lane, first, last, reason, at_ms, exact in losses
        ),
        loss_ids=tuple((loss[0], loss[3]) for loss in losses),
        damaged=damaged,
    )


def _read_run(
    connection: sqlite3.Connection, key: LaneKey, span: Span, room_bytes: int, *, oblige: bool
) -> tuple[list[bytes], Spans]:
    """Rows from the span's first on, as many as fit (one in any case if `oblige`), and those that are damaged."""
    rows: list[bytes] = []
    bad: list[tuple[int, int]] = []
    expected, end = span
    cursor = connection.execute(
        "SELECT seq, body, sha256 FROM rows WHERE epoch = ? AND lane = ? AND seq BETWEEN ? AND ? ORDER BY seq",
        (*key, *span),
    )
    for seq, body, sha256 in cursor:
        if seq > expected:
            bad.append((expected, seq - 1))
        expected = seq + 1
        if hashlib.sha256(body).digest() != sha256:
            bad.append((seq, seq))
        elif room_bytes < len(body) and (rows or not oblige):
            break
        else:
            rows.append(body)
            room_bytes -= len(body)
    else:
        if expected <= end:
            bad.append((expected, end))
    cursor.close()
    return rows, Spans.of(bad)
