"""What the server is told of an update: each step once, each end once, and a wait when its cause changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from device.state_db import StateDb
from device.update.rules import Later
from device.update.states import Event, State, UpdateRecord
from device.update.steps import DAMAGE
from protocol.errors import Reason, Refused
from protocol.ids import Digest, Millis, Token
from protocol.messages import Outcome, TransferBytes, UpdateStatus, VersionReport
from protocol.objects import AssignmentBody

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
        return (self._status(word, at_ms, offer.forced),)

    def of_force(self, record: UpdateRecord, at_ms: Millis) -> tuple[UpdateStatus, ...]:
        """The status for the transaction in which a technician's request forces the record's offer."""
        offer = record.offer
        assert offer is not None
        return (self._status(Word(offer.release.digest, offer.rollout, record.state), at_ms, offer.forced),)

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

    def _status(self, word: Word, at_ms: Millis, forced: Token | None = None) -> UpdateStatus:
        transfer = self._transfer(word.manifest)
        by = f"forced by request {forced}" if forced is not None else ""
        return UpdateStatus(
            id=self._new_id(),
            manifest=word.manifest,
            rollout=word.rollout,
            state=str(word.state),
            at_ms=at_ms,
            outcome=word.outcome,
            reason=word.reason,
            detail="; ".join(part for part in (word.detail[: DETAIL - len(by) - 2], by) if part),
            transfer=transfer if transfer != TransferBytes() else None,
            needs_bytes=word.needs_bytes,
        )


def word_of(verdict: Later | Refused, assignment: AssignmentBody, record: UpdateRecord) -> Word | None:
    """The word about an offer that is not taken up; None when the server heard it at the end of the last update."""
    name, rollout = assignment.manifest.sha256, assignment.rollout
    if isinstance(verdict, Later):
        return Word(name, rollout, record.state, "deferred", None, verdict.why)
    if is_told(record, name, rollout, verdict.reason):
        return None
    outcome: Outcome = "deferred" if verdict.reason in DAMAGE else "refused"
    return Word(name, rollout, record.state, outcome, verdict.reason, verdict.message)


def report_of(record: UpdateRecord, *, is_damaged: bool, spent: Callable[[Digest], TransferBytes]) -> VersionReport:
    """What the server is told runs.

    Args:
        record: As it is stored.
        is_damaged: The committed release does not serve: it is not named.
        spent: What a release took over the air.
    """
    committed = record.committed if not is_damaged else None
    transfer = spent(committed.digest) if committed is not None else TransferBytes()
    return VersionReport(
        manifest=committed.digest if committed is not None else None,
        release=committed.version if committed is not None else "",
        trial=record.active if record.state is State.TRIAL else None,
        state=str(record.state),
        transfer=transfer if transfer != TransferBytes() else None,
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
