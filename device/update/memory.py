"""What the update machine remembers besides its record: terms, what was delisted, the assignment, floors, refusals."""

import logging
from typing import Final, TypeVar

from device.state_db import StateDb
from device.trust.port import Terms
from device.update.rules import Floor
from device.update.states import Held
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Digest, Millis
from protocol.objects import AssignmentBody, TransferPlan
from protocol.wire import decode, encode

ASSIGNMENT: Final = "update/assignment"  # of the record's offer, with its plan
TERMS: Final = "update/terms"
DELISTED: Final = "update/delisted"
ERA: Final = "update/era"
PERMIT: Final = "update/permit"  # when the newest one was made that was used up; older ones are used up with it
DELISTED_KEPT: Final = 1000  # a product of a release a day for three years

T = TypeVar("T")

log = logging.getLogger(__name__)


class Memory:
    """Facts of the update in `state.db`. Blocking.

    Args:
        db: The database.
    """

    def __init__(self, db: StateDb) -> None:
        self._db = db

    def terms(self) -> Terms | None:
        """The newest that were learnt."""
        return self._read(TERMS, Terms)

    def learn(self, terms: Terms) -> None:
        """Keeps newer terms, and what they list no longer."""
        known = self.terms()
        if known == terms or (known is not None and terms.are_older_than(known)):
            return
        facts = {TERMS: encode(terms)}
        gone = [name for name in (known.listed if known is not None else {}) if name not in terms.listed]
        if gone:
            before = self.delisted()
            facts[DELISTED] = encode([*before, *(name for name in gone if name not in before)][-DELISTED_KEPT:])
        self._db.tell((), facts)

    def delisted(self) -> list[Digest]:
        """What an older role listed and a newer one did not."""
        return self._read(DELISTED, list[str]) or []

    def assignment(self) -> AssignmentBody | None:
        """The one that the record's offer came from, with the newest plan for it."""
        return self._read(ASSIGNMENT, AssignmentBody)

    def renew_plan(self, assignment: AssignmentBody) -> tuple[bool, bool]:
        """The next attempt goes by this one's plan and budget.

        Returns:
            Whether it differs at all, and whether a fetch that runs would do something else by it.
        """
        renewed = encode(assignment)
        if renewed == self._db.get(ASSIGNMENT):
            return False, False
        before = self.assignment()
        self._db.put(ASSIGNMENT, renewed)
        same = before is not None and before.budget == assignment.budget and _goes_on(before.plan, assignment.plan)
        return True, not same

    def refused(self) -> dict[Digest, str]:
        """Why, by the digest of each manifest that was refused on evidence."""
        return {refusal.manifest: f"{refusal.reason}: {refusal.detail}" for refusal in self._db.refusals()}

    def is_recovering(self) -> bool:
        """Whether what this machine had committed is still to be heard: see `device.recovery`."""
        return self._db.is_recovering

    def is_partial(self) -> bool:
        """Whether files may be of releases that the record here does not know."""
        return self._db.is_in_memory or self._db.is_recovering

    def floor(self) -> Floor:
        """The committed floor."""
        era = self._db.floor(ERA)
        return Floor(era=era, counter=self._db.floor(_counter(era)), permit_ms=self._db.floor(PERMIT))

    def _read(self, key: str, kind: type[T]) -> T | None:
        """A fact, or None: another version of the agent may have written it otherwise. Contacts bring it anew."""
        found = self._db.get(key)
        try:
            return None if found is None else decode(found, kind, limit=limits.ANSWER_BYTES)
        except Refused as refused:
            log.warning("%s is forgotten: %s", key, refused.message)
            return None


def floors_of(release: Held, permit_ms: Millis = 0) -> dict[str, int]:
    """The floors that rise when `release` is committed. Each era has its own counter, so that none ever falls.

    Args:
        release: Committed.
        permit_ms: When the permit was made by which it was installed, which is used up with that; 0: it needed none.
    """
    permit = {PERMIT: permit_ms} if permit_ms else {}
    return {ERA: release.era, _counter(release.era): release.release_counter} | permit


def _goes_on(before: TransferPlan, after: TransferPlan) -> bool:
    """Whether a fetch does the same by both. What has come meanwhile need not come by the newer one: no difference."""
    steps = {step.artifact: step for step in before.steps}
    return all(step.method == "have" or steps.get(step.artifact) == step for step in after.steps)


def _counter(era: int) -> str:
    return f"update/counter/{era}"
