"""A damaged `state.db`: made anew from its seal, see `device.rescue`."""

from device.damage import StateDamagedError
from device.repair.fault import Fault, Place
from device.rescue import rebuild
from device.state_db import StateDb


def find(place: Place) -> list[Fault]:
    """What reading all of it says. Before enrolment there is none, and nothing is wrong."""
    layout = place.layout
    if not (layout.identity / "enrolment.json").exists():
        return []
    try:
        state = StateDb(layout.state_db, create=False, disk=place.disk)
        try:
            state.check()
        finally:
            state.close()
    except StateDamagedError as damaged:
        why = damaged.why

        def mend() -> str:
            return rebuild(layout, why, draw_token=place.draw_token, disk=place.disk).line()

        return [Fault(f"state.db is damaged: {why}", mend, reported=True)]
    return []
