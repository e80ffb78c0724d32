"""Field kits: what lies on a technician's stick, who may force, and what a machine gives a stick to take home.

A stick needs no trust. What it brings verifies itself: whole metadata of both repositories, blobs by their hash, and
the kit, an object that the managers sign under the director's role `kits`. What it takes is signed by the machine and
sealed to the server's key (`signing.sealing`).
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import Count, DeviceId, Digest, Millis, Name, ProductName, Token, Version, digest
from protocol.messages import Alert, Counters, Inventory, LanePosition, SignedForce, UpdateStatus, VersionReport
from protocol.objects import Conditions, Payload, Step
from protocol.results import inflate
from protocol.wire import Message, pack, unpack

KITS_FOLDER: Final = "headland-kits"
"""On a stick: one folder a kit, named by its id."""
RESULTS_FOLDER: Final = "headland-results"
"""On a stick: one folder a machine, named by its id, with its pieces; below it the receipts that come back."""
RECEIPTS_FOLDER: Final = "receipts"
KIT_FILE: Final = "kit.json"
"""Written last: a folder without it is no kit, however much of one lies there."""
DRAFT_FILE: Final = "kit.draft.json"
"""The same object below its threshold, while managers sign."""
BLOBS_FOLDER: Final = "blobs"

PART_BYTES: Final = 2 * limits.GIB
"""Blobs above this lie in parts `SHA256.0`, `SHA256.1`, ...: FAT32 holds files below 4 GiB."""
LIFETIME_DAYS: Final = 180
"""From a kit's creation to its expiry at most; machines hold it to that. Also what the tool proposes."""
LIST_LIFETIME_DAYS: Final = 90
"""The same of a list of technicians."""
LIST_PROPOSED_DAYS: Final = 60
PERMIT_DAYS: Final = 30
"""The same of a permit."""
AHEAD_DAYS: Final = 1
"""So far ahead of the time of whoever judges it a kit, a list or a permit may say that it was made: clocks differ. One
that says more would be good for longer than its lifetime."""
CHALLENGE_S: Final = 600.0
"""How long a machine's challenge to a technician is good, by its monotonic clock."""

FORCE_CONTEXT: Final = b"headland force 1\x00"
REPORT_CONTEXT: Final = b"headland report 1\x00"
"""Put before the signed bytes, so that a signature is good for nothing else."""
SEAL_CONTEXT: Final = b"headland piece 1"
"""The first part of what is bound to a sealed piece; device and kind follow."""

PIECE_SUFFIX: Final = ".piece"
PIECE_MARK: Final = b"HLP1"
"""How a piece begins; then the length of its header, two bytes, most significant first; header; sealed bytes."""
HEADER_BYTES: Final = 48 * limits.KIB
"""Of a batch of a thousand runs and a thousand losses."""

PieceKind = Literal["batch", "report"]

_KIT_ID: Final = re.compile(r"^kit-[a-z0-9](?:[a-z0-9._-]{0,58}[a-z0-9])?\Z")

KitId = Annotated[str, msgspec.Meta(pattern=_KIT_ID.pattern)]
"""Begins with `kit-`, otherwise a name. It stands where a rollout's name stands for an update that a kit brought; no
rollout of a server may be called so."""

PublicKey = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""32 raw bytes in hexadecimal: Ed25519 of a technician, X25519 of a server that opens what machines seal."""

Reasoned = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
"""Why a person did something, in their words."""


def is_kit(name: str) -> bool:
    """Whether the name of an update's rollout is that of a kit."""
    return _KIT_ID.match(name) is not None


class KitRelease(Message):
    """A release in a kit, and every way to it that the kit holds.

    Args:
        manifest: A blob of the kit.
        steps: `full` and `delta` steps; several for one artifact. What they name are blobs of the kit. An artifact
            without a step is for other hardware than the kit was made for, or must be on the machine.
    """

    release: Version
    manifest: Payload
    steps: Annotated[tuple[Step, ...], msgspec.Meta(max_length=limits.KIT_STEPS)]


class KitBody(Message, tag="kit", tag_field="kind"):
    """What the managers sign. The object's own expiry is the kit's.

    Args:
        kit: Its id, and the name of its folder.
        product: All its releases are of this one.
        created_ms: Metadata on the stick is judged as of this moment, or of now if that is earlier.
        machines: Whom it is for; None: every machine of the product.
        releases: A machine takes the newest that fits it.
        conditions: Asked before ACTIVATE, as an assignment's.
    """

    kit: KitId
    product: ProductName
    created_ms: Millis
    releases: Annotated[tuple[KitRelease, ...], msgspec.Meta(min_length=1, max_length=limits.KIT_RELEASES)]
    machines: Annotated[tuple[DeviceId, ...], msgspec.Meta(min_length=1, max_length=limits.KIT_MACHINES)] | None = None
    conditions: Conditions = Conditions()


class Technician(Message):
    """One entry of the list.

    Args:
        machines: Where it counts; None: on every machine. What groups held when the list was signed stands here.
        groups: That `machines` were taken from: for people, and for the next list.
    """

    name: Name
    public_key: PublicKey
    expires_ms: Millis
    may_force: bool = False
    machines: Annotated[tuple[DeviceId, ...], msgspec.Meta(max_length=limits.KIT_MACHINES)] | None = None
    groups: tuple[Name, ...] = ()


class TechniciansTerms(Message):
    """The field `headland` of the director's delegated role `technicians`: the whole list. The newest one counts, so
    whoever is not in it any more is revoked."""

    kind: Literal["technicians"]
    created_ms: Millis
    technicians: Annotated[tuple[Technician, ...], msgspec.Meta(max_length=limits.TECHNICIANS)] = ()


class ForceRequest(Message):
    """What a technician asks of one machine, once.

    Args:
        id: The machine's challenge: good for this one request, for `CHALLENGE_S`.
        offer: The kit or the rollout that brings the release.
        at_ms: By the machine's clock, sure or not.
    """

    id: Token
    device: DeviceId
    product: ProductName
    offer: Name
    release: Version
    manifest: Digest
    technician: Name
    reason: Reasoned
    at_ms: Millis


class StickReport(Message):
    """What a machine tells by stick of what it would tell in a contact.

    `number` says how new it is: it replaces what the server knows of the machine when no report of this number or a
    higher one came, and none was made when the machine called last (`SyncRequest.stick_number`). Statuses, alerts and
    forces are kept by their ids, whenever they come.

    Args:
        number: Rises with every report.
        sync_token: Of the last contact that was answered; None: there was none yet. Only the last that the server gave
            and the one before it, whose answer may have got lost, let a report replace anything: a copy of the machine
            shows older ones.
    """

    format: Literal[1]
    device: DeviceId
    product: ProductName
    number: Count
    sync_token: Token | None
    at_ms: Millis
    report: VersionReport
    inventory: Inventory
    epoch: Token
    lanes: dict[Name, LanePosition]
    statuses: tuple[UpdateStatus, ...] = ()
    alerts: tuple[Alert, ...] = ()
    forces: tuple[SignedForce, ...] = ()
    have: tuple[Digest, ...] = ()
    versions: dict[str, Count] = {}
    counters: Counters = Counters()
    unsure_of_time: bool = False


class SignedReport(Message):
    """`payload` is one zstd frame of a packed `StickReport` of `body_bytes`; `signature` is ECDSA P-256 with SHA-256
    (DER) over `REPORT_CONTEXT + payload` by the key of the device's certificate."""

    device: DeviceId
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=limits.REPORT_BODY_BYTES)]
    payload: bytes
    signature: bytes


class PieceHeader(Message):
    """What lies in the clear at the front of a piece: whose it is, and which numbers, but nothing of a result.

    A machine sees by it what of its own lies on a stick already. Device and kind are bound to the sealed bytes; the
    rest is a hint, and whoever changes it changes no more than whoever takes the piece away.

    Args:
        sealed_to: The key that opens it, with its private half.
        sha256: Of the sealed bytes.
        epoch: Of the rows in a batch; None in a report.
        rows: First and last of consecutive rows, by lane.
        losses: The same of the loss records.
        number: Of a report; 0 for a batch.
    """

    format: Literal[1]
    device: DeviceId
    kind: PieceKind
    sealed_to: PublicKey
    sha256: Digest
    epoch: Token | None = None
    rows: dict[Name, tuple[tuple[Count, Count], ...]] = {}
    losses: dict[Name, tuple[tuple[Count, Count], ...]] = {}
    number: Count = 0


class PermitTerms(Message):
    """`custom` of a permit's target in the product's role: this machine may go back to this release, once.

    It stands in for the counter floor and for nothing else: neither for the listing nor for the product's floor and
    era. It is used up when the release is committed. The target's hash and length are of this record's JSON.
    """

    kind: Literal["permit"]
    permit: Token
    device: DeviceId
    release: Version
    manifest: Digest
    created_ms: Millis
    expires_ms: Millis
    reason: Reasoned


def permit_path(product: str, permit: str) -> str:
    """The TUF target path of a permit: `PRODUCT/permits/ID.json`."""
    return f"{product}/permits/{permit}.json"


def is_permit(custom: Any) -> bool:
    """Whether a target's `custom` says that it is a permit."""
    return isinstance(custom, dict) and custom.get("kind") == "permit"


def write_piece(header: PieceHeader, sealed: bytes) -> bytes:
    """The bytes of a piece's file."""
    packed = pack(header)
    return PIECE_MARK + len(packed).to_bytes(2, "big") + packed + sealed


def read_piece(data: bytes) -> tuple[PieceHeader, bytes]:
    """Reads a piece that came from a stick. Nothing of it is opened.

    Returns:
        Its header, and the sealed bytes, which have the header's hash.

    Raises:
        Refused: `LENGTH`: too long, or cut; `BATCH`: no piece; `HASH`: damaged.
    """
    if len(data) > limits.PIECE_BYTES:
        raise Refused(Reason.LENGTH, f"a piece of {len(data)} bytes: at most {limits.PIECE_BYTES} are read")
    if not data.startswith(PIECE_MARK):
        raise Refused(Reason.BATCH, "it does not begin as a piece does")
    begin = len(PIECE_MARK) + 2
    end = begin + int.from_bytes(data[begin - 2 : begin], "big")
    if len(data) <= end:
        raise Refused(Reason.LENGTH, "a piece that is cut short")
    header = unpack(data[begin:end], PieceHeader, limit=HEADER_BYTES, reason=Reason.BATCH)
    sealed = data[end:]
    if digest(sealed) != header.sha256:
        raise Refused(Reason.HASH, "a piece that is damaged: its bytes are not those that were written")
    return header, sealed


def open_report(signed: SignedReport) -> StickReport:
    """Decompresses and reads a report whose signature was checked before.

    Raises:
        Refused: `METADATA`, `LENGTH` or `WRONG_DEVICE`: not exactly `body_bytes`, malformed, or another device's.
    """
    packed = inflate(signed.payload, signed.body_bytes)
    report = unpack(packed, StickReport, limit=limits.REPORT_BODY_BYTES)
    if report.device != signed.device:
        raise Refused(Reason.WRONG_DEVICE, f"a report of {report.device} in the envelope of {signed.device}")
    return report
