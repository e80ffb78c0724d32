"""The director's signed objects: assignment, time statement, receipts, and what a machine reported.

Each travels as TUF `Metadata[Targets]` JSON, signed by the delegated role of its kind. What is ours stands inside the
signed bytes in the field `headland` as one of the records below. TUF checks the signature only: `kind`, `device`,
version and expiry are checked by `signing.trust_store`, one place for all.
"""

from typing import Annotated, Final, Literal

import msgspec

from protocol import limits
from protocol.ids import Count, DeviceId, Digest, Length, Millis, Name, ProductName, Token, Version
from protocol.wire import Message

ROLES: dict[str, str] = {
    "assignment": "assignments",
    "clock": "clock",
    "receipts": "receipts",
    "reported": "assignments",
}
"""The delegated role of the director's targets that signs each kind of object that a server makes."""

KITS: Final = "kits"
TECHNICIANS: Final = "technicians"
MANAGERS_ROLES: Final = (KITS, TECHNICIANS)
"""The director's delegated roles whose keys are managers': `kits` signs objects (`protocol.kits.KitBody`), the metadata
of `technicians` is the list itself and is published with the repository. A director from before there were kits
delegates to neither."""

PatchCodec = Annotated[int, msgspec.Meta(ge=1, le=1000)]
"""A version of the delta codec, `protocol.delta.patch.CODEC`."""

MinuteOfDay = Annotated[int, msgspec.Meta(ge=0, le=1439)]

FIELD = "headland"
"""The name of our field in a signed TUF object."""


class Payload(Message):
    """A blob that is fetched whole or by ranges."""

    sha256: Digest
    length_bytes: Length


class Step(Message):
    """How the device comes by one artifact.

    have: the device reported it; nothing travels.
    full: `payload` is the artifact compressed, segment by segment; `index` lists the segments, and is absent for a
        payload of at most 1 MiB, which is one zstd frame, spooled and hashed whole.
    delta: `payload` is a patch of codec version `codec` against the artifact `base`; `index` lists the hashes of its
        segments, and is absent for a payload of at most 1 MiB.
    """

    artifact: Digest
    length_bytes: Length
    method: Literal["have", "full", "delta"]
    payload: Payload | None = None
    index: Payload | None = None
    base: Digest | None = None
    codec: PatchCodec | None = None
    full_bytes: Length = 0  # delta: what compressed full would take, payload and index
    lifted_ms: Millis = 0  # delta: when a person let it be tried again where it had failed; 0: never

    def travels_bytes(self) -> int:
        """Payload and index together."""
        return sum(part.length_bytes for part in (self.payload, self.index) if part is not None)


class TransferPlan(Message):
    """Steps for all artifacts that the device needs of one release; index hashes are covered by the signature."""

    steps: tuple[Step, ...]
    full_bytes: Length  # what every step would take as compressed full: what a saving is measured against

    def travels_bytes(self) -> int:
        """What the plan costs over the air."""
        return sum(step.travels_bytes() for step in self.steps)


class Conditions(Message):
    """Asked of the device before ACTIVATE, on top of what the managers' interlocks ask; never instead of it."""

    not_before_ms: Millis | None = None
    activate_before_ms: Millis | None = None
    window_utc: (
        tuple[Annotated[int, msgspec.Meta(ge=0, le=1439)], Annotated[int, msgspec.Meta(ge=0, le=1439)]] | None
    ) = None  # minutes of the day, from and to; over midnight when from > to
    signals_clear: tuple[Name, ...] = ()  # machine signals that must be off (such as `driving`)


class Budget(Message):
    """How many bytes may travel: payload and index of all steps, those of failed patches included. None: no limit.

    What would break a limit is not begun: the update is `deferred(budget)` with the bytes that it would still need.
    Limits of the machine's own settings hold beside it.
    """

    release_bytes: Length | None = None  # for this release on this machine, over all links together
    # A day (UTC) by the kind of link, for all updates together; a kind that is not named has no limit.
    day_bytes: Annotated[dict[Name, Length], msgspec.Meta(max_length=limits.BUDGET_LINKS)] = {}


class AssignmentBody(Message, tag="assignment", tag_field="kind"):
    """One device's part of a rollout: install this manifest, by this plan, under these conditions."""

    device: DeviceId
    product: ProductName
    rollout: Name
    release: Version
    manifest: Payload
    plan: TransferPlan
    conditions: Conditions = Conditions()
    budget: Budget = Budget()


class ClockBody(Message, tag="clock", tag_field="kind"):
    """The time when the request with this nonce was answered."""

    device: DeviceId
    nonce: Token
    time_ms: Millis


class RowRange(Message):
    """Rows `first` to `last` (both included) of a lane, and the hash of what they covered.

    rows_sha256: sha256 over the concatenated 32-byte sha256 of each row's exact bytes, in order. For a counted loss,
        sha256 of the loss record's exact bytes.
    """

    lane: Name
    first: Count
    last: Count
    rows_sha256: Digest


class ReceiptsBody(Message, tag="receipts", tag_field="kind"):
    """These rows and losses are durable on the server: the device may delete them. Applied as a union."""

    device: DeviceId
    epoch: Token
    generation: Token
    rows: Annotated[tuple[RowRange, ...], msgspec.Meta(max_length=limits.RECEIPT_RANGES)] = ()
    losses: Annotated[tuple[RowRange, ...], msgspec.Meta(max_length=limits.RECEIPT_RANGES)] = ()


class ReportedBody(Message, tag="reported", tag_field="kind"):
    """The highest release that this machine reported as committed, for one that lost its own record and its floors.

    Good for the request with this nonce only, for a machine that lost its record lost the floors that would tell an
    old one. `manifest` is None for a machine that never reported a release.
    """

    device: DeviceId
    nonce: Token
    manifest: Digest | None = None
    release: str = ""
    release_counter: Count = 0  # by the server's catalog; the listing of the managers counts where it names the release
    era: Count = 0


ObjectBody = AssignmentBody | ClockBody | ReceiptsBody | ReportedBody


class ProductTerms(Message):
    """The field `headland` of a product's role: its name inside the signed bytes, and what holds for all its releases.

    `interlocks` are machine signals (such as `driving`) that must be off before anything is activated. They are the
    managers': an assignment may ask for more, never for less. `skippable` are signals that a technician who forces an
    update may activate it in spite of, whoever asked for them.
    """

    kind: Literal["product"]
    product: ProductName
    floor: Count = 0
    interlocks: Annotated[tuple[Name, ...], msgspec.Meta(max_length=limits.INTERLOCKS)] = ()
    skippable: Annotated[tuple[Name, ...], msgspec.Meta(max_length=limits.INTERLOCKS)] = ()


class ImageTerms(Message):
    """The field `headland` of the image repository's top targets: each product's era."""

    kind: Literal["image"]
    eras: dict[ProductName, Count] = {}


class DirectorTerms(Message):
    """The field `headland` of the director's top targets. `sealing_key` is the server's public X25519 key, 32 bytes in
    hexadecimal, to which machines seal what a stick takes home; without one nothing goes on a stick."""

    kind: Literal["director"]
    sealing_key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None


class ReleaseTerms(Message):
    """`custom` of a release's target file: enough for lists without fetching the manifest."""

    kind: Literal["release"]
    version: Version
    release_counter: Count
    era: Count = 0
