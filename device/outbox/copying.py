"""Copies for a stick of all that waits for a receipt: read beside the writer and the drain, and nothing is touched.

What is copied stays queued. A row may so reach the server twice, by stick and by network, which counts it once; and it
may be dropped here later, with a loss record, while its copy lives on: the server counts it as a row once it comes.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from device.outbox import losses
from device.outbox.book import Book
from device.outbox.keys import lane_prefix, row_id, row_seal, seq_of
from device.outbox.losses import LossRow
from device.outbox.reading import LOSSES_A_BATCH, RUNS_A_BATCH
from device.outbox.schema import BODY
from protocol import limits
from protocol.results import LANES, BatchBody, LaneRows
from protocol.spans import EMPTY, Spans

LaneSpans = Mapping[str, Spans]


@dataclass(frozen=True)
class Elsewhere:
    """Rows and losses that need no copy: by epoch (its token) and lane."""

    rows: Mapping[tuple[str, str], Spans] = field(default_factory=dict)
    losses: Mapping[tuple[str, str], Spans] = field(default_factory=dict)


NOWHERE: Final = Elsewhere()


class Copies:
    """One pass over what waits: alarms of all epochs, oldest first; losses; results.

    Args:
        book: The accounts at the beginning.
        device: Whose rows these are.
        elsewhere: What is left out.
    """

    def __init__(self, book: Book, device: str, elsewhere: Elsewhere) -> None:
        self._epochs = book.epochs
        self._device = device
        self._elsewhere = elsewhere
        waiting = {
            lane: [
                (epoch, book.lane(epoch, lane).queued.minus(elsewhere.rows.get((token, lane), EMPTY)))
                for epoch, token in sorted(book.epochs.items())
            ]
            for lane in LANES
        }
        urgent, *rest = LANES
        self._steps = self._pass(urgent, waiting[urgent], [(lane, waiting[lane]) for lane in rest])
        self._reader: sqlite3.Connection
        self._limit_bytes = 0

    def read(self, reader: sqlite3.Connection, limit_bytes: int) -> BatchBody | None:
        """The next batch, or None at the end. Blocking; each call may bring another connection and limit."""
        self._reader, self._limit_bytes = reader, limit_bytes
        return next(self._steps, None)

    def _pass(
        self,
        urgent: str,
        first: Sequence[tuple[int, Spans]],
        rest: Sequence[tuple[str, Sequence[tuple[int, Spans]]]],
    ) -> Iterator[BatchBody]:
        for epoch, spans in first:
            yield from self._of_lane(epoch, urgent, spans)
        for epoch in sorted(self._epochs):
            yield from self._losses(epoch)
        for lane, waiting in rest:
            for epoch, spans in waiting:
                yield from self._of_lane(epoch, lane, spans)

    def _of_lane(self, epoch: int, lane: str, spans: Spans) -> Iterator[BatchBody]:
        while spans:
            runs, spans = self._runs(epoch, lane, spans)
            if runs:
                yield BatchBody(device=self._device, epoch=self._epochs[epoch], lanes=tuple(runs))

    def _runs(self, epoch: int, lane: str, spans: Spans) -> tuple[list[LaneRows], Spans]:
        """Runs of rows that are there and whole, as many as fit; and what is left behind them."""
        prefix = lane_prefix(self._epochs[epoch], lane)
        runs: list[tuple[int, list[bytes]]] = []
        taken_bytes = taken = 0
        for first, last in spans:
            bounds = (row_id(epoch, lane, first), row_id(epoch, lane, last))
            query = f"SELECT id, seal, {BODY} FROM rows WHERE id BETWEEN ? AND ? ORDER BY id"  # noqa: S608  (fixed)
            cursor = self._reader.execute(query, bounds)
            try:
                for key, mark, body in cursor:
                    seq = seq_of(key)
                    if row_seal(prefix, seq, body) != mark:
                        continue  # damaged: the drain counts it as lost
                    follows = bool(runs) and seq == runs[-1][0] + len(runs[-1][1])
                    full = taken_bytes + len(body) > self._limit_bytes or taken == limits.BATCH_ROWS
                    if runs and (full or (not follows and len(runs) == RUNS_A_BATCH)):
                        return _closed(lane, runs), spans.within(seq, spans.spans[-1][1])
                    if not follows:
                        runs.append((seq, []))
                    runs[-1][1].append(body)
                    taken_bytes += len(body)
                    taken += 1
            finally:
                cursor.close()
        return _closed(lane, runs), EMPTY

    def _losses(self, epoch: int) -> Iterator[BatchBody]:
        token, after = self._epochs[epoch], 0
        while found := losses.waiting(self._reader, epoch, LOSSES_A_BATCH, after):
            after = found[-1].id
            told = tuple(loss.record() for loss in found if not self._is_elsewhere(token, loss))
            if told:
                yield BatchBody(device=self._device, epoch=token, lanes=(), losses=told)

    def _is_elsewhere(self, token: str, loss: LossRow) -> bool:
        there = self._elsewhere.losses.get((token, loss.lane), EMPTY)
        return there.covers(Spans(((loss.first, loss.last),)))


def is_settled(reader: sqlite3.Connection, book: Book, epoch: str, rows: LaneSpans, told: LaneSpans) -> bool:
    """Whether a copy of these rows and loss records is of no use any more: see `Outbox.is_settled`. Blocking."""
    number = next((number for number, token in book.epochs.items() if token == epoch), None)
    if number is None:
        return False  # of a life of this outbox of which nothing else may be left
    for lane, spans in rows.items():
        facts = book.lane(number, lane)
        # Of what was folded no more is known than how much of it was lost. A row that was numbered anew goes by its
        # new number: by the old one the server holds another row.
        folded = Spans.of([(0, facts.folded.end - 1)]) if not facts.folded.lost else EMPTY
        if not facts.receipted.union(facts.gone, facts.moved, folded).covers(spans):
            return False
    waiting = list(losses.waiting(reader, number, limits.ROW_NUMBERS)) if told else []
    return not any(told[loss.lane].within(loss.first, loss.last) for loss in waiting if loss.lane in told)


def _closed(lane: str, runs: Sequence[tuple[int, Sequence[bytes]]]) -> list[LaneRows]:
    return [LaneRows(lane=lane, first=first, rows=tuple(rows)) for first, rows in runs]
