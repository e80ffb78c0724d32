"""What the agent asks of trust, and the answer: typed, verified, nothing left to judge but the install rule."""

from typing import Final, Protocol

from protocol.errors import Reason
from protocol.ids import Count, Digest, Length, Millis, Name, ProductName, Version
from protocol.messages import SyncAnswer
from protocol.objects import AssignmentBody, ReceiptsBody, ReportedBody
from protocol.wire import Message

WALL_CLOCK: Final = "wall-clock"
"""What is complained of when the wall clock is a day or more from the signed time. Nothing was refused."""


class Listed(Message):
    """A release that the product's current role lists."""

    version: Version
    release_counter: Count
    era: Count
    length_bytes: Length  # of the manifest


class Terms(Message):
    """What the newest trusted image repository says of the product. Kept in `state.db`: ACTIVATE looks again."""

    product: ProductName
    role_version: Count
    era: Count = 0
    floor: Count = 0
    listed: dict[Digest, Listed] = {}  # by the manifest's digest
    interlocks: tuple[Name, ...] = ()  # signals that must be off before anything is activated


class Complaint(Message):
    """Something offered was refused, or trust is stale: reported as an alert."""

    what: str  # `assignment`, `reported`, `clock`, `wall-clock`, `receipts`, `image`, `director`
    reason: Reason
    detail: str


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

    async def close(self) -> None:
        """Ends the keeper process, if one runs."""
        ...
