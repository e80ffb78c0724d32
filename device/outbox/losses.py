"""Loss records: what was dropped, and why, until the server has receipted that it knows.

A record that was sent once stays as it is, for the server may hold its exact bytes; until then neighbours are one.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from device.outbox.keys import seal
from device.outbox.schema import sealed
from protocol.ids import Millis
from protocol.objects import RowRange
from protocol.results import Loss
from protocol.spans import Span
from protocol.wire import encode

LossReason = Literal["budget", "ttl", "damage"]

_COLUMNS: Final = 'id, epoch, lane, "first", "last", reason, at_ms, exact, offered, receipted, seal'


@dataclass(frozen=True)
class LossRow:
    """A record as it is kept. `id` 0: not kept yet."""

    id: int
    epoch: int
    lane: str
    first: int
    last: int
    reason: LossReason
    at_ms: Millis
    exact: bool = True
    offered: bool = False
    receipted: bool = False

    def record(self) -> bytes:
        """The exact bytes that travel: made anew from the columns, always the same."""
        return encode(
            Loss(
                lane=self.lane,
                first=self.first,
                last=self.last,
                reason=self.reason,
                at_ms=self.at_ms,
                exact=self.exact,
            )
        )


def all_of(connection: sqlite3.Connection) -> Iterator[LossRow]:
    """Every record."""
    return _select(connection, "", ())


def waiting(connection: sqlite3.Connection, epoch: int, most: int, after: int = 0) -> list[LossRow]:
    """The oldest records of an epoch that no receipt covers, of those with an id above `after`."""
    where = "WHERE epoch = ? AND receipted = 0 AND id > ? ORDER BY id LIMIT ?"
    return list(_select(connection, where, (epoch, after, most)))


def pending(connection: sqlite3.Connection) -> dict[int, int]:
    """How many records wait for a receipt, by epoch; epochs without one are absent."""
    return dict(connection.execute("SELECT epoch, count(*) FROM losses WHERE receipted = 0 GROUP BY epoch").fetchall())


def oldest_waiting(connection: sqlite3.Connection) -> dict[tuple[int, str], int]:
    """By epoch and lane the lowest number in a record that waits for a receipt."""
    query = "SELECT epoch, lane, min(first) FROM losses WHERE receipted = 0 GROUP BY epoch, lane"
    return {(epoch, lane): first for epoch, lane, first in connection.execute(query)}


def counts(connection: sqlite3.Connection) -> dict[tuple[int, str], int]:
    """How many records there are, by epoch and lane."""
    found = connection.execute("SELECT epoch, lane, count(*) FROM losses GROUP BY epoch, lane")
    return {(epoch, lane): count for epoch, lane, count in found}


def spans_of(connection: sqlite3.Connection, key: tuple[int, str]) -> list[Span]:
    """The numbers that the records of a lane name."""
    return [span(loss) for loss in _select(connection, "WHERE epoch = ? AND lane = ?", key)]


def forget(connection: sqlite3.Connection, key: tuple[int, str], end: int) -> None:
    """Lets go of a lane's records below a number."""
    connection.execute('DELETE FROM losses WHERE epoch = ? AND lane = ? AND "last" < ?', (*key, end))


def add(connection: sqlite3.Connection, new: LossRow) -> None:
    """Keeps a record; it becomes one with its neighbours where those were never sent."""
    if new.exact:
        near = list(
            _select(
                connection,
                "WHERE epoch = ? AND lane = ? AND reason = ? AND offered = 0 AND exact = 1 AND "
                '("last" = ? OR "first" = ?) ORDER BY id',
                (new.epoch, new.lane, new.reason, new.first - 1, new.last + 1),
            )
        )
        for old in near[1:]:
            connection.execute("DELETE FROM losses WHERE id = ?", (old.id,))
        if near:
            first, last = min(new.first, *(old.first for old in near)), max(new.last, *(old.last for old in near))
            _put(connection, replace(near[0], first=first, last=last))
            return
    _put(connection, new)


def mark_offered(connection: sqlite3.Connection, sent: LossRow) -> bool:
    """Notes that a record was put into a batch. False when it has changed since it was read."""
    found = next(_select(connection, "WHERE id = ?", (sent.id,)), None)
    if found is None or found.record() != sent.record():
        return False
    if not found.offered:
        _put(connection, replace(found, offered=True))
    return True


def settle(connection: sqlite3.Connection, epoch: int, covered: RowRange) -> int:
    """Notes that the server has the records that a receipt covers. Returns how many those were."""
    settled = 0
    here: tuple[int, str, int, int] = (epoch, covered.lane, covered.first, covered.last)
    where = 'WHERE epoch = ? AND lane = ? AND "first" = ? AND "last" = ? AND receipted = 0'
    for loss in list(_select(connection, where, here)):
        if hashlib.sha256(loss.record()).hexdigest() == covered.rows_sha256:
            _put(connection, replace(loss, receipted=True, offered=True))
            settled += 1
    return settled


def unsettle(connection: sqlite3.Connection) -> None:
    """All records wait again: the server that receipted them is no more."""
    for loss in list(_select(connection, "WHERE receipted = 1", ())):
        _put(connection, replace(loss, receipted=False))


def span(loss: LossRow) -> Span:
    """The numbers that it names."""
    return loss.first, loss.last


def _select(connection: sqlite3.Connection, where: str, values: tuple[object, ...]) -> Iterator[LossRow]:
    query = f"SELECT {_COLUMNS} FROM losses {where}"  # noqa: S608  (clauses of this module, values as parameters)
    for columns in sealed(connection, query, values):
        number, epoch, lane, first, last, reason, at_ms, *flags = columns
        exact, offered, receipted = (bool(flag) for flag in flags)
        yield LossRow(number, epoch, lane, first, last, reason, at_ms, exact, offered, receipted)


def _put(connection: sqlite3.Connection, loss: LossRow) -> None:
    if not loss.id:
        (highest,) = connection.execute("SELECT max(id) FROM losses").fetchone()
        loss = replace(loss, id=(highest or 0) + 1)
    columns = (loss.id, loss.epoch, loss.lane, loss.first, loss.last, loss.reason, loss.at_ms)
    flags = (int(loss.exact), int(loss.offered), int(loss.receipted))
    connection.execute(
        f"INSERT OR REPLACE INTO losses({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  (fixed)
        (*columns, *flags, seal(*columns, *flags)),
    )
