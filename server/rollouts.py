"""What a rollout does next, and which release a machine should get. Pure: facts in, verdict out.

Places are taken by machines as they come into contact, so that a phase of five is five machines that are awake and not
five that sleep in a barn. A machine that was not seen has not failed. Named machines are waited for: whoever names
them wants their word.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from protocol.errors import Reason
from server.storage.records import Member, Rollout

NO_EVIDENCE: Final = frozenset(
    {
        # What is wrong with the link, the server, the clock or the aim says nothing about the release.
        Reason.SIGNATURE,
        Reason.EXPIRED,
        Reason.ROLLBACK,
        Reason.METADATA,
        Reason.TIME,
        Reason.DELISTED,
        Reason.NOT_LISTED,
        Reason.WRONG_DEVICE,
        Reason.WRONG_PRODUCT,
        Reason.WRONG_HARDWARE,
        Reason.COUNTER_FLOOR,
        Reason.PRODUCT_FLOOR,
        Reason.REFUSED_BEFORE,
        Reason.HASH,
        Reason.LENGTH,
        Reason.BUDGET,
    }
)


@dataclass(frozen=True)
class Tally:
    """One phase as it fills.

    Args:
        places: Machines that it is for; of `percent` and `count`, those that earlier phases do not cover.
        contacted: Machines of it that were offered the release.
        committed: Those that run it for good.
        failed: Those whose end is evidence against the release.
        deferred: Those whose update waits: for space, a window, or bytes that a budget allows. Not failed.
    """

    places: int
    contacted: int
    committed: int
    failed: int
    deferred: int = 0

    @property
    def unseen(self) -> int:
        """Places that nobody has taken yet."""
        return max(0, self.places - self.contacted)


@dataclass(frozen=True)
class Stay:
    """Nothing changes."""


@dataclass(frozen=True)
class Widen:
    """The next phase opens."""

    phase: int


@dataclass(frozen=True)
class Halt:
    """No machine is offered the release any more, until a person resumes."""

    why: str


Verdict = Stay | Widen | Halt


def failed(member: Member) -> bool:
    """Whether a machine's end is evidence against the release."""
    return member.outcome in ("refused", "rolled-back") and member.reason not in NO_EVIDENCE


def tally(rollout: Rollout, members: Collection[Member], group_size: int) -> tuple[Tally, ...]:
    """All phases as they fill.

    Args:
        rollout: The rollout.
        members: Every machine that has a place in it.
        group_size: Machines of its product in its group now.
    """
    found = []
    before = 0
    for number, phase in enumerate(rollout.phases):
        mine = [member for member in members if member.phase == number]
        if phase.devices is not None:
            # One that an earlier phase took has no second place.
            elsewhere = {member.device for member in members if member.phase < number}
            places = len(set(phase.devices) - elsewhere)
        else:
            places = max(0, _reach(rollout, number, group_size) - before)
        places = max(places, len(mine))
        before += places
        found.append(
            Tally(
                places=places,
                contacted=len(mine),
                committed=sum(member.outcome == "committed" for member in mine),
                failed=sum(failed(member) and (member.ended_ms or 0) >= rollout.judged_from_ms for member in mine),
                deferred=sum(member.outcome == "deferred" for member in mine),
            )
        )
    return tuple(found)


def judge(rollout: Rollout, members: Collection[Member], group_size: int) -> Verdict:
    """What an active rollout does next; call it again after `Widen`.

    A phase halts the rollout when more than `error_percent` of its contacted machines failed, and opens the next one
    when `success_percent` of its places committed.
    """
    if rollout.state != "active":
        return Stay()
    tallies = tally(rollout, members, group_size)
    for number, count in enumerate(tallies[: rollout.phase + 1]):
        if count.failed and count.failed * 100 > rollout.phases[number].error_percent * count.contacted:
            reasons = sorted(
                {m.reason.value for m in members if m.phase == number and failed(m) and m.reason is not None}
            )
            return Halt(
                f"phase {number + 1}: {count.failed} of {count.contacted} contacted machines failed"
                f" ({', '.join(reasons) or 'no reason given'}), at most {rollout.phases[number].error_percent:g} % may"
            )
    here = tallies[rollout.phase]
    last = rollout.phase + 1 >= len(rollout.phases)
    # An empty group has nobody whose word could open the next phase.
    if last or (not group_size and not here.contacted):
        return Stay()
    need = ceil(here.places * rollout.phases[rollout.phase].success_percent / 100)
    return Widen(rollout.phase + 1) if here.committed >= need else Stay()


def place(
    rollout: Rollout, member: Member | None, device: str, taken: Mapping[int, int], group_size: int
) -> int | None:
    """The phase in which a machine of the group may take a place now, or has one; None while there is none.

    Args:
        rollout: The rollout.
        member: The machine's place, if it has one.
        device: The machine.
        taken: Places taken by phase.
        group_size: Machines of its product in its group now.
    """
    if member is not None:
        return member.phase
    for number, phase in enumerate(rollout.phases[: rollout.phase + 1]):
        if phase.devices is not None:
            if device in phase.devices:
                return number
        elif sum(count for at, count in taken.items() if at <= number) < _reach(rollout, number, group_size):
            return number
    return None


@dataclass(frozen=True)
class Candidate:
    """A rollout as one machine sees it.

    Args:
        rollout: The rollout.
        phase: From `place`.
        member: Its present place, if it has one.
        listed: Whether the product's current role lists the release.
    """

    rollout: Rollout
    phase: int | None
    member: Member | None
    listed: bool


def choose(
    candidates: Sequence[Candidate],
    groups: Collection[str],
    running: str | None,
    running_counter: tuple[int, int] | None,
) -> Candidate | None:
    """The rollout from which a machine is offered its release now; None when it runs what it should.

    The newest rollout that offers the machine something wins, so that one that wakes after a season goes straight to
    the best release. Paused and halted rollouts offer nothing; neither does one whose release was delisted, one that
    this machine failed in, or one whose release is older than what it runs.

    Args:
        candidates: All rollouts of its product, newest first.
        groups: The machine's.
        running: Digest of the committed manifest, from its report.
        running_counter: (era, counter) of it, when this server knows it.
    """
    for candidate in candidates:
        rollout = candidate.rollout
        if rollout.manifest == running:
            return None
        if rollout.state != "active" or not candidate.listed or rollout.group not in groups:
            continue
        if candidate.phase is None:
            continue
        if candidate.member is not None and candidate.member.outcome in ("refused", "rolled-back"):
            retried = (candidate.member.ended_ms or 0) < rollout.judged_from_ms
            if failed(candidate.member) or not (retried or candidate.member.reason in _RETRIED):
                continue
        if running_counter is not None and (rollout.era, rollout.release_counter) <= running_counter:
            continue
        return candidate
    return None


_RETRIED: Final = frozenset(
    {
        Reason.HASH,
        Reason.LENGTH,
        Reason.SIGNATURE,
        Reason.EXPIRED,
        Reason.METADATA,
        Reason.ROLLBACK,
        Reason.TIME,
        Reason.NOT_LISTED,
    }
)
"""Refusals that the next contact may mend: the source or the clock was at fault."""


def _reach(rollout: Rollout, number: int, group_size: int) -> int:
    """How many places phases up to and including `number` have together."""
    phase = rollout.phases[number]
    if phase.count is not None:
        return min(phase.count, group_size)
    if phase.percent is not None:
        return min(ceil(group_size * phase.percent / 100), group_size)
    return 0
