"""Where an update is, for people."""

from dataclasses import dataclass, replace

from device.update.states import State, UpdateRecord


@dataclass(frozen=True)
class Progress:
    """Where the update is.

    Args:
        state: Of the machine.
        release: The version that is being installed, or empty.
        offer: The rollout or the kit that brought it, or empty.
        forced: The technician's request that forced it, or empty.
        why: What it waits for, or empty.
        bytes_done: Of the present FETCH, payload bytes received in this process.
        bytes_total: What was to come when it began.
        needs_bytes: It waits for a budget: so much would still have to travel.
        healthy_s: Of the trial.
        healthy_of_s: What it needs.
        damaged: The committed release cannot serve: its files are not what they were, or it does not come up.
    """

    state: State
    release: str = ""
    offer: str = ""
    forced: str = ""
    why: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    needs_bytes: int = 0
    healthy_s: float = 0.0
    healthy_of_s: float = 0.0
    damaged: str = ""


def shown(seen: Progress, record: UpdateRecord, *, needs_bytes: int, damaged: str) -> Progress:
    """What a state's work showed last, beside what the record says.

    Args:
        seen: By that work.
        record: As it is stored.
        needs_bytes: Of a FETCH that waits for a budget.
        damaged: Why the committed release does not serve.
    """
    offer = record.offer
    trial = offer.trial if offer is not None and record.state is State.TRIAL else None
    return replace(
        seen,
        state=record.state,
        release=offer.release.version if offer is not None else "",
        offer=offer.rollout if offer is not None else "",
        forced=(offer.forced or "") if offer is not None else "",
        why=seen.why or record.paused,
        needs_bytes=needs_bytes if record.state is State.FETCH else 0,
        healthy_s=max(seen.healthy_s, record.healthy_s) if trial is not None else 0.0,
        healthy_of_s=trial.healthy_s if trial is not None else 0.0,
        damaged=damaged,
    )
