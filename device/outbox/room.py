"""Making room: what goes first when the outbox is over its budget, and the loss records that say so.

In this order: rows that the server has receipted; then `results`, then `alarms`, the oldest first. Of the queued rows
those that were never in a batch go before those that were: the server may hold the latter although its receipt got
lost, and a row must not be both ingested and counted as lost.
"""

from dataclasses import replace
from typing import Final, Literal

from device.outbox.book import Draft, LaneKey
from device.outbox.schema import used_bytes
from device.outbox.spans import Spans
from protocol.results import LANES, Loss
from protocol.wire import encode

CHUNK_ROWS: Final = 64  # what goes at once: the next rows then find room without a look

LossReason = Literal["budget", "ttl", "damage"]


def make_room(draft: Draft, budget_bytes: int, now_ms: int) -> None:
    """Deletes until the database fits its budget or holds no row. Part of the caller's transaction."""
    while used_bytes(draft.connection) > budget_bytes:
        if not (_delete_receipted(draft) or _drop_queued(draft, now_ms)):
            return


def record_loss(draft: Draft, key: LaneKey, spans: Spans, reason: LossReason, now_ms: int) -> None:
    """Deletes rows and counts them as lost.

    A loss that follows the newest record directly makes it longer, unless that record was sent once: the server may
    hold its exact bytes.
    """
    epoch, lane = key
    for first, last in spans:
        _delete(draft, epoch, lane, first, last)
        newest = draft.connection.execute(
            "SELECT id, last FROM losses WHERE epoch = ? AND lane = ? AND reason = ? AND offered = 0 AND exact = 1 "
            "ORDER BY id DESC LIMIT 1",
            (epoch, lane, reason),
        ).fetchone()
        if newest is not None and newest[1] == first - 1:
            draft.connection.execute("UPDATE losses SET last = ? WHERE id = ?", (last, newest[0]))
        else:
            draft.connection.execute(
                "INSERT INTO losses(epoch, lane, first, last, reason, at_ms, exact, offered, receipted) "
                "VALUES (?, ?, ?, ?, ?, ?, 1, 0, 0)",
                (epoch, lane, first, last, reason, now_ms),
            )
    book = draft.lane(epoch, lane)
    draft.write(epoch, lane, replace(book, lost=book.lost.union(spans)))
    draft.count_pending_losses()


def loss_record(lane: str, first: int, last: int, *, reason: LossReason, at_ms: int, exact: int) -> bytes:
    """The exact bytes of a loss record: made anew from its columns, always the same."""
    return encode(Loss(lane=lane, first=first, last=last, reason=reason, at_ms=at_ms, exact=bool(exact)))


def _delete_receipted(draft: Draft) -> bool:
    for lane in reversed(LANES):
        for epoch in sorted(draft.epochs):
            book = draft.lane(epoch, lane)
            oldest = book.receipted.head(CHUNK_ROWS)
            if oldest:
                for first, last in oldest:
                    _delete(draft, epoch, lane, first, last)
                draft.write(
                    epoch,
                    lane,
                    replace(book, receipted=book.receipted.minus(oldest), gone=book.gone.union(oldest)),
                )
                return True
    return False


def _drop_queued(draft: Draft, now_ms: int) -> bool:
    for lane in reversed(LANES):
        for unsent_only in (True, False):
            for epoch in sorted(draft.epochs):
                book = draft.lane(epoch, lane)
                from_seq = book.sent_before if unsent_only else 0
                oldest = book.queued.within(from_seq, book.next_seq).head(CHUNK_ROWS)
                if oldest:
                    record_loss(draft, (epoch, lane), oldest, "budget", now_ms)
                    return True
    return False


def _delete(draft: Draft, epoch: int, lane: str, first: int, last: int) -> None:
    draft.connection.execute(
        "DELETE FROM rows WHERE epoch = ? AND lane = ? AND seq BETWEEN ? AND ?", (epoch, lane, first, last)
    )
