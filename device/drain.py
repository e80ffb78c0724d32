"""Draining: batches go out while there is something to send, and rows are settled only by receipts that verify."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from device.link import MSGPACK, Answer
from device.outbox.batch import sign_batch
from device.outbox.box import BATCH_ROWS_BYTES, Outbox
from device.trust.port import Trust
from protocol import limits
from protocol.errors import LinkError
from protocol.results import BatchBody

LEAST_BYTES: Final = 8 * limits.KIB  # about what the connection itself takes; smaller batches would carry little else
CONFLICT: Final = 409  # the server holds other rows under these numbers; its receipt covers the rest


class Door(Protocol):
    """The server's door, as `device.link.Link`."""

    async def post(self, path: str, body: bytes, *, limit: int, content_type: str = ...) -> Answer:
        """One POST, read whole."""
        ...


class Drain:
    """Sends what the outbox holds, one batch after the other.

    A request has a time limit, and what a weak link carries in it may be less than a full batch: so a batch that the
    link did not carry is halved, and each one that it carries lets the next be longer by a quarter. Growing slowly, it
    seldom meets the limit again.

    Args:
        outbox: Whose rows go.
        door: To the server.
        trust: Verifies receipts.
        key: The device's, which signs batches.
    """

    def __init__(self, outbox: Outbox, door: Door, trust: Trust, key: ec.EllipticCurvePrivateKey) -> None:
        self._outbox = outbox
        self._door = door
        self._trust = trust
        self._key = key
        self._limit_bytes = BATCH_ROWS_BYTES

    async def run(self, go_on: Callable[[], bool] = lambda: True) -> int:
        """Sends until nothing waits.

        Args:
            go_on: Asked before each batch: a contact that is due comes first.

        Returns:
            How many rows and losses were settled.

        Raises:
            LinkError: The link failed, or the server answers without receipts that hold: the rows stay.
            Refused: The server turned this machine away.
        """
        settled = 0
        while go_on():
            batch = await self._outbox.next_batch(self._limit_bytes)
            if batch is None:
                break
            settled += await self._send(batch)
        return settled

    async def _send(self, batch: BatchBody) -> int:
        body = await asyncio.to_thread(sign_batch, batch, self._key)
        try:
            answer = await self._door.post("/v1/results", body, limit=limits.OBJECT_BYTES, content_type=MSGPACK)
        except LinkError:
            sent_bytes = sum(len(row) for part in batch.lanes for row in part.rows)
            # A short one says nothing of lengths: the link is down.
            if sent_bytes > LEAST_BYTES:
                self._limit_bytes = max(LEAST_BYTES, sent_bytes // 2)
            raise
        self._limit_bytes = min(BATCH_ROWS_BYTES, self._limit_bytes * 5 // 4)
        text = (answer.body if answer.status == CONFLICT else answer.content()).decode("utf-8", errors="replace")
        settled = 0
        receipts = await self._trust.receipts((text,))
        for receipt in receipts:
            settled += await self._outbox.apply_receipt(receipt)
        if answer.status == CONFLICT and any(
            (receipt.epoch, receipt.generation) == (batch.epoch, self._outbox.generation) for receipt in receipts
        ):
            # What such a receipt leaves out is in conflict. Without one, rows that are there would go twice.
            settled += await self._outbox.renumber(batch)
        if not settled:
            # Sending the same batch again at once would be a loop around a server that does not keep it.
            raise LinkError("the server took a batch of results and gave no receipt for it that holds")
        return settled
