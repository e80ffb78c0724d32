"""Pieces from sticks: opened with the server's keys, verified by the machine's, and taken as what came by network is.

What a piece says in the clear is not believed: who made it is what the signature inside says, and a batch is the same
batch however it came.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.kits import REPORT_CONTEXT, PieceHeader, SignedReport, StickReport, open_report, read_piece
from protocol.wire import encode, unpack
from server.clock import NowMs
from server.contact import Contacts
from server.ingest import Ingest
from server.storage.catalog import Catalog
from signing.kits.bringing import TakenPiece
from signing.sealing import open_sealed

ENVELOPE_BYTES: Final = 4 * limits.KIB
NOTED_MS: Final = 3_600_000  # a stick has thousands of pieces: that it came is one event for each machine
NOTED: Final = 100_000

SealingKeys = Callable[[], Mapping[str, X25519PrivateKey]]
"""The private keys that machines may have sealed to, by their public halves."""


class Pieces:
    """Takes pieces.

    Args:
        catalog: What is known.
        ingest: Takes batches.
        contacts: Takes reports.
        sealing_keys: That open what machines sealed.
        now_ms: The clock.
    """

    def __init__(
        self, catalog: Catalog, ingest: Ingest, contacts: Contacts, sealing_keys: SealingKeys, now_ms: NowMs
    ) -> None:
        self._catalog = catalog
        self._ingest = ingest
        self._contacts = contacts
        self._sealing_keys = sealing_keys
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str], int] = {}

    def take(self, data: bytes, who: str) -> TakenPiece:
        """Takes a piece, however often it comes. Blocks; durable when it returns.

        Args:
            data: As it lay on the stick.
            who: Brings it. Noted, once an hour for each machine.

        Raises:
            Refused: It is damaged, sealed to a key that is not here, not signed by the machine, or of one that was
                revoked. Nothing of it was taken.
        """
        header, sealed = read_piece(data)
        inner = open_sealed(self._sealing_keys().values(), sealed, header.device, header.kind)
        key = self._key(header.device)
        taken = self._batch(header, inner) if header.kind == "batch" else self._report(header, inner, key)
        self._note(header.device, who)
        return taken

    def _batch(self, header: PieceHeader, inner: bytes) -> TakenPiece:
        taken = self._ingest.take(inner, header.device)
        with self._catalog.write() as session:
            # For the machine's next contact: nobody knows whether it meets this stick again.
            session.receipts.keep(header.device, digest(encode(taken.says)), taken.receipt, self._now_ms())
        return TakenPiece(
            device=header.device,
            kind="batch",
            fresh=taken.fresh,
            known=taken.known,
            conflicting=taken.clashing,
            losses=taken.losses,
            receipt=taken.receipt,
            whole=not taken.clashing,  # what no receipt had room for the machine tells again
            words=taken.conflicts,
        )

    def _report(self, header: PieceHeader, inner: bytes, key: ec.EllipticCurvePublicKey) -> TakenPiece:
        try:
            newest = self._contacts.take_report(_verified(inner, header.device, key))
        except Refused as error:
            with self._catalog.write() as session:
                session.events.add(
                    self._now_ms(),
                    "report-refused",
                    device=header.device,
                    reason=error.reason.value,
                    detail=error.message,
                )
            raise
        return TakenPiece(device=header.device, kind="report", whole=True, newest=newest)

    def _note(self, device: str, who: str) -> None:
        now_ms = self._now_ms()
        with self._lock:
            if abs(now_ms - self._noted.get((device, who), -NOTED_MS)) < NOTED_MS:
                return
            if len(self._noted) >= NOTED:
                self._noted.clear()
            self._noted[device, who] = now_ms
        with self._catalog.write() as session:
            session.events.add(now_ms, "brought-home", who=who, device=device, detail="on a stick")

    def _key(self, device: str) -> ec.EllipticCurvePublicKey:
        with self._catalog.read() as session:
            standing = session.devices.standing(device)
        if standing is None:
            raise Refused(Reason.WRONG_DEVICE, f"no device {device} is enrolled here")
        if standing[1]:
            raise Refused(Reason.REVOKED, f"{device} was revoked")
        key = load_der_public_key(standing[0])
        assert isinstance(key, ec.EllipticCurvePublicKey)  # read_csr takes no other
        return key


def _verified(inner: bytes, device: str, key: ec.EllipticCurvePublicKey) -> StickReport:
    signed = unpack(inner, SignedReport, limit=limits.REPORT_BODY_BYTES + ENVELOPE_BYTES)
    if signed.device != device:
        raise Refused(Reason.WRONG_DEVICE, f"a report of {signed.device} in a piece of {device}")
    try:
        key.verify(signed.signature, REPORT_CONTEXT + signed.payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Refused(Reason.SIGNATURE, f"a report that {device}'s key did not sign") from None
    return open_report(signed)
