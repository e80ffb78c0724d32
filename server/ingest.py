"""Ingest: signed batches become rows, each exactly once, durable before a receipt says so.

The network and a stick bring the same bytes through here: what counts is the device's signature, not the way.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import LANES, SIGNING_CONTEXT, BatchBody, LaneRows, Loss, SignedBatch, open_batch, rows_sha256
from protocol.wire import decode, unpack
from server.clock import NowMs
from server.director import Director
from server.storage.catalog import Catalog

ENVELOPE_BYTES: Final = 4 * limits.KIB  # around the payload: names, lengths, a signature
LOSS_BYTES: Final = 4 * limits.KIB
RANGES: Final = 1000  # in one receipt, so that it stays below limits.OBJECT_BYTES; the rest when it comes again
LANE_PIECES: Final = 1024  # a lane with holes comes in pieces; each costs a query


@dataclass(frozen=True)
class Ingested:
    """The answer to a batch.

    Args:
        receipt: A signed `ReceiptsBody` for all that is durable here.
        conflicts: Rows that are here with other bytes, as text for people; empty when all is well.
        says: What the receipt says.
        fresh: Rows that were not here.
        known: Rows that were here already.
        clashing: Rows that are here with other bytes.
        losses: Loss records in it, new or known.
        whole: The receipt covers everything in the batch.
    """

    receipt: str
    conflicts: str
    says: ReceiptsBody
    fresh: int
    known: int
    clashing: int
    losses: int
    whole: bool


class Ingest:
    """Takes batches.

    Args:
        catalog: Where rows go.
        director: Signs receipts.
        now_ms: The clock.
    """

    def __init__(self, catalog: Catalog, director: Director, now_ms: NowMs) -> None:
        self._catalog = catalog
        self._director = director
        self._now_ms = now_ms

    def take(self, data: bytes, device: str) -> Ingested:
        """Keeps a batch. The same batch again changes nothing and is receipted again. Blocks.

        Args:
            data: A packed `SignedBatch`, not yet trusted.
            device: Whose certificate brought it.

        Raises:
            Refused: `WRONG_DEVICE` or `SIGNATURE` when it is not this device's own; `BATCH`, `LENGTH` or `LIMIT` when
                malformed. Each is an event.
        """
        try:
            batch = unpack(data, SignedBatch, limit=limits.BATCH_BYTES + ENVELOPE_BYTES, reason=Reason.BATCH)
            self._verify(batch, device)
            body = open_batch(batch)
            losses = _check(body)
        except Refused as error:
            with self._catalog.write() as session:
                session.events.add(
                    self._now_ms(), "batch-refused", device=device, reason=error.reason.value, detail=error.message
                )
            raise
        return self._keep(body, losses)

    def _verify(self, batch: SignedBatch, device: str) -> None:
        if batch.device != device:
            raise Refused(Reason.WRONG_DEVICE, f"a batch of {batch.device} under the certificate of {device}")
        with self._catalog.read() as session:
            standing = session.devices.standing(batch.device)
        if standing is None:
            raise Refused(Reason.WRONG_DEVICE, f"no device {batch.device}")
        key = load_der_public_key(standing[0])
        assert isinstance(key, ec.EllipticCurvePublicKey)  # read_csr takes no other
        try:
            key.verify(batch.signature, SIGNING_CONTEXT + batch.payload, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise Refused(Reason.SIGNATURE, f"a batch that {batch.device}'s key did not sign") from None

    def _keep(self, body: BatchBody, losses: list[tuple[Loss, bytes]]) -> Ingested:
        now_ms = self._now_ms()
        clashing: list[tuple[str, Sequence[int]]] = []
        ranges: list[RowRange] = []
        fresh = 0
        with self._catalog.write() as session:
            device = session.devices.lock(body.device)  # what is lost is counted on top of what was
            for name in LANES:
                pieces = [lane for lane in body.lanes if lane.lane == name]
                rows = sorted(row for lane in pieces for row in enumerate(lane.rows, lane.first))
                added = session.results.add(body.device, body.epoch, name, rows, at_ms=now_ms)
                fresh += added.fresh
                for lane in pieces:
                    ranges += _covered(lane, set(added.clashing))
                if added.clashing:
                    clashing.append((name, added.clashing))
                told = [(loss, raw) for loss, raw in losses if loss.lane == name]
                session.results.add_losses(body.device, body.epoch, name, told, at_ms=now_ms)
            conflicts = "; ".join(f"{lane} {_spell(numbers)}" for lane, numbers in clashing)
            if conflicts:
                session.events.add(
                    now_ms,
                    "conflict",
                    device=body.device,
                    what=conflicts,
                    reason=Reason.CONFLICT.value,
                    detail=f"epoch {body.epoch}: rows that are here with other bytes; quarantined, not receipted",
                )
            version = session.devices.next_version(body.device, now_ms // 1000)
            generation = session.facts.get("generation") or ""
            pen = self._director.pen(session, device.versions if device is not None else {})
        # Only now, after the commit: a receipt lets the device delete its copy.
        receipt = ReceiptsBody(
            device=body.device,
            epoch=body.epoch,
            generation=generation,
            rows=tuple(ranges[:RANGES]),
            losses=tuple(
                RowRange(lane=loss.lane, first=loss.first, last=loss.last, rows_sha256=digest(raw))
                for loss, raw in losses[: max(0, RANGES - len(ranges))]
            ),
        )
        clashes = sum(len(numbers) for _, numbers in clashing)
        rows_in_it = sum(len(lane.rows) for lane in body.lanes)
        return Ingested(
            pen.receipts(receipt, version, now_ms),
            conflicts,
            says=receipt,
            fresh=fresh,
            known=rows_in_it - fresh - clashes,
            clashing=clashes,
            losses=len(losses),
            whole=not clashes and (len(receipt.rows), len(receipt.losses)) == (len(ranges), len(losses)),
        )


def _check(body: BatchBody) -> list[tuple[Loss, bytes]]:
    """Holds the opened body to the limits. Returns its losses, read."""
    if sum(len(lane.rows) for lane in body.lanes) > limits.BATCH_ROWS:
        raise Refused(Reason.LIMIT, f"a batch of more than {limits.BATCH_ROWS} rows")
    if len(body.lanes) > LANE_PIECES:
        raise Refused(Reason.LIMIT, f"a batch in more than {LANE_PIECES} pieces")
    losses = [(decode(raw, Loss, limit=LOSS_BYTES, reason=Reason.BATCH), raw) for raw in body.losses]
    if len(losses) > limits.RECEIPT_RANGES:
        raise Refused(Reason.LIMIT, f"a batch of more than {limits.RECEIPT_RANGES} losses")
    for lane in itertools.chain((lane.lane for lane in body.lanes), (loss.lane for loss, _ in losses)):
        if lane not in LANES:
            raise Refused(Reason.BATCH, f"there is no lane {lane!r}; lanes: {', '.join(LANES)}")
    ends = [*(lane.first + len(lane.rows) for lane in body.lanes), *(loss.last + 1 for loss, _ in losses)]
    if max(ends, default=0) > limits.ROW_NUMBERS:  # larger ones would add up to more than a database can sum
        raise Refused(Reason.LIMIT, f"a number that no row has: there are {limits.ROW_NUMBERS} in an epoch")
    if any(loss.last < loss.first for loss, _ in losses):
        raise Refused(Reason.BATCH, "a loss that ends before it begins")
    return losses


def _covered(lane: LaneRows, clash: set[int]) -> list[RowRange]:
    """The ranges of a lane's rows that are durable: all but the conflicting ones."""
    ranges: list[RowRange] = []
    numbered = enumerate(lane.rows, lane.first)
    for clashes, run in itertools.groupby(numbered, key=lambda item: item[0] in clash):
        rows = list(run)
        if not clashes:
            ranges.append(
                RowRange(
                    lane=lane.lane,
                    first=rows[0][0],
                    last=rows[-1][0],
                    rows_sha256=rows_sha256(body for _, body in rows),
                )
            )
    return ranges


def _spell(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
