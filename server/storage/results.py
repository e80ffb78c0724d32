"""Ingested rows: each (device, epoch, lane, seq) once, its exact bytes; losses, counted; conflicts, apart."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, and_, column, delete, func, insert, select, update, values

from protocol.results import Loss
from protocol.spans import Spans
from server.storage.ageing import remove_oldest
from server.storage.codec import pairs
from server.storage.records import Totals
from server.storage.schema import conflicts, lane_totals, losses, lost_ranges, results

ASKED_TOGETHER = 5000  # numbers or ranges in one query: SQLite takes 32,766 parameters
CONFLICTS_A_DEVICE = 1000  # quarantined rows that are kept to look at; a device that makes more shows nothing new


@dataclass(frozen=True)
class StoredRow:
    """A row as it lies here. `id` is the order of arrival over all machines."""

    id: int
    epoch: str
    lane: str
    seq: int
    body: bytes


@dataclass(frozen=True)
class Added:
    """What came of rows: how many are new, and which numbers are here with other bytes."""

    fresh: int = 0
    clashing: tuple[int, ...] = ()


class Results:
    """Rows are written once and never changed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, device: str, epoch: str, lane: str, rows: Sequence[tuple[int, bytes]], *, at_ms: int) -> Added:
        """Keeps rows, each exactly once. One that was given up for lost is no longer counted as that.

        Args:
            device: Who made them.
            epoch: The life of its outbox.
            lane: Their lane.
            rows: Numbers and exact bytes, sorted by number.
            at_ms: When they came.

        Returns:
            How many were new; and the numbers of those that are here already with other bytes: quarantined, and not
            kept as rows.
        """
        if not rows:
            return Added()
        known = self._known(device, epoch, lane, [seq for seq, _ in rows])
        fresh: list[dict[str, object]] = []
        found: list[int] = []
        clashing: list[tuple[int, bytes, bytes]] = []
        for seq, body in rows:
            sha256 = hashlib.sha256(body).digest()
            if seq not in known:
                known[seq] = sha256
                found.append(seq)
                fresh.append(
                    {"device": device, "epoch": epoch, "lane": lane, "seq": seq, "sha256": sha256, "body": body}
                )
            elif known[seq] != sha256:
                clashing.append((seq, sha256, body))
        if fresh:
            self._connection.execute(insert(results), fresh)
        given_up = self._lost(device, epoch, lane, rows[0][0], rows[-1][0])
        self._count(
            device,
            epoch,
            lane,
            ingested=len(fresh),
            lost=-sum(seq in given_up for seq in found),
            next_seq=rows[-1][0] + 1,
        )
        for row in clashing:
            self._quarantine(device, epoch, lane, row, at_ms)
        return Added(len(fresh), tuple(seq for seq, _, _ in clashing))

    def add_losses(self, device: str, epoch: str, lane: str, told: Sequence[tuple[Loss, bytes]], *, at_ms: int) -> None:
        """Keeps loss records, each once by its exact bytes. Their numbers count as lost, each once, unless they are
        here as rows.

        Args:
            device: Who lost them.
            epoch: The life of its outbox.
            lane: Their lane.
            told: Records, read and as they came.
            at_ms: When they came.
        """
        by_hash = {hashlib.sha256(body).hexdigest(): (loss, body) for loss, body in told}
        here = (losses.c.device == device, losses.c.epoch == epoch, losses.c.lane == lane)
        known = set(
            self._connection.execute(select(losses.c.sha256).where(*here, losses.c.sha256.in_(by_hash))).scalars()
        )
        fresh = {sha256: one for sha256, one in by_hash.items() if sha256 not in known}
        if not fresh:
            return
        named = Spans.of((loss.first, loss.last) for loss, _ in fresh.values())
        first, last = named.spans[0][0], named.spans[-1][1]
        near = self._lost(device, epoch, lane, first - 1, last + 1)  # with the neighbours, that those may become one
        news = named.minus(near)
        self._connection.execute(
            insert(losses),
            [
                {
                    "device": device,
                    "epoch": epoch,
                    "lane": lane,
                    "sha256": sha256,
                    "first": loss.first,
                    "last": loss.last,
                    "body": body,
                    "received_ms": at_ms,
                }
                for sha256, (loss, body) in fresh.items()
            ],
        )
        self._replace_lost(device, epoch, lane, near, near.union(named))
        arrived = self._count_arrived(device, epoch, lane, news)
        self._count(device, epoch, lane, ingested=0, lost=len(news) - arrived, next_seq=last + 1)

    def forget_losses(self, before_ms: int, limit: int) -> int:
        """Removes the oldest loss records that came before then, at most `limit`. What they say stays counted.

        Returns:
            How many went.
        """
        return remove_oldest(self._connection, losses, before_ms, limit)

    def next_seqs(self, device: str, epoch: str) -> dict[str, int]:
        """One above the highest number seen of each lane of an epoch."""
        rows = self._connection.execute(
            select(lane_totals.c.lane, lane_totals.c.next_seq).where(
                lane_totals.c.device == device, lane_totals.c.epoch == epoch
            )
        )
        return pairs(rows)

    def epoch_totals(self, device: str, epoch: str) -> dict[str, Totals]:
        """What is here of each lane of an epoch."""
        rows = self._connection.execute(
            select(lane_totals.c.lane, lane_totals.c.ingested, lane_totals.c.lost).where(
                lane_totals.c.device == device, lane_totals.c.epoch == epoch
            )
        )
        return {lane: Totals(ingested=ingested, lost=lost) for lane, ingested, lost in rows}

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

    def _known(self, device: str, epoch: str, lane: str, seqs: Sequence[int]) -> dict[int, bytes]:
        """Hashes of those numbers that are here."""
        query = select(results.c.seq, results.c.sha256).where(
            results.c.device == device, results.c.epoch == epoch, results.c.lane == lane
        )
        if seqs[-1] - seqs[0] < 2 * len(seqs):
            return pairs(self._connection.execute(query.where(results.c.seq.between(seqs[0], seqs[-1]))))
        known: dict[int, bytes] = {}
        for begin in range(0, len(seqs), ASKED_TOGETHER):
            known |= pairs(
                self._connection.execute(query.where(results.c.seq.in_(seqs[begin : begin + ASKED_TOGETHER])))
            )
        return known

    def _lost(self, device: str, epoch: str, lane: str, first: int, last: int) -> Spans:
        """Of what was given up, the spans that reach into these numbers. Reads no others."""
        here = (lost_ranges.c.device == device, lost_ranges.c.epoch == epoch, lost_ranges.c.lane == lane)
        query = select(lost_ranges.c.first, lost_ranges.c.last).where(*here)
        before = query.where(lost_ranges.c.first < first).order_by(lost_ranges.c.first.desc()).limit(1)
        within = query.where(lost_ranges.c.first.between(first, last)).order_by(lost_ranges.c.first)
        rows = [*self._connection.execute(before), *self._connection.execute(within)]
        return Spans(tuple((begin, end) for begin, end in rows if end >= first))

    def _replace_lost(self, device: str, epoch: str, lane: str, old: Spans, new: Spans) -> None:
        """Writes spans of what was given up over those that they cover; what stays as it was is not touched."""
        here = (lost_ranges.c.device == device, lost_ranges.c.epoch == epoch, lost_ranges.c.lane == lane)
        gone = sorted(set(old.spans) - set(new.spans))
        for begin in range(0, len(gone), ASKED_TOGETHER):
            firsts = [first for first, _ in gone[begin : begin + ASKED_TOGETHER]]
            self._connection.execute(delete(lost_ranges).where(*here, lost_ranges.c.first.in_(firsts)))
        fresh = [
            {"device": device, "epoch": epoch, "lane": lane, "first": first, "last": last}
            for first, last in sorted(set(new.spans) - set(old.spans))
        ]
        if fresh:
            self._connection.execute(insert(lost_ranges), fresh)

    def _count_arrived(self, device: str, epoch: str, lane: str, asked_for: Spans) -> int:
        """How many rows with these numbers are here."""
        found = 0
        for begin in range(0, len(asked_for.spans), ASKED_TOGETHER):
            some = values(column("first", BigInteger), column("last", BigInteger))
            asked = some.data(list(asked_for.spans[begin : begin + ASKED_TOGETHER])).cte("asked")
            here = and_(
                results.c.device == device,
                results.c.epoch == epoch,
                results.c.lane == lane,
                results.c.seq.between(asked.c.first, asked.c.last),
            )
            found += self._connection.execute(select(func.count()).select_from(asked.join(results, here))).scalar_one()
        return found

    def _count(self, device: str, epoch: str, lane: str, *, ingested: int, lost: int, next_seq: int) -> None:
        here = (lane_totals.c.device == device, lane_totals.c.epoch == epoch, lane_totals.c.lane == lane)
        row = self._connection.execute(select(lane_totals).where(*here)).one_or_none()
        if row is None:
            self._connection.execute(
                insert(lane_totals).values(
                    device=device, epoch=epoch, lane=lane, ingested=ingested, lost=lost, next_seq=next_seq
                )
            )
        elif ingested or lost or next_seq > row.next_seq:
            self._connection.execute(
                update(lane_totals)
                .where(*here)
                .values(ingested=row.ingested + ingested, lost=row.lost + lost, next_seq=max(row.next_seq, next_seq))
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
