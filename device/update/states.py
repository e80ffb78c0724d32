"""The update machine as a table: its record, what each event makes of it, and what a restart makes of it.

Pure: no file, no clock, no chance. `device.update.updater` writes the record before it does a state's work, and each
state's work is safe to repeat, so a power cut costs at most a repetition.

An update ends in one of three ways besides commit. *Refused*: there is evidence against the release; it is remembered
by the manifest's digest until a person lifts it. *Unfinished*: there is no verdict, for the starts were used up or the
accelerator is not there; it is tried again a number of times, with back-off, and then waits for a new offer: the same
release in another rollout. Other offers in between change nothing of that. *Paused* is no end at all: a lost link, a
full disk, a bad source; no rollback and no count, it goes on when it can.
"""

from collections.abc import Callable
from enum import StrEnum, unique
from typing import Final, assert_never

import msgspec

from protocol.errors import Reason
from protocol.ids import Count, Digest, Millis, Name, Token, Version
from protocol.messages import Outcome
from protocol.objects import Conditions
from protocol.release import TrialRules
from protocol.wire import Message

DAMAGES_BORNE: Final = 3  # in a row, before a disk that keeps nothing is taken for what it is
TRIED_KEPT: Final = 32  # offers; a machine meets a few in a season, and the record is written at each step


@unique
class State(StrEnum):
    """A step of the update machine."""

    IDLE = "idle"
    FETCH = "fetch"  # download, verify, keep
    CHECK = "check"  # golden inputs in a throw-away process
    WAIT = "wait"  # for the window, the signals, a sure clock
    ACTIVATE = "activate"  # the second look; nothing has changed yet
    TRIAL = "trial"  # the offer is active, and watched
    COMMIT = "commit"
    ROLLBACK = "rollback"  # the committed release is active again
    CLEANUP = "cleanup"  # what nothing names is deleted


@unique
class Event(StrEnum):
    """What can happen to an update."""

    OFFERED = "offered"  # an offer passed the install rule
    WITHDRAWN = "withdrawn"  # the director offers it no longer
    FETCHED = "fetched"
    PAUSED = "paused"  # the world is in the way, not the release
    CHECKED = "checked"
    REFUSED = "refused"  # evidence before activation
    FORBIDDEN = "forbidden"  # a rule forbids it now: delisted, a floor, too late
    DAMAGED = "damaged"  # a kept file is not what it was
    READY = "ready"
    NOT_NOW = "not-now"
    ACTIVATED = "activated"
    HEALTHY = "healthy"
    FAILED = "failed"  # evidence in the trial
    SPENT = "spent"  # no verdict can be had: the starts are used up, or the machine is in the way
    SUPERSEDED = "superseded"  # a trial that can come to no verdict gives way
    COMMITTED = "committed"
    RESTORED = "restored"
    CLEAN = "clean"
    AGAIN = "again"  # the back-off of an unfinished update is over


class Held(Message):
    """What the record keeps of a release."""

    digest: Digest
    version: Version
    release_counter: Count
    era: Count = 0


class Offer(Message):
    """What is being installed. Its transfer plan is kept beside the record, for it is large and rarely read.

    Args:
        rollout: Of the server, or the kit that brought it (`protocol.kits.is_kit`).
        forced: The technician's request that forced it.
        permit_ms: When the permit was made by which it goes below what was committed here; 0: it needs none.
    """

    release: Held
    rollout: Name
    conditions: Conditions = Conditions()
    trial: TrialRules = TrialRules()
    forced: Token | None = None
    permit_ms: Millis = 0


class Ended(Message):
    """How an update ended, or will have ended once the rollback is done."""

    release: Held
    rollout: Name
    outcome: Outcome
    reason: Reason | None = None
    detail: str = ""


class Tried(Message):
    """How often an offer ended unfinished. Another rollout of the same release is another offer."""

    release: Digest
    rollout: Name
    count: Count


class UpdateRecord(Message):
    """The one pointer, and all that must survive a power cut.

    Args:
        active: What workers and the `active` link converge to: the committed release, in TRIAL the offer's.
        committed: What evidence has kept; a rollback goes back to it.
        previous: What was committed before; kept on the disk.
        healthy_s: Healthy seconds of this trial, over all boots.
        inferences: Of this trial, over all boots; `errors` likewise.
        starts: Consecutive starts in this state that never became settled.
        settled: This start has reached the trial's `min_healthy_s`.
        failures: Pauses in a row, for the back-off.
        damages: Times in a row that a kept file of this offer was not what it was.
        paused: Why the last pause was, for people; empty when it goes on.
        last: How the last update ended.
        tried: Offers that ended unfinished, also those of before; the one that did so last stands last.
    """

    state: State = State.IDLE
    active: Digest | None = None
    committed: Held | None = None
    previous: Held | None = None
    offer: Offer | None = None
    healthy_s: float = 0.0
    inferences: Count = 0
    errors: Count = 0
    starts: Count = 0
    settled: bool = False
    failures: Count = 0
    damages: Count = 0
    paused: str = ""
    last: Ended | None = None
    tried: tuple[Tried, ...] = ()

    @property
    def retries(self) -> int:
        """How often the present offer ended unfinished."""
        return 0 if self.offer is None else self.tries_of(self.offer.release.digest, self.offer.rollout)

    def tries_of(self, release: Digest, rollout: Name) -> int:
        """How often this offer ended unfinished, as far as is remembered."""
        return next((one.count for one in self.tried if (one.release, one.rollout) == (release, rollout)), 0)


# fmt: off
NEXT: Final[dict[tuple[State, Event], State]] = {
    (State.IDLE,     Event.OFFERED):    State.FETCH,
    (State.IDLE,     Event.AGAIN):      State.FETCH,
    (State.IDLE,     Event.WITHDRAWN):  State.CLEANUP,

    (State.FETCH,    Event.FETCHED):    State.CHECK,
    (State.FETCH,    Event.PAUSED):     State.FETCH,
    (State.FETCH,    Event.FORBIDDEN):  State.CLEANUP,
    (State.FETCH,    Event.OFFERED):    State.FETCH,
    (State.FETCH,    Event.WITHDRAWN):  State.CLEANUP,

    (State.CHECK,    Event.CHECKED):    State.WAIT,
    (State.CHECK,    Event.REFUSED):    State.CLEANUP,
    (State.CHECK,    Event.SPENT):      State.CLEANUP,
    (State.CHECK,    Event.FORBIDDEN):  State.CLEANUP,
    (State.CHECK,    Event.DAMAGED):    State.FETCH,
    (State.CHECK,    Event.OFFERED):    State.FETCH,
    (State.CHECK,    Event.WITHDRAWN):  State.CLEANUP,

    (State.WAIT,     Event.READY):      State.ACTIVATE,
    (State.WAIT,     Event.FORBIDDEN):  State.CLEANUP,
    (State.WAIT,     Event.DAMAGED):    State.FETCH,
    (State.WAIT,     Event.OFFERED):    State.FETCH,
    (State.WAIT,     Event.WITHDRAWN):  State.CLEANUP,

    (State.ACTIVATE, Event.ACTIVATED):  State.TRIAL,
    (State.ACTIVATE, Event.NOT_NOW):    State.WAIT,
    (State.ACTIVATE, Event.FORBIDDEN):  State.CLEANUP,
    (State.ACTIVATE, Event.DAMAGED):    State.FETCH,
    (State.ACTIVATE, Event.SPENT):      State.CLEANUP,

    (State.TRIAL,    Event.HEALTHY):    State.COMMIT,
    (State.TRIAL,    Event.FAILED):     State.ROLLBACK,
    (State.TRIAL,    Event.FORBIDDEN):  State.ROLLBACK,
    (State.TRIAL,    Event.SPENT):      State.ROLLBACK,
    (State.TRIAL,    Event.DAMAGED):    State.ROLLBACK,
    (State.TRIAL,    Event.SUPERSEDED): State.ROLLBACK,

    (State.COMMIT,   Event.COMMITTED):  State.CLEANUP,

    (State.ROLLBACK, Event.RESTORED):   State.CLEANUP,

    (State.CLEANUP,  Event.CLEAN):      State.IDLE,
}
"""The whole machine. A pair that is not here cannot happen."""
# fmt: on


def advance(
    record: UpdateRecord, event: Event, *, offer: Offer | None = None, reason: Reason | None = None, detail: str = ""
) -> UpdateRecord:
    """What `event` makes of `record`.

    Args:
        record: As it is stored.
        event: One that `NEXT` allows in the record's state.
        offer: With OFFERED: the new one.
        reason: The stable code, for events that end or pause an update.
        detail: The facts for a person.
    """
    assert (record.state, event) in NEXT, f"{event} cannot happen in {record.state}"
    new = _change(record, state=NEXT[record.state, event])
    match event:
        case Event.OFFERED:
            assert offer is not None
            new = _change(_fresh(new), offer=offer)
        case Event.AGAIN:
            new = _fresh(new)
        case Event.WITHDRAWN:
            new = _change(_fresh(new), offer=None)
        case Event.PAUSED:
            new = _change(new, failures=record.failures + 1, paused=detail or str(reason))
        case Event.FETCHED | Event.CHECKED | Event.READY | Event.NOT_NOW:
            new = _change(new, starts=0, settled=False, failures=0, paused=detail if event is Event.NOT_NOW else "")
        case Event.ACTIVATED:
            new = _change(_fresh(new), active=_offer(record).release.digest)
        case Event.HEALTHY:
            new = _kept(_end(new, "committed", None, ""), record)
        case Event.REFUSED | Event.FAILED | Event.FORBIDDEN:
            outcome: Outcome = "rolled-back" if new.state is State.ROLLBACK else "refused"
            new = _change(_end(new, outcome, reason, detail), active=_committed_digest(record))
        case Event.DAMAGED if new.state is State.FETCH:
            new = _change(_fresh(new), damages=record.damages + 1, paused=detail)
        case Event.SPENT | Event.DAMAGED:
            new = _tried_once_more(_unfinished(new, reason, detail))
        case Event.SUPERSEDED:
            # Not counted: nothing was wrong with it, and the newer offer, which takes its place, may fail.
            new = _unfinished(new, reason, detail)
        case Event.COMMITTED | Event.RESTORED:
            new = _change(new, failures=0, paused="")
        case Event.CLEAN if not will_retry(record):
            new = _change(_fresh(new), offer=None)
        case Event.CLEAN:
            pass  # the offer stays, for the next try
        case _:
            assert_never(event)
    return new


def will_retry(record: UpdateRecord) -> bool:
    """Whether the update that ended is tried again after a back-off."""
    return (
        record.offer is not None
        and record.last is not None
        and record.last.outcome == "unfinished"
        and record.last.release.digest == record.offer.release.digest
        and not is_worn_out(record, record.offer)
    )


def is_worn_out(record: UpdateRecord, offer: Offer) -> bool:
    """Whether the offer ended unfinished more often than its release's rules have it tried again."""
    return record.tries_of(offer.release.digest, offer.rollout) > offer.trial.max_retries


def resume(record: UpdateRecord) -> UpdateRecord:
    """What a restart makes of the record it finds. The caller writes it before it works on."""
    return RESUME[record.state](record)


def without_trial(record: UpdateRecord) -> UpdateRecord:
    """`record` as if nothing were on trial: what serves while a trial cannot go on."""
    return _change(record, active=_committed_digest(record))


def forced(record: UpdateRecord, request: Token) -> UpdateRecord:
    """`record` with its offer forced; an offer that was forced before stays so by its first request."""
    offer = _offer(record)
    return record if offer.forced else _change(record, offer=msgspec.structs.replace(offer, forced=request))


def is_spent(record: UpdateRecord) -> bool:
    """Whether more starts failed than may, in CHECK or TRIAL: the release may be what takes the machine down."""
    return (
        record.state in (State.CHECK, State.TRIAL)
        and record.offer is not None
        and record.starts > record.offer.trial.max_failed_starts
    )


def settles_at_s(rules: TrialRules) -> float:
    """Healthy seconds after which a start was no failed one: a trial shorter than the minimum needs no more."""
    return min(rules.min_healthy_s, rules.healthy_s)


def observed(
    record: UpdateRecord, *, healthy_s: float, inferences: int, errors: int, this_start_s: float
) -> UpdateRecord:
    """The record of a trial after some watching.

    Args:
        record: In TRIAL.
        healthy_s: Healthy seconds, over all boots; `inferences` and `errors` likewise.
        inferences: Finished ones.
        errors: Those that failed.
        this_start_s: Healthy seconds since this start.
    """
    assert record.state is State.TRIAL
    settled = record.settled or this_start_s >= settles_at_s(_offer(record).trial)
    return _change(
        record,
        healthy_s=healthy_s,
        inferences=inferences,
        errors=errors,
        settled=settled,
        starts=0 if settled else record.starts,
    )


def _go_on(record: UpdateRecord) -> UpdateRecord:
    return record


def _count_start(record: UpdateRecord) -> UpdateRecord:
    return _change(record, starts=0 if record.settled else record.starts + 1, settled=False)


# fmt: off
RESUME: Final[dict[State, Callable[[UpdateRecord], UpdateRecord]]] = {
    State.IDLE:     _go_on,
    State.FETCH:    _go_on,        # from the last whole segment
    State.CHECK:    _count_start,  # a candidate that takes the machine down must not be tried for ever
    State.WAIT:     _go_on,
    State.ACTIVATE: _go_on,        # looks again: hours may have passed, and the machine may drive
    State.TRIAL:    _count_start,  # healthy seconds stay, so that an ignition key never rolls a good release back
    State.COMMIT:   _go_on,
    State.ROLLBACK: _go_on,
    State.CLEANUP:  _go_on,
}
"""What a restart does in each state."""
# fmt: on


def _fresh(record: UpdateRecord) -> UpdateRecord:
    """Without the counts of one attempt."""
    record = _change(record, healthy_s=0.0, inferences=0, errors=0, starts=0, settled=False)
    return _change(record, failures=0, damages=0, paused="")


def _end(record: UpdateRecord, outcome: Outcome, reason: Reason | None, detail: str) -> UpdateRecord:
    offer = _offer(record)
    ended = Ended(release=offer.release, rollout=offer.rollout, outcome=outcome, reason=reason, detail=detail)
    return _change(record, last=ended, failures=0, paused="")


def _offer(record: UpdateRecord) -> Offer:
    assert record.offer is not None, f"{record.state} without an offer"
    return record.offer


def _kept(new: UpdateRecord, before: UpdateRecord) -> UpdateRecord:
    """Commits the offer; a repair of the committed release leaves the previous one as it was."""
    release = _offer(before).release
    repair = before.committed is not None and before.committed.digest == release.digest
    tried = tuple(one for one in new.tried if one.release != release.digest)
    return _change(new, committed=release, previous=before.previous if repair else before.committed, tried=tried)


def _unfinished(new: UpdateRecord, reason: Reason | None, detail: str) -> UpdateRecord:
    return _change(_end(new, "unfinished", reason or Reason.TRIAL_UNFINISHED, detail), active=_committed_digest(new))


def _tried_once_more(new: UpdateRecord) -> UpdateRecord:
    offer = _offer(new)
    this = Tried(release=offer.release.digest, rollout=offer.rollout, count=new.retries + 1)
    others = [one for one in new.tried if (one.release, one.rollout) != (this.release, this.rollout)]
    return _change(new, tried=(*others, this)[-TRIED_KEPT:])


def _committed_digest(record: UpdateRecord) -> Digest | None:
    return record.committed.digest if record.committed is not None else None


def _change(record: UpdateRecord, **fields: object) -> UpdateRecord:
    return msgspec.structs.replace(record, **fields)
