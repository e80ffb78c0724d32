"""The state database for checks that hold files against it."""

import contextlib
from collections.abc import Iterator

from device.repair.fault import Place
from device.state_db import StateDb
from protocol.errors import StateError


@contextlib.contextmanager
def opened_state(place: Place) -> Iterator[StateDb | None]:
    """The database, or None when there is none that can be used: then nothing is known, and nothing is at fault."""
    try:
        state = StateDb(place.layout.state_db, create=False, disk=place.disk)
    except StateError:
        yield None
        return
    try:
        yield state
    finally:
        state.close()
