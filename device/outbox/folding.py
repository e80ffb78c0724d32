"""Folding: of what is settled for good only a count is kept, so that accounts stay small over years.

A lane's lowest numbers are folded up to the first that is held, looked for, or waits for a receipt of its loss; whole
epochs are folded into one line that stands for all that are no more. The newest loss records and epochs stay as they
are: a server that was restored from a backup is told of those again.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from device.outbox import losses
from device.outbox.book import PAST, Book, Draft, Folded, LaneBook
from device.outbox.room import delete_receipted_of
from protocol.results import LANES
from protocol.spans import Span

PIECES_KEPT: Final = 512  # spans and loss records of a lane; with twice as many the older ones are folded
EPOCHS_KEPT: Final = 32
ROWS_AT_ONCE: Final = 500  # deleted in one transaction


def is_due(connection: sqlite3.Connection, book: Book) -> bool:
    """Whether accounts have become long."""
    if len(book.epochs) > EPOCHS_KEPT:
        return True
    records = losses.counts(connection)
    return any(
        len(facts.gone.spans) + len(facts.moved.spans) + records.get(key, 0) > 2 * PIECES_KEPT
        for key, facts in book.lanes.items()
    )


def fold_lanes(draft: Draft) -> None:
    """Folds the settled beginnings of lanes that have become long."""
    waiting = losses.oldest_waiting(draft.connection)
    for key in draft.lane_keys():
        facts = draft.lane(*key)
        records = losses.spans_of(draft.connection, key)
        end = end_of(facts, records, waiting.get(key))
        if end > facts.folded.end:
            losses.forget(draft.connection, key, end)
            draft.write(*key, folded_to(facts, end))


def fold_epochs(draft: Draft) -> bool:
    """Folds the oldest epoch if there are too many and nothing of it waits. Returns whether there may be more.

    Rows of it that the server has are let go first, some at a time: they are kept for as long as there is room.
    """
    oldest = min(draft.epochs)
    if len(draft.epochs) <= EPOCHS_KEPT or oldest == draft.current:
        return False
    facts = {lane: draft.lane(oldest, lane) for lane in LANES}
    if any(one.queued or one.astray for one in facts.values()) or draft.pending_losses.get(oldest):
        return False
    if any(delete_receipted_of(draft, (oldest, lane), ROWS_AT_ONCE) for lane in LANES):
        return True
    for lane, one in facts.items():
        past = draft.lane(PAST, lane).folded + folded_to(one, one.next_seq).folded
        draft.write(PAST, lane, LaneBook(next_seq=past.end, folded=past))
    draft.end_epoch(oldest)
    return True


def end_of(facts: LaneBook, records: Iterable[Span], waiting: int | None) -> int:
    """Up to where a lane should be folded: as far as it is, unless it has become long.

    Args:
        facts: Its accounts.
        records: The numbers of its loss records.
        waiting: The lowest number in a loss record that the server does not know of.
    """
    records = list(records)
    pieces = sorted(first for first, _ in (*facts.gone, *facts.moved, *records))
    if len(pieces) <= 2 * PIECES_KEPT:
        return facts.folded.end
    ends: list[int] = [spans.spans[0][0] for spans in (facts.queued, facts.receipted, facts.astray) if spans]
    end: int = min([pieces[-PIECES_KEPT], *ends, *([] if waiting is None else [waiting])])
    # A record goes whole or stays whole.
    return min([end, *(first for first, last in records if first < end <= last)])


def folded_to(facts: LaneBook, end: int) -> LaneBook:
    """The same accounts with all below `end` folded: gone, moved and lost, each of those numbers."""
    below, above = (facts.folded.end, end - 1), (end, facts.next_seq)
    more = Folded(*(len(spans.within(*below)) for spans in (facts.gone, facts.moved, facts.lost)))
    return replace(
        facts,
        gone=facts.gone.within(*above),
        moved=facts.moved.within(*above),
        lost=facts.lost.within(*above),
        folded=facts.folded + more,
    )
