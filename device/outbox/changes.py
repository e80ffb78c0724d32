"""What each transaction of the outbox does: rows in, batches offered, receipts applied, rows numbered anew.

Functions over a `Draft`; `box.py` runs them in the writing thread.
"""

import hashlib
import sqlite3
from binascii import crc32
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from device.outbox import losses, schema
from device.outbox.book import GENERATION, Draft
from device.outbox.keys import SEQ_LIMIT, lane_prefix, row_id, row_seal, seq_of
from device.outbox.reading import Pick
from device.outbox.room import record_loss
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import LANES, BatchBody
from protocol.spans import EMPTY, Spans

INSERT_ROW: Final = "INSERT INTO rows(id, seal, body) VALUES (?, ?, ?)"


def insert(
    draft: Draft, rows: Sequence[tuple[str, bytes]], fresh_epoch: Callable[[Draft], None] = lambda _: None
) -> list[int]:
    """Adds rows to the current epoch. Returns the number of each."""
    if any(draft.lane(draft.current, lane).next_seq + len(rows) > SEQ_LIMIT for lane in LANES):
        fresh_epoch(draft)
    epoch, token = draft.current, draft.epochs[draft.current]
    numbers = [0] * len(rows)
    for lane in {lane for lane, _ in rows}:
        first, base, prefix = draft.lane(epoch, lane).next_seq, row_id(epoch, lane, 0), lane_prefix(token, lane)
        bodies = [body for name, body in rows if name == lane]
        # The seal as in `row_seal`: a call for each row would be felt at full speed.
        draft.connection.executemany(
            INSERT_ROW,
            [(base + seq, crc32(body, (prefix + seq) & 0xFFFFFFFF), body) for seq, body in enumerate(bodies, first)],
        )
        draft.grow(lane, len(bodies))
        seqs = iter(range(first, first + len(bodies)))
        if len(bodies) == len(rows):
            return list(seqs)
        for place, (name, _) in enumerate(rows):
            if name == lane:
                numbers[place] = next(seqs)
    return numbers


def offer(draft: Draft, pick: Pick, now_ms: int) -> bool:
    """Marks what is about to be sent, so that it is dropped last and its loss records stay as they are.

    Returns:
        False when the pick is out of date, or held damaged rows, which are counted as lost now.

    Raises:
        sqlite3.DatabaseError: Rows are not where they should be: the file is damaged.
    """
    for lane, absent in pick.missing.items():
        facts = draft.lane(pick.epoch, lane)
        if any(facts.queued.within(first, last) for first, last in absent):
            raise schema.damaged(f"rows of {lane} are not there")
    fresh = not pick.missing
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
    for loss in pick.losses:
        fresh = losses.mark_offered(draft.connection, loss) and fresh
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
        settled += losses.settle(draft.connection, number, covered)
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
            _move(draft, part.lane, (number, first), (draft.current, begin), last - first + 1)
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
    losses.unsettle(draft.connection)
    draft.count_pending_losses()
    draft.remember(GENERATION, generation)


def _move(draft: Draft, lane: str, old: tuple[int, int], new: tuple[int, int], count: int) -> None:
    """Gives rows the numbers from `new` on in place of those from `old` on: each an epoch and a number."""
    first = row_id(old[0], lane, old[1])
    rows = draft.connection.execute(
        f"SELECT id, seal, {schema.BODY} FROM rows WHERE id BETWEEN ? AND ? ORDER BY id",  # noqa: S608  (fixed)
        (first, first + count - 1),
    ).fetchall()
    before, after = (lane_prefix(draft.epochs[epoch], lane) for epoch in (old[0], new[0]))
    records = []
    for key, seal, body in rows:
        seq = seq_of(key)
        number = new[1] + seq - old[1]
        # A seal that did not hold before must not hold afterwards.
        whole = row_seal(before, seq, body) == seal
        records.append((row_id(new[0], lane, number), row_seal(after, number, body) if whole else -1, body))
    draft.connection.execute("DELETE FROM rows WHERE id BETWEEN ? AND ?", (first, first + count - 1))
    draft.connection.executemany(INSERT_ROW, records)


def _holds(connection: sqlite3.Connection, epoch: int, covered: RowRange) -> bool:
    """Whether the rows held here are exactly those that the receipt is for."""
    if covered.lane not in LANES or covered.last >= SEQ_LIMIT:
        return False
    outer = hashlib.sha256()
    expected = row_id(epoch, covered.lane, covered.first)
    last = row_id(epoch, covered.lane, covered.last)
    for key, body in connection.execute(
        f"SELECT id, {schema.BODY} FROM rows WHERE id BETWEEN ? AND ? ORDER BY id",  # noqa: S608  (fixed)
        (expected, last),
    ):
        if key != expected:
            return False
        expected += 1
        outer.update(hashlib.sha256(body).digest())
    return expected == last + 1 and outer.hexdigest() == covered.rows_sha256
