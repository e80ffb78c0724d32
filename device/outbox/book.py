"""What became of every number of every lane: the accounts of the outbox, kept beside the rows and small.

Per epoch and lane the numbers from 0 to `next_seq` are each one of: queued, receipted and still held, gone (receipted
and deleted), lost (with a loss record), moved (numbered anew in a later epoch), or astray (looked for in a damaged
file). So `produced = queued + receipted + gone + lost + astray` can be told without reading a row. `next_seq` is
written only where rows are deleted, for as long as a lane's newest row is there it tells the number itself: the hot
path inserts rows and nothing else. Of the lowest numbers no more than a count may be kept (`folding.py`).
"""

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from device.outbox import losses
from device.outbox.keys import EPOCH_LIMIT, SEQ_LIMIT, row_id, seal, seq_of
from device.outbox.schema import sealed
from protocol.errors import StateError
from protocol.results import LANES
from protocol.spans import EMPTY, Span, Spans

KINDS: Final = ("receipted", "gone", "moved", "astray")
GENERATION: Final = "generation"
FRAMES_KEPT: Final = 4096  # marks of frames that cannot be removed from their source; beyond, the oldest go

PAST: Final = 0  # stands for all epochs that were folded; the first real one is 1

LaneKey = tuple[int, str]
"""Number of the epoch, name of the lane."""

FrameMark = tuple[str, str]
"""Name of a frame in its source, hash of its content."""


@dataclass(frozen=True)
class Folded:
    """How many of a lane's lowest numbers are gone, moved and lost, where no more than that is known."""

    gone: int = 0
    moved: int = 0
    lost: int = 0

    @property
    def end(self) -> int:
        """The first number that more is known of."""
        return self.gone + self.moved + self.lost

    def __add__(self, other: "Folded") -> "Folded":
        return Folded(self.gone + other.gone, self.moved + other.moved, self.lost + other.lost)


NOTHING: Final = Folded()


@dataclass(frozen=True)
class LaneBook:
    """The accounts of one lane in one epoch.

    Args:
        next_seq: The number that the next row gets.
        sent_before: Rows below it were put into a batch once, so the server may have them.
        receipted: Durable on the server, still held here.
        gone: Receipted and deleted here.
        moved: Numbered anew in a later epoch.
        lost: Dropped, each with a loss record.
        astray: Looked for in a damaged file: to be queued, or lost.
        folded: What the numbers below all of these were.
    """

    next_seq: int = 0
    sent_before: int = 0
    receipted: Spans = EMPTY
    gone: Spans = EMPTY
    moved: Spans = EMPTY
    lost: Spans = EMPTY
    astray: Spans = EMPTY
    folded: Folded = NOTHING

    @cached_property
    def queued(self) -> Spans:
        """Held and not receipted: what still has to be sent."""
        settled = self.receipted.union(self.gone, self.moved, self.lost, self.astray)
        return Spans.of([(self.folded.end, self.next_seq - 1)]).minus(settled)

    @property
    def produced(self) -> int:
        """Rows that were first enqueued here; a moved row is counted where it went."""
        return self.next_seq - len(self.moved) - self.folded.moved

    @property
    def sent(self) -> int:
        """Rows that the server has receipted, whether they are held here or not."""
        return len(self.receipted) + len(self.gone) + self.folded.gone

    @property
    def dropped(self) -> int:
        """Rows that were lost."""
        return len(self.lost) + self.folded.lost


@dataclass(frozen=True)
class Book:
    """All accounts.

    Args:
        current: Number of the epoch that new rows get.
        epochs: Tokens by number.
        lanes: Accounts by epoch and lane; under `PAST` what is left of epochs that are no more.
        pending_losses: How many loss records wait for a receipt, by epoch; epochs without one are absent.
        meta: Words of the outbox's own, such as the server's generation.
        done_frames: Frames whose rows are durable, and that may lie in their source all the same: contents by name.
    """

    current: int
    epochs: Mapping[int, str]
    lanes: Mapping[LaneKey, LaneBook]
    pending_losses: Mapping[int, int] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    done_frames: Mapping[str, str] = field(default_factory=dict)

    @property
    def epoch(self) -> str:
        """The current epoch's token."""
        return self.epochs[self.current]

    def lane(self, epoch: int, lane: str) -> LaneBook:
        """The accounts of one lane; empty ones when it never had a row."""
        return self.lanes.get((epoch, lane), LaneBook())

    @cached_property
    def next_seqs(self) -> dict[str, int]:
        """The number that the next row of each lane gets."""
        return {lane: self.lane(self.current, lane).next_seq for lane in LANES}

    @property
    def generation(self) -> str | None:
        """The server's generation that was last met."""
        return self.meta.get(GENERATION)


def load(connection: sqlite3.Connection) -> Book:
    """Reads the accounts. A book without epochs has `current` 0: the caller makes the first."""
    epochs = dict(sealed_pairs(connection, "SELECT no, token, made_ms, seal FROM epochs ORDER BY no"))
    lanes: dict[LaneKey, LaneBook] = {
        (epoch, lane): LaneBook(next_seq=next_seq, sent_before=sent_before, folded=Folded(*folded))
        for epoch, lane, next_seq, sent_before, *folded in sealed(
            connection,
            "SELECT epoch, lane, next_seq, sent_before, folded_gone, folded_moved, folded_lost, seal FROM lanes",
        )
    }
    # One look-up a lane: SQLite answers max() of a key within bounds from the tree's edge.
    for key, book in list(lanes.items()):
        bounds = (row_id(*key, 0), row_id(*key, SEQ_LIMIT - 1))
        (newest,) = connection.execute("SELECT max(id) FROM rows WHERE id BETWEEN ? AND ?", bounds).fetchone()
        lanes[key] = replace(book, next_seq=max(book.next_seq, 0 if newest is None else seq_of(newest) + 1))
    spans: dict[LaneKey, dict[str, list[Span]]] = {}
    for epoch, lane, kind, first, last in sealed(connection, "SELECT epoch, lane, kind, first, last, seal FROM spans"):
        spans.setdefault((epoch, lane), {}).setdefault(kind, []).append((first, last))
    for loss in losses.all_of(connection):
        spans.setdefault((loss.epoch, loss.lane), {}).setdefault("lost", []).append((loss.first, loss.last))
    for key, found in spans.items():
        lanes[key] = replace(
            lanes.get(key, LaneBook()),
            receipted=Spans.of(found.get("receipted", ())),
            gone=Spans.of(found.get("gone", ())),
            moved=Spans.of(found.get("moved", ())),
            lost=Spans.of(found.get("lost", ())),
            astray=Spans.of(found.get("astray", ())),
        )
    return Book(
        current=max(epochs, default=0),
        epochs=epochs,
        lanes=lanes,
        pending_losses=losses.pending(connection),
        meta=dict(sealed_pairs(connection, "SELECT key, value, seal FROM meta")),
        done_frames=dict(sealed_pairs(connection, "SELECT name, content, seal FROM frames ORDER BY rowid")),
    )


class Draft:
    """The accounts inside one transaction: changes go to the database at once, and are the book only once committed."""

    def __init__(self, connection: sqlite3.Connection, book: Book) -> None:
        self.connection = connection
        self._book = book
        self._lanes = dict(book.lanes)
        self._epochs = dict(book.epochs)
        self._meta = dict(book.meta)
        self._current = book.current
        self._pending_losses = book.pending_losses
        self._done_frames = book.done_frames

    @property
    def current(self) -> int:
        """The number of the current epoch."""
        return self._current

    @property
    def epochs(self) -> Mapping[int, str]:
        """Tokens by number."""
        return self._epochs

    @property
    def generation(self) -> str | None:
        """The server's generation that was last met."""
        return self._meta.get(GENERATION)

    def number_of(self, token: str) -> int | None:
        """The number of the epoch with this token."""
        return next((no for no, known in self._epochs.items() if known == token), None)

    @property
    def pending_losses(self) -> Mapping[int, int]:
        """How many loss records wait for a receipt, by epoch; epochs without one are absent."""
        return self._pending_losses

    def lane_keys(self) -> list[LaneKey]:
        """The lanes that there are accounts of."""
        return list(self._lanes)

    def lane(self, epoch: int, lane: str) -> LaneBook:
        """As it stands now in this transaction."""
        return self._lanes.get((epoch, lane), LaneBook())

    def grow(self, lane: str, count: int) -> None:
        """Counts `count` new rows of the current epoch; the rows themselves keep the number durable."""
        key = (self._current, lane)
        if key not in self._lanes:
            self.write(self._current, lane, LaneBook())
        book = self._lanes[key]
        self._lanes[key] = replace(book, next_seq=book.next_seq + count)

    def write(self, epoch: int, lane: str, book: LaneBook) -> None:
        """Puts the whole accounts of a lane into the database."""
        old = self.lane(epoch, lane)
        folded = (book.folded.gone, book.folded.moved, book.folded.lost)
        self.connection.execute(
            "INSERT OR REPLACE INTO "
            "lanes(epoch, lane, next_seq, sent_before, folded_gone, folded_moved, folded_lost, seal) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*(row := (epoch, lane, book.next_seq, book.sent_before, *folded)), seal(*row)),
        )
        for kind in KINDS:
            spans: Spans = getattr(book, kind)
            if spans != getattr(old, kind):
                self.connection.execute(
                    "DELETE FROM spans WHERE epoch = ? AND lane = ? AND kind = ?", (epoch, lane, kind)
                )
                self.connection.executemany(
                    "INSERT INTO spans(epoch, lane, kind, first, last, seal) VALUES (?, ?, ?, ?, ?, ?)",
                    [(*(one := (epoch, lane, kind, *span)), seal(*one)) for span in spans],
                )
        self._lanes[(epoch, lane)] = book

    def begin_epoch(self, token: str, now_ms: int, number: int | None = None) -> None:
        """New rows are numbered from 0 under `token` from here on; `number` is that of an epoch that is taken over."""
        number = number or max(self._epochs, default=0) + 1
        if number >= EPOCH_LIMIT:
            raise StateError("the outbox has had more lives than it can number")
        self._current = number
        self._epochs[number] = token
        row = (number, token, now_ms)
        self.connection.execute("INSERT INTO epochs(no, token, made_ms, seal) VALUES (?, ?, ?, ?)", (*row, seal(*row)))

    def end_epoch(self, number: int) -> None:
        """Lets go of all that is known of an epoch."""
        for table in ("lanes", "spans", "losses", "moments"):
            self.connection.execute(f"DELETE FROM {table} WHERE epoch = ?", (number,))  # noqa: S608  (fixed)
        self.connection.execute("DELETE FROM epochs WHERE no = ?", (number,))
        del self._epochs[number]
        for key in [key for key in self._lanes if key[0] == number]:
            del self._lanes[key]

    def remember(self, key: str, value: str) -> None:
        """Keeps a word of the outbox's own, such as the server's generation."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, seal(key, value)))
        self._meta[key] = value

    def mark_done(self, frames: Iterable[FrameMark]) -> None:
        """Notes that all rows of these frames are in: a frame that is met again is not inferred again."""
        marks = dict(self._done_frames)
        for name, content in frames:
            marks.pop(name, None)  # the newest stand last
            marks[name] = content
            self.connection.execute(
                "INSERT OR REPLACE INTO frames VALUES (?, ?, ?)", (name, content, seal(name, content))
            )
        for name in list(marks)[: max(0, len(marks) - FRAMES_KEPT)]:
            del marks[name]
            self.connection.execute("DELETE FROM frames WHERE name = ?", (name,))
        self._done_frames = marks

    def forget_done(self, frames: Iterable[FrameMark]) -> None:
        """Lets go of marks; one whose name stands for another content by now stays."""
        marks = dict(self._done_frames)
        for name, content in frames:
            if marks.get(name) == content:
                del marks[name]
                self.connection.execute("DELETE FROM frames WHERE name = ?", (name,))
        self._done_frames = marks

    def count_pending_losses(self) -> None:
        """Looks again how many loss records wait for a receipt."""
        self._pending_losses = losses.pending(self.connection)

    def book(self) -> Book:
        """The accounts as they are once this transaction committed."""
        return Book(
            current=self._current,
            epochs=self._epochs,
            lanes=self._lanes,
            pending_losses=self._pending_losses,
            meta=self._meta,
            done_frames=self._done_frames,
        )


def sealed_pairs(connection: sqlite3.Connection, query: str) -> list[tuple[Any, Any]]:
    """The first two columns of sealed rows."""
    return [(key, value) for key, value, *_ in sealed(connection, query)]
