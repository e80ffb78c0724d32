"""Blobs that came in, and the payloads made of them."""

from collections.abc import Iterable

from sqlalchemy import Connection, delete, func, insert, select

from server.storage.jobs import COMPRESS, Jobs
from server.storage.records import Compressed
from server.storage.schema import blobs, compressed


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
