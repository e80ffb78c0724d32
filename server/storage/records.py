"""What the catalog holds, as the rest of the server sees it: frozen records, parsed once on the way out."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from protocol.errors import Reason
from protocol.ids import DeviceId, Digest, Token, digest
from protocol.messages import (
    Counters,
    Inventory,
    LanePosition,
    Outcome,
    SignedForce,
    TransferBytes,
    TrustMark,
    VersionReport,
)
from protocol.objects import Budget, Conditions
from protocol.wire import Message

RepositoryKind = Literal["image", "director"]
REPOSITORIES: tuple[RepositoryKind, ...] = ("image", "director")
RolloutState = Literal["active", "paused", "halted"]


@dataclass(frozen=True)
class Device:
    """A machine that enrolled.

    Args:
        id: Its name, the common name of its certificate.
        product: The one product that it follows.
        groups: Set by people.
        public_key: Of its present certificate, DER `SubjectPublicKeyInfo`. An older key of the device is a stranger's.
        certificate_pem: The present certificate.
        enrolled_ms: When.
        revoked_ms: When a person revoked it, or None.
        set_apart: Why its identity is doubted, or empty.
        returned: Why it is here although this catalog never enrolled it, or empty: the server was restored from a
            backup, and its certificate is one of ours. Nothing is assigned to it before a person looked.
        token_counter: Number of the sync token that it must show next. Negative: whatever it shows next is taken (it
            was enrolled again, or a person vouched for it); the absolute value is the last number given.
        contact_id: Of the last contact that was answered.
        recent: The last contacts, oldest first, with the number of the token that each was given.
        answer: What that contact was answered: JSON of a `SyncAnswer`, for its retry.
        object_version: The highest version signed for it in any role.
        last_contact_ms: By this server's clock.
        inventory: The newest, with its hash.
        trusts: Marks of the CAs that it trusts, as it last said.
        stick_number: Of the newest report by stick that is known of: taken, or made before the last contact.
    """

    id: DeviceId
    product: str
    groups: tuple[str, ...]
    public_key: bytes
    certificate_pem: str
    enrolled_ms: int
    revoked_ms: int | None = None
    set_apart: str = ""
    returned: str = ""
    token_counter: int = 0
    contact_id: str | None = None
    recent: dict[str, int] = field(default_factory=dict)
    answer: bytes | None = None
    object_version: int = 0
    last_contact_ms: int | None = None
    inventory: Inventory | None = None
    inventory_sha256: str = ""
    report: VersionReport = field(default_factory=VersionReport)
    epoch: str = ""
    lanes: dict[str, LanePosition] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    unsure_of_time: bool = False
    link: str = ""
    trusts: tuple[TrustMark, ...] = ()
    stick_number: int = 0


class Forced(Message):
    """A technician's request as a machine told it; `id` is the machine's challenge."""

    id: Token
    force: SignedForce


@dataclass(frozen=True)
class Certified:
    """What a machine shows, and which CAs it trusts by its own word (marks, newest first)."""

    id: DeviceId
    certificate_pem: str
    trusts: tuple[TrustMark, ...]


@dataclass(frozen=True)
class EnrolmentToken:
    """A permission to enrol one named machine, once. Only the hash of its secret is kept."""

    device: DeviceId
    product: str
    groups: tuple[str, ...]
    expires_ms: int
    used_by: bytes | None  # the public key that used it: the same machine may ask again after a lost answer


@dataclass(frozen=True)
class OperatorToken:
    """What a person's tool shows. The secret is not kept."""

    name: str
    created_ms: int
    expires_ms: int


@dataclass(frozen=True)
class Release:
    """A release that a product's role lists, or listed once."""

    product: str
    version: str
    manifest: Digest
    manifest_bytes: int
    release_counter: int
    era: int
    artifacts: int
    total_bytes: int
    listed: bool


class Phase(Message):
    """One step of a rollout. Exactly one of `devices`, `count` and `percent` says how far it reaches.

    `count` and `percent` count all places up to and including this phase's; `percent` is of the group as it is now.
    """

    devices: Annotated[tuple[DeviceId, ...], msgspec.Meta(max_length=10_000)] | None = None
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    percent: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    success_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 100.0
    error_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 10.0


@dataclass(frozen=True)
class Rollout:
    """A release on its way to a group.

    Args:
        sequence: Order of creation; the newest wins for a machine in two.
        phase: The widest phase that is open, from 0.
        judged_from_ms: Failures before this moment were seen by the person who resumed it.
    """

    name: str
    sequence: int
    product: str
    release: str
    manifest: Digest
    manifest_bytes: int
    release_counter: int
    era: int
    group: str
    phases: tuple[Phase, ...]
    conditions: Conditions
    created_ms: int
    state: RolloutState = "active"
    why: str = ""
    phase: int = 0
    judged_from_ms: int = 0
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Member:
    """A machine that has a place in a rollout, and how its update ended.

    Args:
        plan_bytes: What the plan that it was offered last takes over the air.
        plan_full_bytes: What the same would take as compressed full.
        needs_bytes: What would still have to travel, by its own word, while a budget defers it.
        transfer: What the update took so far, by its own word.
    """

    rollout: str
    device: DeviceId
    phase: int
    offered_ms: int
    outcome: Outcome | None = None
    reason: Reason | None = None
    ended_ms: int | None = None
    plan_bytes: int | None = None
    plan_full_bytes: int | None = None
    needs_bytes: int | None = None
    transfer: TransferBytes = field(default_factory=TransferBytes)


@dataclass(frozen=True)
class Compressed:
    """The payload made ahead for an artifact, and its index when it has one."""

    artifact: Digest
    length_bytes: int
    payload: Digest
    payload_bytes: int
    index: Digest | None
    index_bytes: int


@dataclass(frozen=True)
class Pair:
    """A base and what a patch makes of it, by one version of the codec."""

    base: Digest
    result: Digest
    codec: int

    @property
    def id(self) -> Digest:
        """One name for the three."""
        return digest(f"{self.base} {self.result} {self.codec}".encode())


@dataclass(frozen=True)
class Patch:
    """A patch that was made, as it is kept.

    Args:
        pair: What it is for.
        made: How often it was made: a withdrawn one is made once more.
        payload: None when only its measure is kept.
        payload_bytes: Measured, kept or not; with `index_bytes` what it takes over the air.
        named_until_ms: A signed assignment that names it may be current until then.
        why: Why there is no payload, in words.
        lifted_ms: When a person last let it be tried again where it had failed; 0: never.
    """

    pair: Pair
    made: int
    payload: Digest | None
    payload_bytes: int
    index: Digest | None
    index_bytes: int
    named_until_ms: int = 0
    why: str = ""
    lifted_ms: int = 0

    @property
    def travels_bytes(self) -> int:
        """Payload and index together."""
        return self.payload_bytes + self.index_bytes


@dataclass(frozen=True)
class PatchFailure:
    """A machine's word that a payload of a patch gave no result there."""

    device: str
    payload: Digest
    reason: str
    at_ms: int


@dataclass(frozen=True)
class Totals:
    """What the server holds of one machine's lane, over all epochs."""

    ingested: int
    lost: int


@dataclass(frozen=True)
class Likeness:
    """Two releases have artifacts for one part, and machines hold the old one.

    Args:
        old_manifest: Of the release that has the base.
        manifest: Of the one that has the result.
        part: What they are alike in: `server.parts`.
        base: The artifact of the old release.
        result: That of the new one.
        goes_on: The new release has the base too.
        machines: That hold the base and lack the result.
    """

    old_manifest: str
    manifest: str
    part: str
    base: str
    result: str
    goes_on: bool
    machines: int
