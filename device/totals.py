"""Running totals since enrolment: what this process counted on top of what `state.db` keeps."""

import threading
from collections.abc import Iterable, Mapping
from typing import Final

from device.outbox.box import Mark
from device.state_db import StateDb
from protocol import limits
from protocol.errors import Refused
from protocol.messages import Counters
from protocol.results import LANES, ResultRow
from protocol.wire import decode, encode

BYTES: Final = "bytes_received"
DELTA: Final = "delta_bytes"
FULL: Final = "full_bytes"
SAVED: Final = "saved_bytes"
INFERRED: Final = "frames_inferred"
DROPPED: Final = "frames_dropped"
GIVEN_UP: Final = "results_given_up"
MARK: Final = "totals/mark"  # how far the outbox was when the frames' counts were kept


class Totals:
    """Adds a process's counts to the kept ones. `now` never blocks; `keep` does.

    Args:
        state: Where they are kept.
    """

    def __init__(self, state: StateDb) -> None:
        self._state = state
        self._base = state.counters()
        self._kept = dict.fromkeys((INFERRED, DROPPED, GIVEN_UP), 0)
        self._live = dict.fromkeys((INFERRED, DROPPED, GIVEN_UP), 0)
        self._counted = dict.fromkeys((BYTES, DELTA, FULL, SAVED), 0)
        self._counting = threading.Lock()
        self._keeping = threading.Lock()  # the last call, at a clean end, may meet one whose waiter was cancelled
        self._ahead = 0  # frames that were counted by their rows at the start, and are not kept yet
        self._seen: tuple[dict[str, int], Mark] | None = None

    def last_mark(self, epoch: str) -> Mark | None:
        """How far the outbox was when the frames' counts were last kept; None when that is not known. Blocking.

        Args:
            epoch: Of the outbox now: of a machine that never counted a frame, all of it is meant.
        """
        found = self._state.get(MARK)
        if found is None:
            return None if INFERRED in self._base else Mark(epoch=epoch, next_seqs=dict.fromkeys(LANES, 0))
        return _read(found)

    def kept_mark(self) -> Mark | None:
        """The outbox's mark as it was last kept; None when there is none. Blocking."""
        found = self._state.get(MARK)
        return None if found is None else _read(found)

    def catch_up(self, rows: Iterable[bytes]) -> None:
        """Counts the frames whose rows outlived a cut that their count did not. Before the first `saw`."""
        self._base[INFERRED] = self._base.get(INFERRED, 0) + (missed := _frames(rows))
        self._ahead = missed

    def received(self, count: int) -> None:
        """Counts bytes that came over the air; durable at once, as they cost money. Blocking."""
        self.count({BYTES: count}, {})

    def count(self, more: Mapping[str, int], facts: Mapping[str, bytes]) -> None:
        """Counts bytes by name, together with what is to be kept of them; durable at once. Blocking."""
        with self._counting:
            self._state.count_all(more, facts)
            for name, count in more.items():
                self._counted[name] += count

    def saw(
        self, frames_inferred: int, frames_dropped: int, frames_unkept: int, mark: Mark, results_given_up: int = 0
    ) -> None:
        """Takes the pump's counts since this process began, and the outbox's mark at the same moment."""
        self._live = {INFERRED: frames_inferred, DROPPED: frames_dropped, GIVEN_UP: results_given_up}
        self._seen = {**self._live, INFERRED: self._ahead + frames_inferred - frames_unkept}, mark

    def keep(self) -> None:
        """Makes the frames' counts durable. A cut loses those since the last call whose rows do not tell of them."""
        with self._keeping:
            if self._seen is None:
                return
            counts, mark = self._seen
            more = {name: count - self._kept[name] for name, count in counts.items() if count != self._kept[name]}
            if more:
                self._state.count_all(more, {MARK: encode(mark)})
                self._kept = counts

    def now(self, results_produced: int) -> Counters:
        """The totals at this moment."""
        total = {name: self._base.get(name, 0) + count for name, count in self._counted.items()}
        return Counters(
            bytes_received=total[BYTES],
            delta_bytes=total[DELTA],
            full_bytes=total[FULL],
            saved_bytes=total[SAVED],
            frames_inferred=self._base.get(INFERRED, 0) + self._live[INFERRED],
            frames_dropped=self._base.get(DROPPED, 0) + self._live[DROPPED],
            results_produced=results_produced,
            results_given_up=self._base.get(GIVEN_UP, 0) + self._live[GIVEN_UP],
        )


def _read(found: bytes) -> Mark | None:
    try:
        return decode(found, Mark, limit=limits.MIB)
    except Refused:
        return None


def _frames(rows: Iterable[bytes]) -> int:
    """How many frames these rows are of."""
    names = set()
    for row in rows:
        try:
            names.add(decode(row, ResultRow, limit=limits.ROW_BYTES).frame)
        except Refused:  # of another kind, which no frame made
            continue
    return len(names)
