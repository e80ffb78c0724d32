"""Patches by (base, result, codec version): wanted, made, kept or only measured; the machines that they failed on."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from protocol.ids import Digest
from protocol.messages import FailedPatch
from server.storage.condemned import Condemned
from server.storage.jobs import PATCH, Claim, Jobs
from server.storage.records import Pair, Patch, PatchFailure
from server.storage.schema import patch_failures, patches

HOUR_MS = 3_600_000  # how exactly it is known when a patch was last wanted, or named: saves writing at each contact


class Patches:
    """The cache of patches. Their bytes lie in the blob store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def want(self, pairs: Mapping[Pair, int], at_ms: int) -> None:
        """Makes `pairs`, with the machines that each would serve, what is worth making now.

        What was made already is not made again. What waits and is no longer wanted is dropped, unless somebody is at
        it.
        """
        by_id = {pair.id: pair for pair in pairs}
        rows = self._connection.execute(select(patches.c.id, patches.c.made_ms, patches.c.wanted_ms)).all()
        known = {row.id: row for row in rows}
        fresh = [pair for key, pair in by_id.items() if key not in known]
        if fresh:
            self._connection.execute(
                insert(patches),
                [
                    {"id": pair.id, "base": pair.base, "result": pair.result, "codec": pair.codec, "wanted_ms": at_ms}
                    for pair in fresh
                ],
            )
        stale = [key for key in by_id if key in known and not 0 <= at_ms - known[key].wanted_ms < HOUR_MS]
        if stale:
            self._connection.execute(update(patches).where(patches.c.id.in_(stale)).values(wanted_ms=at_ms))
        # Locked, for who finishes one at this moment takes its job off the list: it must not come back.
        waiting = set(
            self._connection.execute(
                select(patches.c.id).where(patches.c.id.in_(list(by_id)), patches.c.made_ms.is_(None)).with_for_update()
            ).scalars()
        )
        jobs = Jobs(self._connection)
        weights = {key: pairs[by_id[key]] for key in waiting}
        for key, weight in jobs.known(PATCH, waiting).items():
            if weight != weights[key]:
                jobs.weigh(PATCH, key, weights[key])
        jobs.want(PATCH, weights, at_ms)
        given_up = [key for key, row in known.items() if key not in by_id and row.made_ms is None]
        for key in jobs.drop_unclaimed(PATCH, given_up, at_ms):
            self._connection.execute(delete(patches).where(patches.c.id == key))

    def get(self, key: Digest) -> Patch | None:
        """One, made or not."""
        row = self._connection.execute(select(patches).where(patches.c.id == key)).one_or_none()
        return None if row is None else _patch(row)

    def unmade(self, key: Digest) -> Patch | None:
        """One that is to be made; None when that was done, or nobody wants it any more."""
        row = self._connection.execute(
            select(patches).where(patches.c.id == key, patches.c.made_ms.is_(None))
        ).one_or_none()
        return None if row is None else _patch(row)

    def ready(self, results: Collection[str]) -> list[Patch]:
        """Those that can be offered for these artifacts."""
        rows = self._connection.execute(
            select(patches).where(patches.c.result.in_(list(results)), patches.c.payload.is_not(None))
        )
        return [_patch(row) for row in rows]

    def for_results(self, results: Collection[str]) -> tuple[list[Patch], int]:
        """Those that can be offered for these artifacts, and how many more are being made."""
        waiting = self._connection.execute(
            select(func.count())
            .select_from(patches)
            .where(patches.c.result.in_(list(results)), patches.c.made_ms.is_(None))
        ).scalar_one()
        return self.ready(results), waiting

    def put(self, patch: Patch, at_ms: int) -> bool:
        """Keeps what was made and ends its job. Its blobs are in the store, or it has no payload.

        Returns:
            False: somebody else had finished it, or nobody wants it any more; nothing was changed.
        """
        changed = self._connection.execute(
            update(patches)
            .where(patches.c.id == patch.pair.id, patches.c.made_ms.is_(None))
            .values(
                made_ms=at_ms,
                made=patches.c.made + 1,
                payload=patch.payload,
                payload_bytes=patch.payload_bytes,
                index=patch.index,
                index_bytes=patch.index_bytes,
                why=patch.why,
            )
        )
        if not changed.rowcount:
            return False
        Jobs(self._connection).done(PATCH, patch.pair.id)
        if patch.payload is not None:
            Condemned(self._connection).spare(_blobs(patch))
        return True

    def give_up(self, claim: Claim, why: str, at_ms: int) -> None:
        """Ends a job that cannot be done: nothing is offered, and it is not tried again."""
        self._connection.execute(update(patches).where(patches.c.id == claim.subject).values(made_ms=at_ms, why=why))
        Jobs(self._connection).done(PATCH, claim.subject)

    def withdraw(self, patch: Patch, why: str, at_ms: int, *, again: int | None) -> None:
        """Offers a patch to nobody any more. Its blobs go when no assignment that names it can be current.

        Args:
            patch: As it is kept.
            why: For people.
            at_ms: Now.
            again: The weight of a job that makes it anew; None: it is given up.
        """
        self._connection.execute(
            update(patches)
            .where(patches.c.id == patch.pair.id)
            .values(payload=None, index=None, why=why, made_ms=at_ms if again is None else None)
        )
        Condemned(self._connection).add(_blobs(patch), max(patch.named_until_ms, at_ms))
        if again is not None:
            Jobs(self._connection).want(PATCH, {patch.pair.id: again}, at_ms)

    def name(self, keys: Collection[Digest], until_ms: int) -> None:
        """Notes that an assignment which is good until then names these."""
        if keys:
            self._connection.execute(
                update(patches)
                .where(patches.c.id.in_(list(keys)), patches.c.named_until_ms < until_ms)
                .values(named_until_ms=until_ms + HOUR_MS)
            )

    def fail(self, device: str, failed: FailedPatch, at_ms: int) -> Patch | None:
        """Notes that a patch gave no result on a machine.

        Returns:
            The patch as it is kept now, when this is news. None for what was told before, for what happened before a
            person lifted it, and for what was never ours: a machine cannot fill the catalog.
        """
        rows = self._connection.execute(
            select(patches).where(patches.c.base == failed.base, patches.c.result == failed.artifact).with_for_update()
        ).all()
        for row in rows:
            told = set(self._machines(row.id, failed.payload))
            if device in told or not (told or row.payload == failed.payload) or failed.lifted_ms < row.lifted_ms:
                continue
            self._connection.execute(
                insert(patch_failures).values(
                    device=device, patch=row.id, payload=failed.payload, reason=failed.reason.value, at_ms=at_ms
                )
            )
            return _patch(row)
        return None

    def failures(self, key: Digest, payload: Digest) -> int:
        """On how many machines these bytes gave no result."""
        return len(self._machines(key, payload))

    def failed_on(self, device: str) -> dict[tuple[Digest, Digest], str]:
        """What never to offer to a machine: patch and payload, with the reason."""
        rows = self._connection.execute(select(patch_failures).where(patch_failures.c.device == device))
        return {(row.patch, row.payload): row.reason for row in rows}

    def forgive(self, device: str, payloads: Collection[Digest] | None = None) -> int:
        """Forgets what failed on a machine: these payloads, or all. Returns how many may be offered to it again."""
        which = patch_failures.c.device == device
        if payloads is not None:
            which &= patch_failures.c.payload.in_(list(payloads))
        return self._connection.execute(delete(patch_failures).where(which)).rowcount

    def troubled(self, limit: int) -> dict[Patch, list[PatchFailure]]:
        """Patches that failed somewhere, or that are made and not offered; those that were wanted last come first."""
        failed = select(patch_failures.c.patch)
        withheld = patches.c.made_ms.is_not(None) & patches.c.payload.is_(None)
        rows = self._connection.execute(
            select(patches)
            .where(withheld | patches.c.id.in_(failed))
            .order_by(patches.c.wanted_ms.desc(), patches.c.id)
            .limit(limit)
        ).all()
        return {_patch(row): self.word_of(row.id) for row in rows}

    def word_of(self, key: Digest) -> list[PatchFailure]:
        """What machines told of a patch, oldest first."""
        rows = self._connection.execute(
            select(patch_failures)
            .where(patch_failures.c.patch == key)
            .order_by(patch_failures.c.at_ms, patch_failures.c.device)
        )
        return [PatchFailure(row.device, row.payload, row.reason, row.at_ms) for row in rows]

    def find(self, prefix: str) -> list[Patch]:
        """Patches whose id begins so; two are enough to say that it is not one."""
        query = select(patches).where(patches.c.id.startswith(prefix, autoescape=True)).limit(2).with_for_update()
        return [_patch(row) for row in self._connection.execute(query)]

    def lift(self, patch: Patch, at_ms: int) -> None:
        """Lets a patch be tried again: no machine's word counts any more, and one that is not offered is made anew.

        Args:
            patch: As it is kept.
            at_ms: Now. Machines that it failed on compare it with the lift that they know.
        """
        key = patch.pair.id
        machines = len({failure.device for failure in self.word_of(key)})
        self._connection.execute(delete(patch_failures).where(patch_failures.c.patch == key))
        values: dict[str, Any] = {"lifted_ms": max(at_ms, patch.lifted_ms + 1)}
        if patch.payload is None:
            values |= {"made_ms": None, "made": 0, "why": ""}
        self._connection.execute(update(patches).where(patches.c.id == key).values(**values))
        if patch.payload is None:
            Jobs(self._connection).want(PATCH, {key: max(machines, 1)}, at_ms)

    def prune(self, unwanted_since_ms: int, unmade_since_ms: int, now_ms: int) -> list[Patch]:
        """Forgets what nobody wanted since then and no current assignment names; its blobs may go at once.

        What could not be made is forgotten after `unmade_since_ms`, so that it is tried again: an artifact may have
        been damaged, and mended since.
        """
        useless = patches.c.wanted_ms < unwanted_since_ms
        never_made = (patches.c.payload_bytes == 0) & (patches.c.made_ms < unmade_since_ms)
        rows = self._connection.execute(
            select(patches)
            .where(
                useless | never_made,
                patches.c.made_ms.is_not(None),
                patches.c.named_until_ms < now_ms,
            )
            .with_for_update(skip_locked=True)
        )
        gone = [_patch(row) for row in rows]
        for patch in gone:
            self._connection.execute(delete(patch_failures).where(patch_failures.c.patch == patch.pair.id))
            self._connection.execute(delete(patches).where(patches.c.id == patch.pair.id))
            Condemned(self._connection).add(_blobs(patch), now_ms)
        return gone

    def count(self) -> dict[str, int]:
        """How many can be offered, their bytes, and how many are not made yet."""
        ready, size, waiting = self._connection.execute(
            select(
                func.count(patches.c.payload),
                func.coalesce(
                    func.sum(patches.c.payload_bytes + patches.c.index_bytes).filter(patches.c.payload.is_not(None)), 0
                ),
                func.count().filter(patches.c.made_ms.is_(None)),
            ).select_from(patches)
        ).one()
        return {"ready": ready, "bytes": int(size), "waiting": waiting}

    def _machines(self, key: Digest, payload: Digest) -> list[str]:
        return list(
            self._connection.execute(
                select(patch_failures.c.device).where(
                    patch_failures.c.patch == key, patch_failures.c.payload == payload
                )
            ).scalars()
        )


def _blobs(patch: Patch) -> list[str]:
    return [each for each in (patch.payload, patch.index) if each is not None]


def _patch(row: Row[Any]) -> Patch:
    values = row._mapping  # a row's own `index` is the method of a tuple
    return Patch(
        pair=Pair(values["base"], values["result"], values["codec"]),
        **{name: values[name] for name in Patch.__dataclass_fields__ if name != "pair"},
    )
