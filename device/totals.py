"""Running totals since enrolment: what this process counted on top of what `state.db` keeps."""

from typing import Final

from device.state_db import StateDb
from protocol.messages import Counters

BYTES: Final = "bytes_received"
INFERRED: Final = "frames_inferred"
DROPPED: Final = "frames_dropped"


class Totals:
    """Adds a process's counts to the kept ones. `now` never blocks; `keep` does.

    Args:
        state: Where they are kept.
    """

    def __init__(self, state: StateDb) -> None:
        self._state = state
        self._base = state.counters()
        self._kept = {INFERRED: 0, DROPPED: 0}
        self._live = {INFERRED: 0, DROPPED: 0}
        self._received = 0

    def received(self, count: int) -> None:
        """Counts bytes that came over the air; durable at once, as they cost money. Blocking."""
        self._state.count(BYTES, count)
        self._received += count

    def saw(self, frames_inferred: int, frames_dropped: int) -> None:
        """Takes the pump's counts since this process began."""
        self._live = {INFERRED: frames_inferred, DROPPED: frames_dropped}

    def keep(self) -> None:
        """Makes the frames' counts durable. A cut loses those since the last call, and no more."""
        for name, live in self._live.items():
            more = live - self._kept[name]
            if more:
                self._state.count(name, more)
                self._kept[name] = live

    def now(self, results_produced: int) -> Counters:
        """The totals at this moment."""
        return Counters(
            bytes_received=self._base.get(BYTES, 0) + self._received,
            frames_inferred=self._base.get(INFERRED, 0) + self._live[INFERRED],
            frames_dropped=self._base.get(DROPPED, 0) + self._live[DROPPED],
            results_produced=results_produced,
        )
