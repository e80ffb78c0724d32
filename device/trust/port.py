"""What the agent asks of trust, and the answer: typed, verified, nothing left to judge but the install rule."""

from collections.abc import Iterable
from typing import Final, Protocol

from protocol.errors import Reason
from protocol.ids import Count, Digest, Length, Millis, Name, ProductName, Version
from protocol.kits import KitBody, PermitTerms, PublicKey, Technician
from protocol.messages import SyncAnswer
from protocol.objects import AssignmentBody, ReceiptsBody, ReportedBody
from protocol.wire import Message

ROSTER: Final = "director/roster"
"""Where the newest `Roster` stands among the facts of `state.db`."""

WALL_CLOCK: Final = "wall-clock"
"""What is complained of when the wall clock is a day or more from the signed time. Nothing was refused."""


class Listed(Message):
    """A release that the product's current role lists."""

    version: Version
    release_counter: Count
    era: Count
    length_bytes: Length  # of the manifest


class Terms(Message):
    """What the newest trusted image repository says of the product. Kept in `state.db`: ACTIVATE looks again.

    Args:
        delegated_by: Versions of the root and of the top targets, whose keys give the role's own version its meaning.
        interlocks: Signals that must be off before anything is activated.
        permits: Those for this machine, expired ones too: when one counts is the install rule's to say.
        skippable: Signals that a technician who forces may leave on.
    """

    product: ProductName
    role_version: Count
    delegated_by: tuple[Count, Count] = (0, 0)
    era: Count = 0
    floor: Count = 0
    listed: dict[Digest, Listed] = {}  # by the manifest's digest
    interlocks: tuple[Name, ...] = ()
    permits: tuple[PermitTerms, ...] = ()
    skippable: tuple[Name, ...] = ()

    def are_older_than(self, others: "Terms") -> bool:
        """Whether these were said before the others. After keys were stolen and rotated, the role's version may be
        lower (ATTACKS.md T4)."""
        return (*self.delegated_by, self.role_version) < (*others.delegated_by, others.role_version)


class Roster(Message):
    """What the newest trusted director says for field kits. Kept in `state.db` under `ROSTER`; the newest counts.

    Args:
        version: Rises with every change of the director's targets and of the list.
        technicians: Empty where the director has no list, or none that could be read.
        created_ms: Of the list.
        expires_ms: Of the list: after it nobody may force, and all else goes on.
        sealing_key: The server's, for what a stick takes home; None: nothing goes on a stick.
        kit_keys: Ids of the keys that may sign kits.
        kit_threshold: How many of them have to; 0: there are no kits.
    """

    version: Count
    technicians: tuple[Technician, ...] = ()
    created_ms: Millis = 0
    expires_ms: Millis = 0
    sealing_key: PublicKey | None = None
    kit_keys: tuple[str, ...] = ()
    kit_threshold: Count = 0

    def takes_kit_of(self, signers: Iterable[str]) -> bool:
        """Whether a kit that these keys signed is still signed by enough of those who may: else it is revoked."""
        return 0 < self.kit_threshold <= len(set(signers) & set(self.kit_keys))


class Complaint(Message):
    """Something offered was refused, or trust is stale: reported as an alert."""

    what: str  # `assignment`, `reported`, `clock`, `wall-clock`, `receipts`, `image`, `director`, `kit`
    reason: Reason
    detail: str  # a sentence for a person
    hint: str = ""  # what to do about it


class Verdict(Message):
    """What of an answer held. Absent is what was not offered or was refused; `complaints` says which and why."""

    time_ms: Millis | None = None  # of the verified time statement
    terms: Terms | None = None  # the newest trusted, whether or not anything new came
    assignment: AssignmentBody | None = None
    reported: ReportedBody | None = None  # for this very request
    receipts: tuple[ReceiptsBody, ...] = ()
    complaints: tuple[Complaint, ...] = ()
    versions: dict[str, Count] = {}  # for the next SyncRequest
    may_install: bool = False  # time is sure and no needed role has expired: expiry gates installing, never running
    roster: Roster | None = None  # by the newest trusted director, whether or not anything new came


class KitVerdict(Message):
    """What became of a kit. Refused: nothing that was trusted has changed.

    Args:
        kit: All of it held, and what it brought is trusted from now on; None: refused.
        expires_ms: Of the kit.
        signers: Ids of the keys whose signatures on it held.
        complaint: Why it was refused.
        terms: The newest trusted after it, also of a refused one.
        roster: Likewise.
        versions: Likewise, of all trusted roles.
    """

    kit: KitBody | None = None
    expires_ms: Millis = 0
    signers: tuple[str, ...] = ()
    complaint: Complaint | None = None
    terms: Terms | None = None
    roster: Roster | None = None
    versions: dict[str, Count] = {}


class Trust(Protocol):
    """Verifies answers. All metadata, floors and terms are durable before it returns."""

    async def judge(self, answer: SyncAnswer, nonce: str, asked_boot_s: float) -> Verdict:
        """Verifies one answer, fetching metadata where the answer shows that something is newer.

        Args:
            answer: As it came, only parsed.
            nonce: That of the very request.
            asked_boot_s: CLOCK_BOOTTIME just before the request was sent, in seconds.

        Raises:
            LinkError: Metadata could not be fetched; what is trusted stays as it was.
        """
        ...

    async def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        """Verifies receipts that came apart from a contact's answer: to a batch of results, or on a stick.

        They are verified under the director's metadata as it is trusted now; nothing is fetched.

        Args:
            texts: Signed `ReceiptsBody` objects, as they came.

        Returns:
            Those that hold, in their order. One that does not is left out, for a receipt is only ever missed, never
            needed: the rows are sent again.

        Raises:
            LinkError: The keeper could not be asked.
        """
        ...

    async def judge_kit(self, folder: str) -> KitVerdict:
        """Judges a field kit by a copy of its metadata; a network is not needed.

        Args:
            folder: On this machine's own disk, named as the kit: `kit.json`, `image/` and `director/`.

        Raises:
            LinkError: The keeper could not be asked.
        """
        ...

    async def close(self) -> None:
        """Ends the keeper process, if one runs."""
        ...
