"""What a state's work came to: the event, and what the record and the server are told with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from device.update.states import Event, Offer, UpdateRecord
from protocol.errors import Reason, Refused

DAMAGE: Final = frozenset({Reason.HASH, Reason.LENGTH})  # of a source or of our disk: nothing against the release


@dataclass(frozen=True)
class Step:
    """An event that the loop records.

    Args:
        event: One that the record's state allows.
        reason: The stable code, for events that end or pause an update.
        detail: The facts for a person.
        needs_bytes: With a pause for a budget: so much would still have to travel.
        offer: With OFFERED: the new one.
        facts: What is kept beside the record, in its transaction.
    """

    event: Event
    reason: Reason | None = None
    detail: str = ""
    needs_bytes: int = 0
    offer: Offer | None = None
    facts: Mapping[str, bytes] | None = None


def failed(refused: Refused) -> Step:
    """The workers of a release on trial do not come up."""
    event = Event.DAMAGED if refused.reason in DAMAGE else Event.FAILED
    return Step(event, refused.reason, refused.message)


def spent(record: UpdateRecord) -> Step:
    """The release may be what takes the machine down: see `states.is_spent`."""
    detail = f"{record.starts} starts in a row ended in state {record.state} before they told anything"
    return Step(Event.SPENT, Reason.TRIAL_UNFINISHED, detail)
