"""Work that waits: claimed for a while, so that another process takes it over when one dies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Update, delete, func, insert, select, update

from server.storage.schema import jobs

COMPRESS: Final = "compress"
PATCH: Final = "patch"
LONGEST_WAIT_S: Final = 3600  # after many failures a job is tried once an hour
FREED_TRIES: Final = 2
"""A job that was begun more often than this and never ended may be what ends the server: it waits out its lease."""


@dataclass(frozen=True)
class Claim:
    """A job that is ours for now. `tries` counts claims: by it a holder knows whether it is still its own."""

    kind: str
    subject: str
    tries: int


class Jobs:
    """Jobs of every kind. A subject has at most one of a kind."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def want(self, kind: str, subjects: Mapping[str, int], at_ms: int) -> None:
        """Adds a job for each subject that has none.

        Args:
            kind: `COMPRESS`, `PATCH`.
            subjects: With their weights: the heaviest is done first.
            at_ms: Now.
        """
        known = self.known(kind, subjects)
        fresh = [subject for subject in subjects if subject not in known]
        if fresh:
            self._connection.execute(
                insert(jobs),
                [{"kind": kind, "subject": each, "created_ms": at_ms, "weight": subjects[each]} for each in fresh],
            )

    def known(self, kind: str, subjects: Iterable[str]) -> dict[str, int]:
        """Those of `subjects` that have a job, with its weight."""
        rows = self._connection.execute(
            select(jobs.c.subject, jobs.c.weight).where(jobs.c.kind == kind, jobs.c.subject.in_(list(subjects)))
        )
        return {row.subject: row.weight for row in rows}

    def weigh(self, kind: str, subject: str, weight: int) -> None:
        """Changes how soon a job is done."""
        self._connection.execute(
            update(jobs).where(jobs.c.kind == kind, jobs.c.subject == subject).values(weight=weight)
        )

    def claim(self, kind: str, now_ms: int, lease_ms: int) -> Claim | None:
        """Takes a job that nobody holds, for `lease_ms`: the least tried, then the heaviest, then the oldest.

        No wait is longer than `LONGEST_WAIT_S`: one that seems so was begun under a clock that was ahead.
        """
        until = jobs.c.claimed_until_ms
        row = self._connection.execute(
            select(jobs.c.subject, jobs.c.tries)
            .where(jobs.c.kind == kind, (until <= now_ms) | (until > now_ms + LONGEST_WAIT_S * 1000))
            .order_by(jobs.c.tries, jobs.c.weight.desc(), jobs.c.created_ms, jobs.c.subject)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if row is None:
            return None
        self._connection.execute(
            update(jobs)
            .where(jobs.c.kind == kind, jobs.c.subject == row.subject)
            .values(claimed_until_ms=now_ms + lease_ms, tries=row.tries + 1)
        )
        return Claim(kind, str(row.subject), row.tries + 1)

    def free(self) -> int:
        """Ends all waits of jobs that were tried no more than `FREED_TRIES` times. Returns how many there were.

        For who knows that nobody else works on this catalog: whoever held them is dead.
        """
        waiting = update(jobs).where(jobs.c.claimed_until_ms > 0, jobs.c.tries <= FREED_TRIES)
        return self._connection.execute(waiting.values(claimed_until_ms=0)).rowcount

    def renew(self, claim: Claim, now_ms: int, lease_ms: int) -> bool:
        """Holds a job for `lease_ms` from now on. False: somebody else took it, or nobody wants it any more."""
        changed = self._connection.execute(self._held(claim).values(claimed_until_ms=now_ms + lease_ms))
        return bool(changed.rowcount)

    def release(self, claim: Claim, until_ms: int = 0) -> None:
        """Gives a job back as it was, for who asks after `until_ms`: the try does not count."""
        self._connection.execute(self._held(claim).values(claimed_until_ms=until_ms, tries=claim.tries - 1))

    def fail(self, claim: Claim, error: str, now_ms: int) -> None:
        """Puts a job off: twice as long after each failure."""
        wait_s = min(LONGEST_WAIT_S, 2 ** min(claim.tries, 12))
        self._connection.execute(self._held(claim).values(claimed_until_ms=now_ms + wait_s * 1000, error=error[:1000]))

    def done(self, kind: str, subject: str) -> None:
        """Takes a job off the list."""
        self._connection.execute(delete(jobs).where(jobs.c.kind == kind, jobs.c.subject == subject))

    def drop_unclaimed(self, kind: str, subjects: Iterable[str], now_ms: int) -> list[str]:
        """Takes jobs off the list that nobody is at. Returns those."""
        rows = self._connection.execute(
            select(jobs.c.subject)
            .where(jobs.c.kind == kind, jobs.c.subject.in_(list(subjects)), jobs.c.claimed_until_ms <= now_ms)
            .with_for_update(skip_locked=True)
        ).scalars()
        gone = list(rows)
        for each in gone:
            self.done(kind, each)
        return gone

    def waiting(self, kind: str) -> int:
        """How many jobs are not done."""
        query = select(func.count()).select_from(jobs).where(jobs.c.kind == kind)
        return self._connection.execute(query).scalar_one()

    def _held(self, claim: Claim) -> Update:
        return update(jobs).where(
            jobs.c.kind == claim.kind, jobs.c.subject == claim.subject, jobs.c.tries == claim.tries
        )
