"""What each transaction of the outbox does: rows in, batches offered, receipts applied, rows numbered anew.

Functions over a `Draft`; `box.py` runs them in the writing thread.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

from device.outbox.book import GENERATION, Draft
from device.outbox.reading import Pick
from device.outbox.room import loss_record, record_loss
from device.outbox.spans import EMPTY, Spans
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import LANES, BatchBody


def insert(draft: Draft, rows: Sequence[tuple[str, bytes]]) -> list[int]:
    """Adds rows to the current epoch. Returns the number of each."""
    numbers: list[int] = []
    records = []
    next_seqs: dict[str, int] = {}
    for lane, body in rows:
        number = next_seqs.get(lane)
        if number is None:
            number = draft.lane(draft.current, lane).next_seq
        next_seqs[lane] = number + 1
        numbers.append(number)
        records.append((draft.current, lane, number, body, hashlib.sha256(body).digest()))
    for lane, next_seq in next_seqs.items():
        draft.grow(lane, next_seq - draft.lane(draft.current, lane).next_seq)
    draft.connection.executemany("INSERT INTO rows(epoch, lane, seq, body, sha256) VALUES (?, ?, ?, ?, ?)", records)
    return numbers


def offer(draft: Draft, pick: Pick, now_ms: int) -> bool:
    """Marks what is about to be sent, so that it is dropped last and its loss records stay as they are.

    Returns:
        False when the pick is out of date, or held damaged rows, which are counted as lost now.
    """
    fresh = True
    for lane, spans in pick.damaged.items():
        facts = draft.lane(pick.epoch, lane)
        gone = Spans.of(span for first, last in spans for span in facts.queued.within(first, last))
        if gone:
            record_loss(draft, (pick.epoch, lane), gone, "damage", now_ms)
        fresh = False
    for part in pick.lanes:
        facts = draft.lane(pick.epoch, part.lane)
        end = part.first + len(part.rows)
        fresh = fresh and facts.queued.covers(Spans(((part.first, end - 1),)))
    if not fresh:
        return False
    for part in pick.lanes:
        facts = draft.lane(pick.epoch, part.lane)
        end = part.first + len(part.rows)
        if end > facts.sent_before:
            draft.write(pick.epoch, part.lane, replace(facts, sent_before=end))
    for loss_id, last in pick.loss_ids:
        changed = draft.connection.execute(
            "UPDATE losses SET offered = 1 WHERE id = ? AND last = ?", (loss_id, last)
        ).rowcount
        fresh = fresh and changed == 1
    return fresh


def apply(draft: Draft, receipt: ReceiptsBody, fresh_epoch: Callable[[Draft], None]) -> int:
    """Settles what a receipt of the generation last met covers. Returns how many rows and losses that were."""
    number = draft.number_of(receipt.epoch)
    if number is None or receipt.generation != draft.generation:
        return 0
    settled = 0
    for covered in receipt.rows:
        facts = draft.lane(number, covered.lane)
        if covered.last >= facts.next_seq and number == draft.current:
            fresh_epoch(draft)
        news = facts.queued.within(covered.first, covered.last)
        if news and _holds(draft.connection, number, covered):
            draft.write(number, covered.lane, replace(facts, receipted=facts.receipted.union(news)))
            settled += len(news)
    for covered in receipt.losses:
        settled += _settle_loss(draft.connection, number, covered)
    draft.count_pending_losses()
    return settled


def renumber(draft: Draft, batch: BatchBody, fresh_epoch: Callable[[Draft], None]) -> int:
    """Moves the still queued rows of `batch` into a fresh epoch. Returns how many those were."""
    number = draft.number_of(batch.epoch)
    if number is None:
        return 0
    if number == draft.current:
        fresh_epoch(draft)
    moved = 0
    for part in batch.lanes:
        facts = draft.lane(number, part.lane)
        for first, last in facts.queued.within(part.first, part.first + len(part.rows) - 1):
            begin = draft.lane(draft.current, part.lane).next_seq
            draft.grow(part.lane, last - first + 1)
            draft.connection.execute(
                "UPDATE rows SET epoch = ?, seq = seq - ? + ? WHERE epoch = ? AND lane = ? AND seq BETWEEN ? AND ?",
                (draft.current, first, begin, number, part.lane, first, last),
            )
            facts = replace(facts, moved=facts.moved.add(first, last))
            moved += last - first + 1
        draft.write(number, part.lane, facts)
    return moved


def meet_generation(draft: Draft, generation: str) -> None:
    """Queues again what an earlier generation of the server had receipted and is still held."""
    for epoch in draft.epochs:
        for lane in LANES:
            facts = draft.lane(epoch, lane)
            if facts.receipted:
                draft.write(epoch, lane, replace(facts, receipted=EMPTY))
    draft.connection.execute("UPDATE losses SET receipted = 0 WHERE receipted = 1")
    draft.count_pending_losses()
    draft.remember(GENERATION, generation)


def _holds(connection: sqlite3.Connection, epoch: int, covered: RowRange) -> bool:
    """Whether the rows held here are exactly those that the receipt is for."""
    outer = hashlib.sha256()
    expected = covered.first
    for seq, inner in connection.execute(
        "SELECT seq, sha256 FROM rows WHERE epoch = ? AND lane = ? AND seq BETWEEN ? AND ? ORDER BY seq",
        (epoch, covered.lane, covered.first, covered.last),
    ):
        if seq != expected:
            return False
        expected += 1
        outer.update(inner)
    return expected == covered.last + 1 and outer.hexdigest() == covered.rows_sha256


def _settle_loss(connection: sqlite3.Connection, epoch: int, covered: RowRange) -> int:
    settled = 0
    for loss_id, reason, at_ms, exact in connection.execute(
        "SELECT id, reason, at_ms, exact FROM losses "
        "WHERE epoch = ? AND lane = ? AND first = ? AND last = ? AND receipted = 0",
        (epoch, covered.lane, covered.first, covered.last),
    ).fetchall():
        record = loss_record(covered.lane, covered.first, covered.last, reason=reason, at_ms=at_ms, exact=exact)
        if hashlib.sha256(record).hexdigest() == covered.rows_sha256:
            connection.execute("UPDATE losses SET receipted = 1, offered = 1 WHERE id = ?", (loss_id,))
            settled += 1
    return settled
