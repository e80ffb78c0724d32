"""Blobs that came in, and the payloads made of them."""

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, delete, func, insert, select

from server.storage.jobs import COMPRESS, PATCH, Jobs
from server.storage.records import Compressed
from server.storage.schema import blobs, compressed, jobs, patch_failures, patches, release_artifacts, releases


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

    def forget_blob(self, sha256: str) -> None:
        """Notes that a blob is no longer in the store."""
        self._connection.execute(delete(blobs).where(blobs.c.sha256 == sha256))

    def lose(self, digests: Collection[str], at_ms: int) -> None:
        """Notes that blobs are gone for good, and all that was made of them or needs them: a release that misses one is
        no longer known, and comes back with its blobs, when it is pushed again; a payload is made again.
        """
        gone = list(digests)
        for some in (gone[first : first + 500] for first in range(0, len(gone), 500)):
            self._connection.execute(delete(blobs).where(blobs.c.sha256.in_(some)))
            broken = compressed.c.artifact.in_(some) | compressed.c.payload.in_(some) | compressed.c.index.in_(some)
            again = set(self._connection.execute(select(compressed.c.artifact).where(broken)).scalars()) - set(gone)
            self._connection.execute(delete(compressed).where(broken))
            self.want(again, at_ms)
            useless = select(patches.c.id).where(
                patches.c.payload.in_(some)
                | patches.c.index.in_(some)
                | patches.c.base.in_(some)
                | patches.c.result.in_(some)
            )
            self._connection.execute(delete(patch_failures).where(patch_failures.c.patch.in_(useless)))
            self._connection.execute(delete(jobs).where(jobs.c.kind == PATCH, jobs.c.subject.in_(useless)))
            self._connection.execute(delete(jobs).where(jobs.c.kind == COMPRESS, jobs.c.subject.in_(some)))
            self._connection.execute(delete(patches).where(patches.c.id.in_(useless)))
            needing = select(release_artifacts.c.manifest).where(release_artifacts.c.artifact.in_(some))
            lost = list(
                self._connection.execute(
                    select(releases.c.manifest).where(releases.c.manifest.in_(some) | releases.c.manifest.in_(needing))
                ).scalars()
            )
            self._connection.execute(delete(release_artifacts).where(release_artifacts.c.manifest.in_(lost)))
            self._connection.execute(delete(releases).where(releases.c.manifest.in_(lost)))

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
        Jobs(self._connection).done(COMPRESS, made.artifact)

    def want(self, artifacts: Iterable[str], at_ms: int) -> None:
        """Adds a job for each artifact that has neither payload nor job."""
        wanted = list(dict.fromkeys(artifacts))
        ready = self.get(wanted)
        Jobs(self._connection).want(COMPRESS, {each: 0 for each in wanted if each not in ready}, at_ms)
