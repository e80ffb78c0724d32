"""What the server is told of an update: each step once, each end once, and a wait when its cause changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from device.state_db import StateDb
from device.update.states import Event, State, UpdateRecord
from protocol.errors import Reason
from protocol.ids import Digest, Millis
from protocol.messages import Outcome, TransferBytes, UpdateStatus

TOLD: Final = "update/told"  # the last thing said of an offer that was not taken up
DETAIL: Final = 2000
SILENT: Final = frozenset({Event.COMMITTED, Event.CLEAN, Event.WITHDRAWN})


@dataclass(frozen=True)
class Word:
    """A status that is still without id and time."""

    manifest: Digest
    rollout: str
    state: State
    outcome: Outcome | None = None
    reason: Reason | None = None
    detail: str = ""
    needs_bytes: int = 0

    def gist(self) -> str:
        """The same for two words that tell a person the same: details may hold numbers that change each time."""
        return f"{self.manifest} {self.rollout} {self.outcome} {self.reason or self.detail.partition(':')[0]}" + (
            f" {self.needs_bytes}" if self.needs_bytes else ""  # a price that changed is news
        )


class Teller:
    """Makes statuses of words.

    Args:
        db: Queues them.
        new_id: 128 fresh random bits in hexadecimal.
        transfer: What a release took over the air so far.
    """

    def __init__(self, db: StateDb, new_id: Callable[[], str], transfer: Callable[[Digest], TransferBytes]) -> None:
        self._db = db
        self._new_id = new_id
        self._transfer = transfer
        self._pause = ""

    def of_step(
        self,
        before: UpdateRecord,
        after: UpdateRecord,
        event: Event,
        at_ms: Millis,
        *,
        reason: Reason | None,
        detail: str,
        needs_bytes: int = 0,
    ) -> tuple[UpdateStatus, ...]:
        """The status for the transaction that records a step; nothing for what nobody needs to know."""
        offer = after.offer or before.offer
        if offer is None or event in SILENT:
            return ()
        word = _end_of(after, event, before.state) or Word(
            offer.release.digest,
            offer.rollout,
            after.state,
            "deferred" if event is Event.PAUSED else None,
            reason,
            detail,
            needs_bytes,
        )
        pause, self._pause = self._pause, word.gist() if event is Event.PAUSED else ""
        if pause and pause == self._pause:
            return ()
        return (self._status(word, at_ms),)

    def once(self, word: Word, at_ms: Millis) -> bool:
        """Queues a word about something that every contact repeats, if it was not the last one said. Blocking.

        Returns:
            Whether it was queued.
        """
        gist = word.gist().encode()
        if self._db.get(TOLD) == gist:
            return False
        self._db.tell([self._status(word, at_ms)], {TOLD: gist})
        return True

    def _status(self, word: Word, at_ms: Millis) -> UpdateStatus:
        transfer = self._transfer(word.manifest)
        return UpdateStatus(
            id=self._new_id(),
            manifest=word.manifest,
            rollout=word.rollout,
            state=str(word.state),
            at_ms=at_ms,
            outcome=word.outcome,
            reason=word.reason,
            detail=word.detail[:DETAIL],
            transfer=transfer if transfer != TransferBytes() else None,
            needs_bytes=word.needs_bytes,
        )


def is_told(record: UpdateRecord, manifest: Digest, rollout: str, reason: Reason) -> bool:
    """Whether the last update's end said the same, or is why the release is refused now."""
    last = record.last
    return (
        last is not None
        and (last.release.digest, last.rollout) == (manifest, rollout)
        and reason in (last.reason, Reason.REFUSED_BEFORE)
    )


def _end_of(after: UpdateRecord, event: Event, state: State) -> Word | None:
    """The word for the end of an update: of a trial that failed, once the committed release is back."""
    ends = event in (Event.HEALTHY, Event.REFUSED, Event.RESTORED) or (
        event in (Event.FORBIDDEN, Event.SPENT) and state is not State.TRIAL
    )
    if not ends or after.last is None:
        return None
    last = after.last
    told = after.state if event is Event.HEALTHY else state
    return Word(last.release.digest, last.rollout, told, last.outcome, last.reason, last.detail)
