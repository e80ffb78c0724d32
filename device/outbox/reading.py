"""What goes into the next batch: the choice among epochs and lanes; rows are looked at again before they go."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from device.outbox import losses
from device.outbox.book import Book, LaneBook, LaneKey
from device.outbox.keys import lane_prefix, row_id, row_seal, seq_of
from device.outbox.losses import LossRow
from device.outbox.schema import BODY
from protocol import limits
from protocol.results import LANES, LaneRows
from protocol.spans import EMPTY, Span, Spans

LOSSES_A_BATCH: Final = 1000  # more come with the next batch
LOSS_BYTES: Final = 128  # about what one takes
RUNS_A_BATCH: Final = 1000  # each is a range of the receipt, which may hold no more than limits.RECEIPT_RANGES


@dataclass(frozen=True)
class Pick:
    """Rows and losses of one epoch, as they were read.

    Args:
        epoch: Its number.
        lanes: Runs of consecutive rows: of alarms, or where none wait, of results.
        losses: Loss records; none beside alarms.
        damaged: Rows by lane that no longer are what was put in.
        missing: Rows by lane that were not there: dropped meanwhile, or the file is damaged.
    """

    epoch: int
    lanes: tuple[LaneRows, ...]
    losses: tuple[LossRow, ...]
    damaged: Mapping[str, Spans]
    missing: Mapping[str, Spans]


def pick_epoch(book: Book, *, in_order: bool = True) -> int | None:
    """The oldest epoch with alarms to send, else with results to send, else with a loss to tell; None when idle.

    Args:
        book: The accounts.
        in_order: Rows wait for what is looked for of their lane before them; False while salvage cannot go on.
    """
    for lane in LANES:
        for epoch in sorted(book.epochs):
            facts = book.lane(epoch, lane)
            if sendable(facts, in_order=in_order):
                return epoch
            if in_order and facts.astray:  # what is found of it goes before the rows of later epochs
                break
    return min(book.pending_losses, default=None)


def sendable(facts: LaneBook, *, in_order: bool) -> Spans:
    """What may go of a lane: `in_order`, rows behind one that is still looked for in a damaged file wait for it."""
    if not (in_order and facts.astray):
        return facts.queued
    return facts.queued.within(0, facts.astray.spans[0][0] - 1)


def read_pick(
    connection: sqlite3.Connection, book: Book, epoch: int, limit_bytes: int, *, in_order: bool = True
) -> Pick:
    """Reads up to `limit_bytes` of rows, and as much of the losses that wait.

    Alarms go alone: over a link that hardly carries anything, they must not wait for what could come later. `in_order`
    is as of `pick_epoch`.
    """
    runs: list[LaneRows] = []
    damaged: dict[str, Spans] = {}
    missing: dict[str, Spans] = {}
    room_bytes, room_rows = limit_bytes, limits.BATCH_ROWS
    for lane in LANES:
        if runs:
            break
        if in_order and any(book.lane(older, lane).astray for older in book.epochs if older < epoch):
            continue
        prefix = lane_prefix(book.epochs[epoch], lane)
        for first, last in sendable(book.lane(epoch, lane), in_order=in_order):
            if room_bytes <= 0 or room_rows <= 0 or len(runs) >= RUNS_A_BATCH:
                break
            span = (first, min(last, first + room_rows - 1))
            rows, bad, absent = _read_run(connection, (epoch, lane), prefix, span, room_bytes, oblige=not runs)
            if bad:
                damaged[lane] = damaged.get(lane, EMPTY).union(bad)
            if absent:
                missing[lane] = missing.get(lane, EMPTY).union(absent)
            if not rows:
                break
            runs.append(LaneRows(lane=lane, first=first, rows=tuple(rows)))
            if first + len(rows) <= last:  # what comes behind waits, however short: the order of a lane is kept
                break
            room_bytes -= sum(len(row) for row in rows)
            room_rows -= len(rows)
    beside_alarms = bool(runs) and runs[0].lane == LANES[0]
    most_losses = 0 if beside_alarms else min(LOSSES_A_BATCH, 1 + limit_bytes // LOSS_BYTES)
    return Pick(
        epoch=epoch,
        lanes=tuple(runs),
        losses=tuple(losses.waiting(connection, epoch, most_losses)),
        damaged=damaged,
        missing=missing,
    )


def _read_run(
    connection: sqlite3.Connection, key: LaneKey, prefix: int, span: Span, room_bytes: int, *, oblige: bool
) -> tuple[list[bytes], Spans, Spans]:
    """Rows from the span's first on, as many as fit (one in any case if `oblige`); those damaged; those missing."""
    rows: list[bytes] = []
    bad: list[Span] = []
    absent: list[Span] = []
    expected, end = span
    cursor = connection.execute(
        f"SELECT id, seal, {BODY} FROM rows WHERE id BETWEEN ? AND ? ORDER BY id",  # noqa: S608  (fixed)
        (row_id(*key, expected), row_id(*key, end)),
    )
    for row, seal, body in cursor:
        seq = seq_of(row)
        absent.append((expected, seq - 1))
        expected = seq + 1
        if row_seal(prefix, seq, body) != seal:
            bad.append((seq, seq))
        elif room_bytes < len(body) and (rows or not oblige):
            break
        else:
            rows.append(body)
            room_bytes -= len(body)
    else:
        absent.append((expected, end))
    cursor.close()
    return rows, Spans.of(bad), Spans.of(absent)
