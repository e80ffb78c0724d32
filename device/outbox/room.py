"""Making room: what goes first when the outbox is over its budget, and the loss records that say so.

In this order: rows that the server has receipted; then `results`, then `alarms`, each lane by its policy. Of the queued
rows those that were never in a batch go before those that were: the server may hold the latter although its receipt
got lost, and a row must not be both ingested and counted as lost.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from device.outbox import losses
from device.outbox.book import Draft, LaneBook, LaneKey
from device.outbox.keys import row_id
from device.outbox.losses import LossReason, LossRow
from device.outbox.schema import used_bytes
from protocol.results import LANES
from protocol.spans import EMPTY, Span, Spans

CHUNK_ROWS: Final = 64  # what goes at once: the next rows then find room without a look
NEWEST_CHUNK_ROWS: Final = 8  # of the newest no more than must: they would have found room
THINNED_SPANS: Final = 2048  # rows that stand alone in a thinned lane, each with a loss record; beyond, the oldest go

WhenFull = Literal["drop-oldest", "drop-newest", "keep-one-in"]


@dataclass(frozen=True)
class LanePolicy:
    """What a lane gives up.

    Args:
        when_full: Which rows go when the outbox is full: the oldest; the newest; or of the oldest all whose number
            is not divisible by `keep_one_in`, and the oldest of those once nothing else is left.
        keep_one_in: See there.
        ttl_s: Rows that are surely older are dropped; 0 keeps them.
    """

    when_full: WhenFull = "drop-oldest"
    keep_one_in: int = 10
    ttl_s: float = 0.0


Policies = Mapping[str, LanePolicy]
"""By lane; one that is not named drops its oldest and keeps rows for ever."""


def make_room(draft: Draft, budget_bytes: int, policies: Policies, now_ms: int, *, of: Collection[str] = LANES) -> None:
    """Deletes until the database fits its budget or holds no row. Part of the caller's transaction.

    Args:
        draft: The transaction.
        budget_bytes: See there.
        policies: Of the lanes.
        now_ms: The time, sure or not.
        of: The lanes whose rows may go though they are still to be sent.
    """
    while used_bytes(draft.connection) > budget_bytes:
        if delete_receipted(draft, CHUNK_ROWS):
            continue
        if not _drop_queued(draft, policies, now_ms, of):
            return


def record_loss(
    draft: Draft, key: LaneKey, spans: Spans, reason: LossReason, now_ms: int, *, exact: bool = True
) -> None:
    """Deletes rows and counts them as lost.

    Args:
        draft: The transaction.
        key: Of the lane.
        spans: The numbers.
        reason: Why.
        now_ms: The time, sure or not.
        exact: False where the server may hold some of them: "at most" so many are lost.
    """
    epoch, lane = key
    for first, last in spans:
        _delete(draft, epoch, lane, (first, last))
        losses.add(draft.connection, LossRow(0, epoch, lane, first, last, reason, now_ms, exact=exact))
    book = draft.lane(epoch, lane)
    draft.write(epoch, lane, replace(book, lost=book.lost.union(spans), astray=book.astray.minus(spans)))
    draft.count_pending_losses()


def delete_receipted(draft: Draft, most: int) -> int:
    """Deletes the oldest receipted rows of one lane, at most so many. Returns how many those were."""
    for lane in reversed(LANES):
        for epoch in sorted(draft.epochs):
            deleted = delete_receipted_of(draft, (epoch, lane), most)
            if deleted:
                return deleted
    return 0


def delete_receipted_of(draft: Draft, key: LaneKey, most: int) -> int:
    """As `delete_receipted` for this lane of this epoch."""
    book = draft.lane(*key)
    oldest = book.receipted.head(most)
    for span in oldest:
        _delete(draft, *key, span)
    if oldest:
        draft.write(*key, replace(book, receipted=book.receipted.minus(oldest), gone=book.gone.union(oldest)))
    return len(oldest)


def _drop_queued(draft: Draft, policies: Policies, now_ms: int, of: Collection[str]) -> bool:
    for lane in (lane for lane in reversed(LANES) if lane in of):
        policy = policies.get(lane, LanePolicy())
        for unsent_only in (True, False):
            for epoch in sorted(draft.epochs, reverse=policy.when_full == "drop-newest"):
                book = draft.lane(epoch, lane)
                from_seq = book.sent_before if unsent_only else 0
                chosen = _choose(book.queued.within(from_seq, book.next_seq), policy, book)
                if chosen:
                    record_loss(draft, (epoch, lane), chosen, "budget", now_ms)
                    return True
    return False


def _choose(queued: Spans, policy: LanePolicy, book: LaneBook) -> Spans:
    """Which of these rows go next."""
    match policy.when_full:
        case "drop-newest":
            return queued.tail(NEWEST_CHUNK_ROWS)
        case "keep-one-in" if len(book.lost.spans) < THINNED_SPANS:
            return _between(queued, policy.keep_one_in) or queued.head(CHUNK_ROWS)
        case _:
            return queued.head(CHUNK_ROWS)


def _between(queued: Spans, keep_one_in: int) -> Spans:
    """The oldest rows whose number is not divisible: a chunk of them, in whole runs."""
    chosen: list[Span] = []
    count = 0
    for first, last in queued:
        seq = first
        while seq <= last:
            if seq % keep_one_in == 0:
                seq += 1
                continue
            end = min(last, seq - seq % keep_one_in + keep_one_in - 1)
            chosen.append((seq, end))
            count += end - seq + 1
            if count >= CHUNK_ROWS:
                return Spans(tuple(chosen))
            seq = end + 1
    return Spans(tuple(chosen)) if chosen else EMPTY


def _delete(draft: Draft, epoch: int, lane: str, span: Span) -> None:
    draft.connection.execute(
        "DELETE FROM rows WHERE id BETWEEN ? AND ?", (row_id(epoch, lane, span[0]), row_id(epoch, lane, span[1]))
    )
