"""What technicians forced here, until the server was told: kept in `state.db` as the signed bytes that they are."""

from collections.abc import Collection
from typing import Final

from device.state_db import StateDb
from protocol import limits
from protocol.errors import Refused
from protocol.messages import SignedForce
from protocol.wire import decode, encode

FACT: Final = "kits/forces"
KEPT: Final = 256  # a technician who forces all day; beyond, the oldest go, as statuses do


def keep_force(state: StateDb, force: SignedForce) -> None:
    """Queues a request that was verified and is about to be carried out; the same one twice is kept once. Blocking."""
    state.change(FACT, lambda found: _written((*(one for one in _read(found) if one != force), force)))


def untold_forces(state: StateDb, most: int = limits.FORCES) -> tuple[SignedForce, ...]:
    """The oldest that wait, at most so many. Blocking."""
    return _read(state.get(FACT))[:most]


def drop_forces(state: StateDb, told: Collection[SignedForce]) -> None:
    """Forgets those that the server has. Blocking."""
    if told:
        state.change(FACT, lambda found: _written(tuple(one for one in _read(found) if one not in told)))


def _read(found: bytes | None) -> tuple[SignedForce, ...]:
    if found is None:
        return ()
    try:
        return decode(found, tuple[SignedForce, ...], limit=limits.ANSWER_BYTES)
    except Refused:
        return ()


def _written(forces: tuple[SignedForce, ...]) -> bytes:
    return encode(forces[-KEPT:])
