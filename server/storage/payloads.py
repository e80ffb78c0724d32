"""Blobs that came in, the payloads made of them, and the work that waits: claimed for a while, so that another
process takes it over when one dies."""

from collections.abc import Iterable

from sqlalchemy import Connection, delete, func, insert, select, update

from server.storage.records import Compressed
from server.storage.schema import blobs, compressed, jobs

COMPRESS = "compress"
LONGEST_WAIT_S = 3600  # after many failures a job is tried once an hour


class Payloads:
    """The catalog's side of blobs; their bytes lie in the blob store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add_blob(self, sha256: str, length_bytes: int, at_ms: int) -> None:
        """Notes that a blob is in the store."""
        if self.blob_bytes(sha256) is None:
            self._connection.execute(insert(blobs).values(sha256=sha256, length_bytes=length_bytes, added_ms=at_ms))

    def blob_bytes(self, sha256: str) -> int | None:
        """The length of a blob that was noted, or None."""
        return self._connection.execute(
            select(blobs.c.length_bytes).where(blobs.c.sha256 == sha256)
        ).scalar_one_or_none()

    def blob_count(self) -> tuple[int, int]:
        """How many blobs there are, and their bytes."""
        count, total = self._connection.execute(
            select(func.count(), func.coalesce(func.sum(blobs.c.length_bytes), 0)).select_from(blobs)
        ).one()
        return count, int(total)

    def get(self, artifacts: Iterable[str]) -> dict[str, Compressed]:
        """The payloads that are ready, by artifact."""
        rows = self._connection.execute(select(compressed).where(compressed.c.artifact.in_(list(artifacts))))
        return {row.artifact: Compressed(**row._mapping) for row in rows}

    def put(self, made: Compressed) -> None:
        """Keeps a payload that is in the blob store, and ends the job that made it."""
        if not self.get([made.artifact]):
            self._connection.execute(
                insert(compressed).values(
                    artifact=made.artifact,
                    length_bytes=made.length_bytes,
                    payload=made.payload,
                    payload_bytes=made.payload_bytes,
                    index=made.index,
                    index_bytes=made.index_bytes,
                )
            )
        self._connection.execute(delete(jobs).where(jobs.c.kind == COMPRESS, jobs.c.subject == made.artifact))

    def want(self, artifacts: Iterable[str], at_ms: int) -> None:
        """Adds a job for each artifact that has neither payload nor job."""
        wanted = list(dict.fromkeys(artifacts))
        known = set(self.get(wanted))
        known |= set(
            self._connection.execute(
                select(jobs.c.subject).where(jobs.c.kind == COMPRESS, jobs.c.subject.in_(wanted))
            ).scalars()
        )
        fresh = [artifact for artifact in wanted if artifact not in known]
        if fresh:
            self._connection.execute(
                insert(jobs),
                [{"kind": COMPRESS, "subject": artifact, "created_ms": at_ms} for artifact in fresh],
            )

    def claim(self, now_ms: int, lease_ms: int) -> str | None:
        """Takes the oldest job that nobody holds, for `lease_ms`. Returns its artifact, or None."""
        row = self._connection.execute(
            select(jobs.c.subject, jobs.c.tries)
            .where(jobs.c.kind == COMPRESS, jobs.c.claimed_until_ms <= now_ms)
            .order_by(jobs.c.tries, jobs.c.created_ms, jobs.c.subject)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if row is None:
            return None
        self._connection.execute(
            update(jobs)
            .where(jobs.c.kind == COMPRESS, jobs.c.subject == row.subject)
            .values(claimed_until_ms=now_ms + lease_ms, tries=row.tries + 1)
        )
        return str(row.subject)

    def renew(self, artifact: str, now_ms: int, lease_ms: int) -> None:
        """Holds a claimed job for `lease_ms` from now on."""
        self._connection.execute(
            update(jobs)
            .where(jobs.c.kind == COMPRESS, jobs.c.subject == artifact)
            .values(claimed_until_ms=now_ms + lease_ms)
        )

    def fail(self, artifact: str, error: str, now_ms: int) -> None:
        """Puts a job off: twice as long after each failure."""
        tries = self._connection.execute(
            select(jobs.c.tries).where(jobs.c.kind == COMPRESS, jobs.c.subject == artifact)
        ).scalar_one_or_none()
        wait_s = min(LONGEST_WAIT_S, 2 ** min(tries or 1, 12))
        self._connection.execute(
            update(jobs)
            .where(jobs.c.kind == COMPRESS, jobs.c.subject == artifact)
            .values(claimed_until_ms=now_ms + wait_s * 1000, error=error[:1000])
        )

    def waiting(self) -> int:
        """How many jobs are not done."""
        return self._connection.execute(select(func.count()).select_from(jobs)).scalar_one()
