"""What device and server say to each other: enrolment and the one round trip that is a contact."""

from typing import Annotated, Final, Literal

import msgspec

from protocol import limits
from protocol.errors import Reason
from protocol.ids import Count, DeviceId, Digest, Length, Millis, Name, ProductName, Token, Version
from protocol.objects import PatchCodec
from protocol.release import Accelerator
from protocol.wire import Message

Outcome = Literal["committed", "refused", "rolled-back", "unfinished", "deferred"]
"""How an update ended. `refused`: evidence before activation. `rolled-back`: evidence in the trial, remembered.
`unfinished`: starts used up without a verdict, tried again. `deferred`: it waits (space, budget, agent, window)."""


TrustMark = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
"""The first digits of the sha256 of a CA's certificate: tells one from another, proves nothing."""

UNMETERED: Final = "unmetered"
"""The kind of a link of which nothing was said. A budget may name it like any other."""


class Inventory(Message):
    """What the machine is. Sent whole only when its hash changed."""

    agent: Version
    platform: str  # `linux-x86_64`
    accelerators: tuple[Accelerator, ...]  # usable now, best first; `cpu` is always the last
    hardware: tuple[Name, ...] = ()  # tags: `jetson-orin`, `coral-usb`, or what the settings say
    memory_mib: Count = 0
    disk_bytes: Count = 0
    runtimes: dict[str, str] = {}  # name to version
    patch_codecs: Annotated[tuple[PatchCodec, ...], msgspec.Meta(max_length=limits.PATCH_CODECS)] = ()  # it applies
    # Output of the applier in KiB/s as this machine measured it, down to a power of two, so that a new measurement
    # seldom changes the hash of the inventory. 0: not measured yet.
    patch_rate_kib_s: Count = 0


class TransferBytes(Message):
    """What came over the air for one update: payload and index, as received, by method.

    Bytes of a patch that failed count too. `saved_bytes`: for each artifact that a patch brought, what compressed full
    would have taken (`Step.full_bytes`) less what the patch took.
    """

    delta_bytes: Count = 0
    full_bytes: Count = 0
    saved_bytes: Count = 0


class VersionReport(Message):
    """What runs, from the update record."""

    manifest: Digest | None = None  # committed
    release: str = ""
    trial: Digest | None = None
    state: str = "idle"  # of the update machine
    transfer: TransferBytes | None = None  # what bringing the committed release took


class UpdateStatus(Message):
    """One step or end of an update. `id` is drawn once: the server keeps each status once, however often it comes."""

    id: Token
    manifest: Digest
    rollout: str
    state: str
    at_ms: Millis
    outcome: Outcome | None = None
    reason: Reason | None = None
    detail: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    transfer: TransferBytes | None = None  # what this update took so far
    needs_bytes: Count = 0  # `deferred(budget)`: what would still have to travel


class FailedPatch(Message):
    """A patch that gave no result here, though its bytes were those that the plan signs and its base was whole. Not
    offered again to this machine until its agent is another version or a person lifts it. Sent until a contact was
    answered; again does no harm."""

    artifact: Digest
    base: Digest
    payload: Digest
    reason: Reason
    lifted_ms: Millis = 0  # of the step that failed


class Alert(Message):
    """Something that a person should know. `id` is drawn once: the server keeps each alert once."""

    id: Token
    kind: Name  # `stale-metadata`, `refused-metadata`, `wall-clock`, `outbox-damaged`, `accelerator-fallback`, ...
    at_ms: Millis
    reason: Reason | None = None
    detail: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class LanePosition(Message):
    """How far the device's own numbering is; the server answers a position it has passed with a clone alarm."""

    next_seq: Count
    queued: Count
    lost: Count = 0


class Counters(Message):
    """Running totals since enrolment, for the table and the desk."""

    bytes_received: Count = 0
    delta_bytes: Count = 0  # as in `TransferBytes`, of all updates
    full_bytes: Count = 0
    saved_bytes: Count = 0
    frames_inferred: Count = 0
    frames_dropped: Count = 0
    results_produced: Count = 0
    results_given_up: Count = 0  # rows that the disk took too long to take: they have no number and no loss record


class SignedForce(Message):
    """A technician's word that a release may be forced, kept by the machine until it was told.

    `request` is the exact JSON of a `ForceRequest`; `signature` is Ed25519 over `FORCE_CONTEXT` and these bytes, in
    hexadecimal (`protocol.kits`). The server holds it against the list of technicians that it has.
    """

    request: Annotated[str, msgspec.Meta(max_length=4096)]
    signature: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]


class SyncRequest(Message):
    """A contact. `contact_id` is drawn and kept before the first try, and used again on each retry."""

    format: Literal[1]
    device: DeviceId
    product: ProductName
    contact_id: Token
    sync_token: Token | None  # None at the first contact, and after it was lost with state.db
    nonce: Token  # fresh for each HTTP request
    report: VersionReport
    inventory_sha256: Digest
    epoch: Token
    lanes: dict[Name, LanePosition]
    inventory: Inventory | None = None
    statuses: Annotated[tuple[UpdateStatus, ...], msgspec.Meta(max_length=limits.STATUSES)] = ()
    alerts: Annotated[tuple[Alert, ...], msgspec.Meta(max_length=limits.STATUSES)] = ()
    have: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=limits.HAVE_DIGESTS)] = ()
    versions: dict[str, Count] = {}  # `image/timestamp`, `director/root`, ...: the newest trusted here
    counters: Counters = Counters()
    unsure_of_time: bool = False
    link: Name = UNMETERED  # kind of the link that this contact came over, from the machine's settings: `cellular`
    link_rate_kib_s: Count = 0  # what that link is good for, by the settings or measured. 0: unknown
    # Payloads and indexes of which a part is here, with the bytes that need not travel again: a plan changes to another
    # method only where that takes less than what is left.
    parts: Annotated[dict[Digest, Length], msgspec.Meta(max_length=limits.PARTS)] = {}
    failed_patches: Annotated[tuple[FailedPatch, ...], msgspec.Meta(max_length=limits.FAILED_PATCHES)] = ()
    # Payloads of patches that failed here and that a technician lets be tried again. Sent until a contact was answered.
    lifted_patches: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=limits.FAILED_PATCHES)] = ()
    # The machine lost its record and its floors: it asks what it last reported, and `report` replaces nothing.
    recovering: bool = False
    trusts: Annotated[tuple[TrustMark, ...], msgspec.Meta(max_length=limits.TRUSTED_CAS)] = ()  # newest first
    # What technicians forced here. Sent until a contact was answered; the server notes each once, by its challenge.
    forces: Annotated[tuple[SignedForce, ...], msgspec.Meta(max_length=limits.FORCES)] = ()
    stick_number: Count = 0  # of the last report by stick that was made here: what this contact tells is newer


class SyncAnswer(Message):
    """Separately signed objects; nothing outside them is believed beyond politeness."""

    contact_id: Token
    sync_token: Token
    generation: Token  # changes when the server was restored: kept rows are sent again
    time: str  # signed ClockBody
    # The current timestamp.json of each repository, exact bytes. Empty: nothing newer than the machine said it trusts;
    # ours would go back (the server came out of a backup). What the machine trusts holds as long as it would anyway.
    image_timestamp: str
    director_timestamp: str
    assignment: str | None = None  # signed AssignmentBody, absent when the device runs what it should
    reported: str | None = None  # signed ReportedBody, for a request that was `recovering`
    receipts: tuple[str, ...] = ()
    poll_s: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)] = 60.0
    want_inventory: bool = False
    set_apart: bool = False  # this device's identity was seen twice: results are kept, a person decides
    renew: bool = False  # half the certificate's life is over, or the CA was replaced: `POST /v1/renew`
    # Files that the machine trusts and the server lacks, such as `image/3.root.json`, `director/targets.json`: it came
    # out of a backup, and asks for them. A machine that has some sends them as `GivenBack`; nothing forces it to.
    want_metadata: Annotated[tuple[str, ...], msgspec.Meta(max_length=limits.WANTED_FILES)] = ()


class SignedFile(Message):
    """One offline-signed file: `N.root.json`, `targets.json`, `PRODUCT.json`."""

    repository: Literal["image", "director"]
    name: str
    content: str


class GivenBack(Message):
    """What a machine holds of `SyncAnswer.want_metadata`. Each file verifies itself; the machine is not believed."""

    files: Annotated[tuple[SignedFile, ...], msgspec.Meta(max_length=limits.WANTED_FILES)]


class EnrolRequest(Message):
    """Key made on the device; the token is used once and is bound to the device id."""

    token: str
    device: DeviceId
    csr_pem: str


class EnrolAnswer(Message):
    """`certificate_pem` is the leaf; the roots are the first ones, whose hashes the token carries, and so is `ca_pem`.

    The CA may have been replaced since the token was made: `trust_pem` and `links_pem` are as in `RenewAnswer`.
    """

    device: DeviceId
    product: ProductName
    certificate_pem: str
    ca_pem: str
    image_root: str
    director_root: str
    trust_pem: str = ""
    links_pem: str = ""


class RenewRequest(Message):
    """Sent under the old certificate, even an expired one."""

    csr_pem: str


class RenewAnswer(Message):
    """The new leaf, and the CAs that the machine should trust from now on, newest first (empty: as before).

    `links_pem`: each CA's key signed by the one before, newest first, back to the first: by them the machine verifies
    the leaf and the CAs from whichever it trusts (`signing.anchors`).
    """

    certificate_pem: str
    trust_pem: str = ""
    links_pem: str = ""


ENROLMENT_MARK: Final = "HL1."
"""How the text of an enrolment token begins."""


class TokenContent(Message):
    """What an enrolment token says; printed as `ENROLMENT_MARK` and base64url of its JSON."""

    server: str  # https://host:port of the device listener
    secret: str
    device: DeviceId
    product: ProductName
    ca_sha256: Digest  # of the CA certificate's DER
    image_root_sha256: Digest
    director_root_sha256: Digest


class ErrorAnswer(Message):
    """The body of every answer that is not 2xx."""

    error: str
    reason: str = ""
    hint: str = ""
