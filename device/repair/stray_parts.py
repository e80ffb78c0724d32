"""Unfinished downloads that no update goes on from: they take room that the next release may need."""

from device.repair.fault import Fault, Place
from device.repair.opened import opened_state
from device.transfer.holding import part_names
from device.update.memory import Memory
from signing.durable import TEMPORARY_PREFIX


def find(place: Place) -> list[Fault]:
    """Parts that are not of the plan of what is being installed."""
    folder = place.layout.store / "parts"
    with opened_state(place) as state:
        if state is None or not folder.is_dir() or Memory(state).is_partial():
            return []
        assignment = Memory(state).assignment()
        is_offered = state.record().offer is not None
        if assignment is None and is_offered:
            return []
        wanted = part_names(assignment.plan) if assignment is not None and is_offered else frozenset()
    stray = sorted(
        path
        for path in folder.iterdir()
        if path.name.partition(".")[0] not in wanted and not path.name.startswith(TEMPORARY_PREFIX)
    )
    if not stray:
        return []
    total = sum(path.stat().st_size for path in stray)

    def mend() -> str:
        place.remove_all(stray)
        return f"removed: {total} bytes"

    return [Fault(f"{len(stray)} unfinished downloads of no plan, {total} bytes", mend, quiet=True)]
