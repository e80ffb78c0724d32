"""What a state's work came to: the event, and what the record and the server are told with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from device.refusals import Refusal
from device.trust.port import Terms
from device.update.ports import HinderedError
from device.update.states import DAMAGES_BORNE, Event, Offer, UpdateRecord
from protocol.errors import Reason, Refused
from protocol.ids import Millis

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


def failed(refused: Refused | HinderedError, record: UpdateRecord) -> Step:
    """The workers or containers of a release on trial do not come up.

    That is evidence against it, unless the machine is in the way: a file is not what it was, an accelerator is not
    there, the engine does not do it, or it served before, and a boot in which all is read at once takes longer than
    loading may.

    Args:
        refused: Why.
        record: In TRIAL.
    """
    if isinstance(refused, HinderedError):
        return Step(Event.SPENT, Reason.TRIAL_UNFINISHED, refused.message)
    match refused.reason:
        case reason if reason in DAMAGE:
            event = Event.DAMAGED
        case Reason.WRONG_HARDWARE:
            event = Event.SPENT
        case Reason.MODEL_LOAD | Reason.TRIAL_CONTAINER if record.healthy_s:
            event = Event.SPENT
        case _:
            event = Event.FAILED
    return Step(event, refused.reason, refused.message)


def damage_seen(record: UpdateRecord, reason: Reason, detail: str) -> Step:
    """A kept file is not what it was: it is fetched again, and a disk that never keeps it ends the try.

    Args:
        record: In CHECK or ACTIVATE.
        reason: What showed it.
        detail: The facts for a person.
    """
    return Step(Event.SPENT if record.damages >= DAMAGES_BORNE else Event.DAMAGED, reason, detail)


def delisted(offer: Offer | None, terms: Terms | None) -> Step | None:
    """The step when the managers list the offered release no longer.

    Args:
        offer: None: there is none.
        terms: The newest; None: none are known.
    """
    if offer is None or terms is None or offer.release.digest in terms.listed:
        return None
    return Step(Event.FORBIDDEN, Reason.DELISTED, f"release {offer.release.version} was delisted")


def spent(record: UpdateRecord) -> Step:
    """The release may be what takes the machine down: see `states.is_spent`."""
    detail = f"{record.starts} starts in a row ended in state {record.state} before they told anything"
    return Step(Event.SPENT, Reason.TRIAL_UNFINISHED, detail)


def refusal_of(record: UpdateRecord, step: Step, at_ms: Millis) -> Refusal | None:
    """What is remembered against the record's offer, if `step` is evidence against it."""
    if step.event not in (Event.REFUSED, Event.FAILED):
        return None
    assert record.offer is not None
    assert step.reason is not None
    release = record.offer.release
    return Refusal(
        manifest=release.digest, release=release.version, reason=step.reason, at_ms=at_ms, detail=step.detail
    )
