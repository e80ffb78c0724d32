"""Unfinished downloads that no plan goes on from: they take room that the next release may need."""

from device.repair.fault import Fault, Place
from device.repair.opened import opened_state
from device.transfer.holding import part_names
from device.update.memory import ASSIGNMENT, Memory
from signing.durable import TEMPORARY_PREFIX


def find(place: Place) -> list[Fault]:
    """Parts that the last assignment does not name."""
    folder = place.layout.store / "parts"
    with opened_state(place) as state:
        if state is None or not folder.is_dir() or Memory(state).is_partial():
            return []
        # Of the last assignment too, when it is offered no more: a rollout that goes on must not cost its bytes twice.
        assignment = Memory(state).assignment()
        if assignment is None and state.get(ASSIGNMENT) is not None:
            return []
        wanted = part_names(assignment.plan) if assignment is not None else frozenset()
    stray = sorted(
        path
        for path in folder.iterdir()
        if path.name.partition(".")[0] not in wanted and not path.name.startswith(TEMPORARY_PREFIX)
    )
    if not stray:
        return []
    total = sum(path.stat().st_size for path in stray)

    def mend() -> str:
        place.disk.unlink_all(stray)
        return f"removed: {total} bytes"

    return [Fault(f"{len(stray)} unfinished downloads of no plan, {total} bytes", mend, quiet=True)]
