"""A generation of the seal that is gone, damaged or behind: a damaged database could not be made anew from it."""

from device.repair.fault import Fault, Place
from device.repair.opened import opened_state
from device.seal import Seals


def find(place: Place) -> list[Fault]:
    """Of a whole database; the seals of a damaged one are all that there is."""
    with opened_state(place) as state:
        if state is None:
            return []
        seals = Seals(place.layout.state_db)
        newest, serial = seals.newest(), state.sealed().serial
    bad = seals.unreadable()
    if newest is not None and newest.serial >= serial and not bad:
        return []

    def mend() -> str:
        with opened_state(place) as state:
            assert state is not None
            state.seal(both=True)
            trouble = state.seal_trouble
        if trouble:
            raise OSError(trouble)
        return "sealed anew from the database, which is whole"

    what = f"{', '.join(path.name for path in bad)} cannot be read" if bad else "the seal is behind its database"
    # A cut between a change and its seal leaves it behind by that change.
    return [Fault(what, mend, quiet=not bad)]
