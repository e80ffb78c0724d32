"""Ingested rows: each (device, epoch, lane, seq) once, its exact bytes; losses, counted; conflicts, apart."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from protocol.results import Loss
from server.storage.codec import pairs
from server.storage.records import Totals
from server.storage.schema import conflicts, lane_totals, losses, results

CONFLICTS_A_DEVICE = 1000  # quarantined rows that are kept to look at; a device that makes more shows nothing new


@dataclass(frozen=True)
class StoredRow:
    """A row as it lies here. `id` is the order of arrival over all machines."""

    id: int
    epoch: str
    lane: str
    seq: int
    body: bytes


class Results:
    """Rows are written once and never changed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, device: str, epoch: str, lane: str, first: int, rows: Sequence[bytes], *, at_ms: int) -> list[int]:
        """Keeps consecutive rows, each exactly once.

        Args:
            device: Who made them.
            epoch: The life of its outbox.
            lane: Their lane.
            first: The number of the first row.
            rows: Exact bytes.
            at_ms: When they came.

        Returns:
            The numbers of the rows that are here already with other bytes: quarantined, and not kept as rows.
        """
        if not rows:
            return []
        known = pairs(
            self._connection.execute(
                select(results.c.seq, results.c.sha256).where(
                    results.c.device == device,
                    results.c.epoch == epoch,
                    results.c.lane == lane,
                    results.c.seq.between(first, first + len(rows) - 1),
                )
            )
        )
        fresh = []
        clashing: list[tuple[int, bytes, bytes]] = []
        for seq, body in enumerate(rows, first):
            sha256 = hashlib.sha256(body).digest()
            if seq not in known:
                fresh.append(
                    {"device": device, "epoch": epoch, "lane": lane, "seq": seq, "sha256": sha256, "body": body}
                )
            elif known[seq] != sha256:
                clashing.append((seq, sha256, body))
        if fresh:
            self._connection.execute(insert(results), fresh)
        self._count(device, epoch, lane, ingested=len(fresh), next_seq=first + len(rows))
        for row in clashing:
            self._quarantine(device, epoch, lane, row, at_ms)
        return [seq for seq, _, _ in clashing]

    def add_loss(self, device: str, epoch: str, loss: Loss, body: bytes, at_ms: int) -> None:
        """Keeps a loss record, once by its exact bytes."""
        sha256 = hashlib.sha256(body).hexdigest()
        here = (losses.c.device == device, losses.c.epoch == epoch, losses.c.lane == loss.lane)
        known = self._connection.execute(select(losses.c.first).where(*here, losses.c.sha256 == sha256)).one_or_none()
        if known is None:
            self._connection.execute(
                insert(losses).values(
                    device=device,
                    epoch=epoch,
                    lane=loss.lane,
                    sha256=sha256,
                    first=loss.first,
                    last=loss.last,
                    body=body,
                    received_ms=at_ms,
                )
            )
            self._count(device, epoch, loss.lane, ingested=0, next_seq=loss.last + 1)

    def recount_lost(self, device: str, epoch: str, lane: str) -> None:
        """Brings the count of lost rows up to date: numbers inside loss records that never arrived as rows."""
        here = (losses.c.device == device, losses.c.epoch == epoch, losses.c.lane == lane)
        ranges = self._connection.execute(
            select(losses.c.first, losses.c.last).where(*here).order_by(losses.c.first, losses.c.last)
        ).all()
        if not ranges:
            return
        lost = 0
        for first, last in _merge([(first, last) for first, last in ranges]):
            arrived = self._connection.execute(
                select(func.count())
                .select_from(results)
                .where(
                    results.c.device == device,
                    results.c.epoch == epoch,
                    results.c.lane == lane,
                    results.c.seq.between(first, last),
                )
            ).scalar_one()
            lost += last - first + 1 - arrived
        self._connection.execute(
            update(lane_totals)
            .where(lane_totals.c.device == device, lane_totals.c.epoch == epoch, lane_totals.c.lane == lane)
            .values(lost=lost)
        )

    def next_seqs(self, device: str, epoch: str) -> dict[str, int]:
        """One above the highest number seen of each lane of an epoch."""
        rows = self._connection.execute(
            select(lane_totals.c.lane, lane_totals.c.next_seq).where(
                lane_totals.c.device == device, lane_totals.c.epoch == epoch
            )
        )
        return pairs(rows)

    def totals(self) -> dict[str, dict[str, Totals]]:
        """What is here of every machine, by lane, over all epochs."""
        rows = self._connection.execute(
            select(
                lane_totals.c.device,
                lane_totals.c.lane,
                func.sum(lane_totals.c.ingested),
                func.sum(lane_totals.c.lost),
            ).group_by(lane_totals.c.device, lane_totals.c.lane)
        )
        found: dict[str, dict[str, Totals]] = {}
        for device, lane, ingested, lost in rows:
            found.setdefault(device, {})[lane] = Totals(ingested=int(ingested), lost=int(lost))
        return found

    def conflict_counts(self) -> dict[str, int]:
        """How many quarantined rows each machine has."""
        rows = self._connection.execute(select(conflicts.c.device, func.count()).group_by(conflicts.c.device))
        return pairs(rows)

    def rows(self, device: str, lane: str | None, after: int, limit: int) -> list[StoredRow]:
        """Rows in the order of their arrival, which within a lane is the order in which they were sent."""
        query = (
            select(results.c.id, results.c.epoch, results.c.lane, results.c.seq, results.c.body)
            .where(results.c.device == device, results.c.id > after)
            .order_by(results.c.id)
            .limit(limit)
        )
        if lane is not None:
            query = query.where(results.c.lane == lane)
        return [StoredRow(**row._mapping) for row in self._connection.execute(query)]

    def _count(self, device: str, epoch: str, lane: str, *, ingested: int, next_seq: int) -> None:
        here = (lane_totals.c.device == device, lane_totals.c.epoch == epoch, lane_totals.c.lane == lane)
        row = self._connection.execute(
            select(lane_totals.c.ingested, lane_totals.c.next_seq).where(*here)
        ).one_or_none()
        if row is None:
            self._connection.execute(
                insert(lane_totals).values(
                    device=device, epoch=epoch, lane=lane, ingested=ingested, lost=0, next_seq=next_seq
                )
            )
        elif ingested or next_seq > row.next_seq:
            self._connection.execute(
                update(lane_totals)
                .where(*here)
                .values(ingested=row.ingested + ingested, next_seq=max(row.next_seq, next_seq))
            )

    def _quarantine(self, device: str, epoch: str, lane: str, row: tuple[int, bytes, bytes], at_ms: int) -> None:
        seq, sha256, body = row
        mine = select(func.count()).select_from(conflicts).where(conflicts.c.device == device)
        same = select(conflicts.c.seq).where(
            conflicts.c.device == device,
            conflicts.c.epoch == epoch,
            conflicts.c.lane == lane,
            conflicts.c.seq == seq,
            conflicts.c.sha256 == sha256,
        )
        if self._connection.execute(same).one_or_none() is not None:
            return
        if self._connection.execute(mine).scalar_one() >= CONFLICTS_A_DEVICE:
            return
        self._connection.execute(
            insert(conflicts).values(
                device=device, epoch=epoch, lane=lane, seq=seq, sha256=sha256, body=body, received_ms=at_ms
            )
        )


def _merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of ranges that come in order of their beginning, as few ranges as possible."""
    merged: list[tuple[int, int]] = []
    for first, last in ranges:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged
