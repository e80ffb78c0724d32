"""How far the numbering is, kept beside the database: what tells that rows are gone when the database cannot.

A database that was deleted, or that lost its log, looks whole: it only knows of fewer rows. So a small file of its own
says for each lane which numbers may have been given (durable before they are) and which surely were (written after
each transaction, and not synced: it outlives a killed process, and of a power cut it may miss the last seconds).
After a power cut `reserved` bounds what is missing, otherwise `reached` tells it exactly.
"""

import contextlib
from binascii import crc32
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device.outbox.book import Book
from device.outbox.keys import EPOCH_LIMIT
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Count, Token
from protocol.results import LANES
from protocol.wire import Message, decode, encode
from signing import durable

RESERVED_ROWS: Final = 4096  # twenty seconds at 200 rows a second: so seldom is a row made to wait for this file
RESERVED_MOST: Final = 32_768  # at full speed
LINES_BYTES: Final = 256 * limits.KIB  # of appended lines; then the file is written anew
EPOCHS_KEPT: Final = 64


class LaneReach(Message):
    """One lane of one epoch.

    Args:
        settled: Below it every row is durable on the server, or a loss that the server knows of.
        reached: The number that the next row gets, as far as it is known.
        reserved: No row has this number or a higher one.
    """

    settled: Count
    reached: Count
    reserved: Count


class EpochReach(Message):
    """One epoch that rows are still held of.

    Args:
        no: Its number in the database.
        token: What the server knows it by.
        lanes: By name.
    """

    no: Count
    token: Token
    lanes: dict[str, LaneReach]


class Reach(Message):
    """The file.

    Args:
        boot: In which it was written.
        closed: The outbox was closed in order: what is reached is all there ever was.
        epochs: The last is the current one.
    """

    boot: str
    closed: bool
    epochs: tuple[EpochReach, ...]


@dataclass(frozen=True)
class Expected:
    """What must be in the database.

    Args:
        epochs: Tokens by number.
        at_least: By epoch's token and lane, the number that the next row surely has or exceeds.
        at_most: Likewise, what it does not exceed.
        settled: Likewise, what the server is known to have.
        clean: Whether the outbox was closed in order.
    """

    epochs: Mapping[int, str]
    at_least: Mapping[tuple[str, str], int]
    at_most: Mapping[tuple[str, str], int]
    settled: Mapping[tuple[str, str], int]
    clean: bool


def read(path: Path, boot: str) -> Expected | None:
    """What the file says; None when there is none, or it is damaged.

    Args:
        path: Of the file.
        boot: The current one: only in the same boot are lines that were never synced all there.
    """
    try:
        first, *lines = path.read_bytes().split(b"\n")
        seal, _, text = first.partition(b" ")
        if seal != _seal(text):
            return None
        head = decode(text, Reach, limit=limits.MIB)
    except (OSError, Refused):
        return None
    current = head.epochs[-1]
    reached = {lane: reach.reached for lane, reach in current.lanes.items()}
    for line in lines:
        seal, _, text = line.partition(b" ")
        if seal == _seal(text, current.token):
            numbers = (int(word) for word in text.split(b" "))
            reached = {lane: max(number, reached.get(lane, 0)) for lane, number in zip(LANES, numbers, strict=False)}
    at_least = {(one.token, lane): reach.reached for one in head.epochs for lane, reach in one.lanes.items()}
    at_least |= {(current.token, lane): number for lane, number in reached.items()}
    exact = head.closed or head.boot == boot
    at_most = {(one.token, lane): reach.reserved for one in head.epochs for lane, reach in one.lanes.items()}
    return Expected(
        epochs={one.no: one.token for one in head.epochs if 0 < one.no < EPOCH_LIMIT},
        at_least=at_least,
        at_most=at_least if exact else {key: max(most, at_least[key]) for key, most in at_most.items()},
        settled={(one.token, lane): reach.settled for one in head.epochs for lane, reach in one.lanes.items()},
        clean=head.closed,
    )


def by_mark(token: str, next_seqs: Mapping[str, int]) -> Expected:
    """What must be in the database by what somebody else remembers of its numbering, some seconds old."""
    reached = {(token, lane): number for lane, number in next_seqs.items()}
    return Expected(epochs={1: token}, at_least=reached, at_most=reached, settled={}, clean=True)


class Highwater:
    """Writes the file. Belongs to the writing thread.

    Args:
        path: Of the file.
        boot: The current one.
    """

    def __init__(self, path: Path, boot: str) -> None:
        self._path = path
        self._boot = boot
        self._part: durable.Part | None = None
        self._reserved: dict[str, int] = {}
        self._ahead = RESERVED_ROWS
        self._settled: dict[tuple[int, str], int] = {}

    def reserve(self, book: Book, more: Mapping[str, int], told: Callable[[], Mapping[tuple[int, str], int]]) -> None:
        """Makes sure that the numbers which `more` rows of each lane will get are covered; durable when this returns.

        On a full disk the numbers stay uncovered, and rows go in all the same.

        Args:
            book: The accounts before the rows.
            more: Rows by lane.
            told: By epoch and lane, the lowest number in a loss record that the server does not know of.
        """
        if all(
            book.lane(book.current, lane).next_seq + count <= self._reserved.get(lane, 0)
            for lane, count in more.items()
        ):
            return
        with contextlib.suppress(OSError):
            self.write(book, told(), more)
            self._ahead = min(2 * self._ahead, RESERVED_MOST)

    def write(
        self,
        book: Book,
        told: Mapping[tuple[int, str], int],
        more: Mapping[str, int] | None = None,
        *,
        closed: bool = False,
    ) -> None:
        """Writes the whole file anew; durable when this returns.

        Raises:
            OSError: The disk did not take it.
        """
        more = more or {}
        settled = settled_of(book, told)
        epochs: list[EpochReach] = []
        reserved: dict[str, int] = {}
        for number in sorted(book.epochs)[-EPOCHS_KEPT:]:
            lanes = {}
            for lane in LANES:
                next_seq = book.lane(number, lane).next_seq
                end = next_seq
                if number == book.current:
                    # A lane without rows yet needs no reserve before its first one.
                    ahead = self._ahead if more.get(lane) else 0
                    end = next_seq if closed else max(next_seq + more.get(lane, 0) + ahead, self._reserved.get(lane, 0))
                    reserved[lane] = end
                lanes[lane] = LaneReach(settled=settled.get((number, lane), 0), reached=next_seq, reserved=end)
            if number == book.current or any(reach.settled < reach.reached for reach in lanes.values()):
                epochs.append(EpochReach(no=number, token=book.epochs[number], lanes=lanes))
        text = encode(Reach(boot=self._boot, closed=closed, epochs=tuple(epochs)))
        self.close()
        durable.write(self._path, _seal(text) + b" " + text + b"\n")
        self._reserved, self._settled = reserved, settled

    def reached(self, book: Book) -> None:
        """Notes how far the current epoch is. Not synced, and a disk that does not take it is no failure.

        A line counts only for the epoch that it was written in: the file's head may be older.
        """
        text = b" ".join(b"%d" % book.lane(book.current, lane).next_seq for lane in LANES)
        with contextlib.suppress(OSError):
            if self._part is None:
                self._part = durable.open_part(self._path)
            self._part.append(_seal(text, book.epoch) + b" " + text + b"\n")

    def is_stale(self, book: Book, told: Mapping[tuple[int, str], int]) -> bool:
        """Whether it should be written anew: it has become long, or the server has more than it says."""
        return (self._part is not None and self._part.length_bytes > LINES_BYTES) or self._settled != settled_of(
            book, told
        )

    def forget_reserve(self) -> None:
        """A new epoch's numbers begin at 0."""
        self._reserved = {}

    def close(self) -> None:
        """Lets go of the file."""
        if self._part is not None:
            self._part.close()
            self._part = None


def settled_of(book: Book, told: Mapping[tuple[int, str], int]) -> dict[tuple[int, str], int]:
    """By epoch and lane, the number below which the server has every row or knows of its loss."""
    found: dict[tuple[int, str], int] = {}
    for key, facts in book.lanes.items():
        open_spans = [spans.spans[0][0] for spans in (facts.queued, facts.astray) if spans]
        found[key] = min([facts.next_seq, *open_spans, *([told[key]] if key in told else [])])
    return found


def _seal(text: bytes, token: str = "") -> bytes:
    return b"%08x" % crc32(text, crc32(token.encode()))
