"""Where an update is, for people."""

from dataclasses import dataclass

from device.update.states import State


@dataclass(frozen=True)
class Progress:
    """Where the update is.

    Args:
        state: Of the machine.
        release: The version that is being installed, or empty.
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
    why: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    needs_bytes: int = 0
    healthy_s: float = 0.0
    healthy_of_s: float = 0.0
    damaged: str = ""
