"""The director repository as a machine sees it, and the one place where the director's objects are verified."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Root, Targets

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.kits import KitBody, Technician
from protocol.objects import (
    KITS,
    ROLES,
    TECHNICIANS,
    AssignmentBody,
    ClockBody,
    DirectorTerms,
    ObjectBody,
    ReceiptsBody,
    ReportedBody,
)
from signing.durable import DISK, Disk
from signing.metadata import parse, terms
from signing.repository import technicians_of
from signing.trust.floors import Floors, KeyedFloor
from signing.trust.keys import check_keys
from signing.trust.kits import SignedKit
from signing.trust.source import Offered, Source
from signing.trust.store import NEVER, Trusted, TrustStore

B = TypeVar("B", AssignmentBody, ClockBody, ReceiptsBody, ReportedBody)
N = TypeVar("N", AssignmentBody, ReportedBody)  # the newest one counts

_KINDS: Mapping[type, str] = {
    AssignmentBody: "assignment",
    ClockBody: "clock",
    ReceiptsBody: "receipts",
    ReportedBody: "reported",
}


@dataclass(frozen=True)
class TechniciansList:
    """Who may force, as the managers signed it. Whether it has expired is for the one who uses it to judge."""

    technicians: tuple[Technician, ...]
    created_ms: int
    expires: datetime


class DirectorView:
    """The trusted director's top targets: verifies objects signed by the roles that it delegates to.

    Args:
        targets: Trusted. Whether it has expired is the caller's matter: an expired director still tells whose keys
            sign the time, and receipts are good whenever they come.
        floors: Version floors, by role, device and key.
        versions: By role, of the repository.
        technicians: The trusted metadata of that role; None: the director has none, or none that holds.
    """

    def __init__(
        self, targets: Targets, floors: Floors, versions: Mapping[str, int], technicians: Targets | None = None
    ) -> None:
        self.versions = versions
        self._targets = targets
        self._floors = floors
        self._technicians = technicians

    @property
    def sealing_key(self) -> str | None:
        """The server's, for what a stick takes home."""
        return terms(self._targets, DirectorTerms, "director/targets.json").sealing_key

    @property
    def technicians(self) -> TechniciansList | None:
        """The newest list that is trusted; None: nobody may force."""
        if self._technicians is None:
            return None
        said = technicians_of(self._technicians)
        return TechniciansList(said.technicians, said.created_ms, self._technicians.expires)

    @property
    def kit_signers(self) -> tuple[tuple[str, ...], int]:
        """Ids of the keys that may sign kits, and how many of them have to; 0: it knows of no kits."""
        delegations = self._targets.delegations
        role = (delegations.roles or {}).get(KITS) if delegations is not None else None
        return (tuple(sorted(role.keyids)), role.threshold) if role is not None else ((), 0)

    def verify_object(self, text: str, kind: type[N], device: str, now: datetime) -> N:
        """Verifies one signed object. Checked in this order, each with a reason of its own: length, signature by the
        role of the kind, kind, device, version (never lower than one verified before), expiry.

        Args:
            text: As it came.
            kind: `AssignmentBody` or `ReportedBody`, whose nonce is the caller's to compare.
            device: The id that must stand inside the signed bytes.
            now: Expiry is judged by it.

        Returns:
            The body. Its version is durable as a floor.

        Raises:
            Refused: `LENGTH`; `METADATA` (malformed, or another kind); `SIGNATURE`; `WRONG_DEVICE`; `ROLLBACK`;
                `EXPIRED`.
        """
        body, expires, version = self._open(text, kind, device)
        floor = self._floor(kind, device)
        _check_version(kind, version, floor)
        _check_expiry(kind, expires, now)
        floor.rise(version)
        return body

    def verify_receipts(self, text: str, device: str) -> ReceiptsBody:
        """Verifies one receipt, whenever and in whatever order receipts come: as `verify_object`, without version and
        expiry.

        A receipt says that these very rows are durable in this life of the server's catalog, and that does not become
        untrue with time or with later receipts: a replay (ATTACKS.md O26) says once more what is so. What it cannot
        do stands in its signed body, and the outbox holds it to that: another machine's names another device (O25);
        rows with other bytes have another hash; another life of this outbox has another epoch; and a server that was
        set back, to which the rows may be missing again, has begun another generation, after which no older receipt
        counts and what older ones had covered is queued again. Receipts of a key that was stolen end with the key, by
        the director's targets, not with a date.

        A floor or an expiry would take nothing from an attacker, who can as well send genuine receipts in their
        order. It would take delivered results from the machine: those whose receipt came by stick after a newer one
        by the network, or while its wall clock, not sure, was years ahead. And a thief of the key could raise the
        floor above all genuine receipts.

        Args:
            text: As it came.
            device: The id that must stand inside the signed bytes.

        Raises:
            Refused: `LENGTH`; `METADATA` (malformed, or another kind); `SIGNATURE`; `WRONG_DEVICE`.
        """
        return self._open(text, ReceiptsBody, device)[0]

    def verify_time(self, text: str, device: str, nonce: str) -> ClockBody:
        """Verifies a time statement; its own expiry is judged by the time that it states.

        Its version becomes no floor here: the nonce alone keeps a replay out, so that a contact with nothing new
        spares the disk. Call `keep_time_version` when something is written anyway.

        Args:
            text: As it came.
            device: The id inside the signed bytes.
            nonce: Of the very request.

        Raises:
            Refused: As `verify_object`, or `TIME` for another nonce.
        """
        body, expires, version = self._open(text, ClockBody, device)
        _check_version(ClockBody, version, self._floor(ClockBody, device))
        _check_expiry(ClockBody, expires, datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=body.time_ms))
        if body.nonce != nonce:
            raise Refused(Reason.TIME, "a time statement for another request")
        return body

    def verify_kit(self, text: bytes) -> SignedKit:
        """Verifies a field kit. Checked in this order: length, signature by the role `kits` at its threshold, kind. All
        else is `SignedKit.check`'s.

        Args:
            text: `kit.json` as it lies there.

        Raises:
            Refused: `LENGTH`; `METADATA` (malformed, or another kind); `NOT_DELEGATED`; `SIGNATURE`.
        """
        if len(text) > limits.KIT_BYTES:
            raise Refused(
                Reason.LENGTH, f"a kit of more than {limits.KIT_BYTES} bytes, which is more than anybody signs"
            )
        metadata = parse(text, Targets, "the kit")
        if not self.kit_signers[1]:
            raise Refused(Reason.NOT_DELEGATED, "the director that is trusted here knows of no field kits yet")
        found = self._targets.get_verification_result(KITS, metadata.signed_bytes, metadata.signatures)
        if not found:
            raise Refused(
                Reason.SIGNATURE,
                f"the kit is signed by {len(found.signed)} of those who may sign kits, not by {found.threshold}",
                hint="it was changed, or its signers' keys count no more: ask the release manager for a new kit",
            )
        body = terms(metadata.signed, KitBody, "the kit")
        return SignedKit(body, metadata.signed.expires, tuple(sorted(found.signed)))

    def keep_time_version(self, text: str, device: str) -> None:
        """Makes the version of a time statement that was verified a floor."""
        _, _, version = self._open(text, ClockBody, device)
        floor = self._floor(ClockBody, device)
        _check_version(ClockBody, version, floor)
        floor.rise(version)

    def keys(self, kind: str) -> tuple[tuple[str, ...], int]:
        """Key ids and threshold of the role that signs objects of this kind."""
        try:
            role = self._targets.get_delegated_role(ROLES[kind])
        except ValueError as error:
            raise Refused(Reason.METADATA, f"director: no role for {kind}: {error}") from error
        return tuple(sorted(role.keyids)), role.threshold

    def _open(self, text: str, kind: type[B], device: str) -> tuple[B, datetime, int]:
        name = _KINDS[kind]
        data = text.encode(errors="surrogatepass")
        if len(data) > limits.OBJECT_BYTES:
            raise Refused(Reason.LENGTH, f"{name} of {len(data)} bytes: at most {limits.OBJECT_BYTES} are read")
        metadata = parse(data, Targets, name)
        try:
            self._targets.verify_delegate(ROLES[name], metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError as error:
            raise Refused(Reason.SIGNATURE, f"{name}: {error}") from error
        except ValueError as error:
            raise Refused(Reason.METADATA, f"{name}: {error}") from error
        signed = metadata.signed
        body: ObjectBody = terms(signed, ObjectBody, name)  # type: ignore[arg-type]  # a union is a form of type
        if not isinstance(body, kind):
            raise Refused(Reason.METADATA, f"{name}: the signed bytes are of kind {_KINDS[type(body)]}")
        if body.device != device:
            raise Refused(Reason.WRONG_DEVICE, f"{name} for {body.device}; this is {device}")
        return body, signed.expires, signed.version

    def _floor(self, kind: type, device: str) -> KeyedFloor:
        name = _KINDS[kind]
        return KeyedFloor(self._floors, f"director/{ROLES[name]}/{device}", *self.keys(name))


_WANTED: Final = (TECHNICIANS,)


class DirectorStore:
    """Trusts the director repository. Arguments as `TrustStore`."""

    def __init__(self, folder: Path, first_root: bytes, floors: Floors, *, disk: Disk = DISK) -> None:
        self._floors = floors
        self._store = TrustStore("director", folder, first_root, floors, inspect=_inspect, disk=disk)

    def refresh(self, source: Source, now: datetime) -> DirectorView:
        """As `TrustStore.refresh`, with the list of technicians where there is one. It stops nothing: without one that
        holds nobody may force, and all else goes on."""
        return self._view(self._store.refresh(source, now, wanted=_WANTED))

    def peek(self, source: Source, now: datetime = NEVER) -> DirectorView:
        """As `TrustStore.peek`: to learn whose keys sign the time while the time is not known, and whose kits are taken
        before anything is."""
        return self._view(self._store.peek(source, wanted=_WANTED, now=now))

    def beside(self, source: Source) -> Offered:
        """As `TrustStore.beside`."""
        return self._store.beside(source, wanted=_WANTED)

    def stored(self) -> DirectorView | None:
        """The newest stored view, expired or not; None before the first refresh.

        Raises:
            Refused: There is not even a valid root.
        """
        trusted = self._store.stored(wanted=_WANTED)
        return self._view(trusted) if trusted.targets is not None else None

    def timestamp(self) -> bytes:
        """The stored timestamp, exact bytes; empty before the first refresh."""
        return self._store.timestamp()

    def recover_floors(self) -> None:
        """As `TrustStore.recover_floors`."""
        self._store.recover_floors(wanted=_WANTED)

    def versions(self) -> Mapping[str, int]:
        """Versions of all that is stored, by role."""
        return self._store.stored(wanted=_WANTED).versions

    def _view(self, trusted: Trusted) -> DirectorView:
        assert trusted.targets is not None, "a refresh ends with the top targets"
        return DirectorView(trusted.targets, self._floors, trusted.versions, trusted.delegated.get(TECHNICIANS))


def _inspect(role: str, signed: Root | Targets) -> None:
    check_keys("director", signed)
    if isinstance(signed, Targets) and role == "targets":
        terms(signed, DirectorTerms, "director/targets.json")
    elif isinstance(signed, Targets):
        technicians_of(signed)


def _check_version(kind: type, version: int, floor: KeyedFloor) -> None:
    if version < floor.value():
        raise Refused(Reason.ROLLBACK, f"{_KINDS[kind]} {version}, and {floor.value()} was seen before")


def _check_expiry(kind: type, expires: datetime, now: datetime) -> None:
    if now >= expires:
        raise Refused(Reason.EXPIRED, f"{_KINDS[kind]} expired at {expires:%Y-%m-%d %H:%M} UTC")
