"""Running totals since enrolment: what this process counted on top of what `state.db` keeps."""

from collections.abc import Iterable
from typing import Final

from device.outbox.box import Mark
from device.state_db import StateDb
from protocol import limits
from protocol.errors import Refused
from protocol.messages import Counters
from protocol.results import LANES, ResultRow
from protocol.wire import decode, encode

BYTES: Final = "bytes_received"
INFERRED: Final = "frames_inferred"
DROPPED: Final = "frames_dropped"
MARK: Final = "totals/mark"  # how far the outbox was when the frames' counts were kept


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
        try:
            return decode(found, Mark, limit=limits.MIB)
        except Refused:
            return None

    def catch_up(self, rows: Iterable[bytes]) -> None:
        """Counts the frames whose rows outlived a cut that their count did not. Before the first `saw`."""
        self._base[INFERRED] = self._base.get(INFERRED, 0) + (missed := _frames(rows))
        self._ahead = missed

    def received(self, count: int) -> None:
        """Counts bytes that came over the air; durable at once, as they cost money. Blocking."""
        self._state.count(BYTES, count)
        self._received += count

    def saw(self, frames_inferred: int, frames_dropped: int, frames_unkept: int, mark: Mark) -> None:
        """Takes the pump's counts since this process began, and the outbox's mark at the same moment."""
        self._live = {INFERRED: frames_inferred, DROPPED: frames_dropped}
        self._seen = {INFERRED: self._ahead + frames_inferred - frames_unkept, DROPPED: frames_dropped}, mark

    def keep(self) -> None:
        """Makes the frames' counts durable. A cut loses those since the last call whose rows do not tell of them."""
        if self._seen is None:
            return
        counts, mark = self._seen
        more = {name: count - self._kept[name] for name, count in counts.items() if count != self._kept[name]}
        if more:
            self._state.count_all(more, {MARK: encode(mark)})
            self._kept = counts

    def now(self, results_produced: int) -> Counters:
        """The totals at this moment."""
        return Counters(
            bytes_received=self._base.get(BYTES, 0) + self._received,
            frames_inferred=self._base.get(INFERRED, 0) + self._live[INFERRED],
            frames_dropped=self._base.get(DROPPED, 0) + self._live[DROPPED],
            results_produced=results_produced,
        )


def _frames(rows: Iterable[bytes]) -> int:
    """How many frames these rows are of."""
    names = set()
    for row in rows:
        try:
            names.add(decode(row, ResultRow, limit=limits.ROW_BYTES).frame)
        except Refused:  # of another kind, which no frame made
            continue
    return len(names)
