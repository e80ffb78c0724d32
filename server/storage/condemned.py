"""Blobs that may go. One is condemned before it is written, too, and spared once something names it: what a kill left
in between is collected like the rest."""

from collections.abc import Collection, Iterator

from sqlalchemy import Connection, delete, insert, or_, select, union_all, update

from server.storage.schema import blobs, compressed, condemned, patches, release_artifacts, releases


class Condemned:
    """Digests, each with the moment from which it may go."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, digests: Collection[str], after_ms: int) -> None:
        """Condemns blobs; of two moments the later one holds."""
        for each in dict.fromkeys(digests):
            row = self._connection.execute(
                select(condemned.c.after_ms).where(condemned.c.sha256 == each).with_for_update()
            ).one_or_none()
            if row is None:
                self._connection.execute(insert(condemned).values(sha256=each, after_ms=after_ms))
            elif row.after_ms < after_ms:
                self._connection.execute(update(condemned).where(condemned.c.sha256 == each).values(after_ms=after_ms))

    def spare(self, digests: Collection[str]) -> None:
        """Takes blobs off the list."""
        if digests:
            self._connection.execute(delete(condemned).where(condemned.c.sha256.in_(list(digests))))

    def due(self, now_ms: int, limit: int) -> Iterator[str]:
        """Blobs to delete now, locked until the `write` ends: whoever wants one of them again waits, and then writes
        it anew. What something names after all is spared. A caller deletes the bytes before it takes the next one."""
        rows = self._connection.execute(
            select(condemned.c.sha256)
            .where(condemned.c.after_ms <= now_ms)
            .order_by(condemned.c.after_ms)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).scalars()
        for each in list(rows):
            if not self._named(each):
                yield each
                self._connection.execute(delete(blobs).where(blobs.c.sha256 == each))
            self.spare([each])

    def _named(self, digest: str) -> bool:
        where = union_all(
            select(patches.c.id).where(or_(patches.c.payload == digest, patches.c.index == digest)),
            select(compressed.c.artifact).where(
                or_(compressed.c.artifact == digest, compressed.c.payload == digest, compressed.c.index == digest)
            ),
            select(release_artifacts.c.artifact).where(release_artifacts.c.artifact == digest),
            select(releases.c.manifest).where(releases.c.manifest == digest),
        )
        return self._connection.execute(where.limit(1)).first() is not None
