"""What machines hold of what releases name: from it follows which patches are worth making, and for how many."""

from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select, tuple_

from server.storage.facts import Facts
from server.storage.records import Likeness
from server.storage.schema import compressed, devices, holdings, release_artifacts, releases

CHANGES: Final = "fleet_changes"
SURVEYED: Final = "fleet_surveyed"


class Fleet:
    """Parts of releases (`model/variant`, ...) and the machines that hold the artifacts behind them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def changed(self) -> None:
        """Notes that what is worth making may have changed."""
        facts = Facts(self._connection)
        facts.put(CHANGES, facts.number(CHANGES) + 1)

    def lock(self) -> None:
        """Held until the `write` ends: one at a time may decide what is worth making."""
        Facts(self._connection).number(CHANGES)

    def changes(self) -> str:
        """Another text after each change."""
        return Facts(self._connection).get(CHANGES) or ""

    def surveyed(self, changes: str) -> None:
        """Notes that what is worth making was decided after this change."""
        Facts(self._connection).put(SURVEYED, changes)

    def is_surveyed(self) -> bool:
        """Whether nothing changed since."""
        return Facts(self._connection).get(SURVEYED) == self.changes()

    def note_release(self, product: str, manifest: str, parts: Mapping[str, str]) -> None:
        """Keeps which artifact a release has for each part. A second time changes nothing."""
        if not parts or self.parts(product, [manifest]):
            return
        self._connection.execute(
            insert(release_artifacts),
            [
                {"product": product, "manifest": manifest, "part": part, "artifact": artifact}
                for part, artifact in parts.items()
            ],
        )
        self.changed()

    def unnoted(self) -> list[tuple[str, str]]:
        """Product and manifest of listed releases whose parts were never noted: they are older than this table."""
        noted = select(release_artifacts.c.manifest).where(release_artifacts.c.product == releases.c.product)
        rows = self._connection.execute(
            select(releases.c.product, releases.c.manifest).where(releases.c.listed, releases.c.manifest.not_in(noted))
        )
        return [(row.product, row.manifest) for row in rows]

    def parts(self, product: str, manifests: Collection[str]) -> dict[str, dict[str, str]]:
        """Artifact by part, by manifest."""
        found: dict[str, dict[str, str]] = {}
        for row in self._connection.execute(
            select(release_artifacts).where(
                release_artifacts.c.product == product, release_artifacts.c.manifest.in_(list(manifests))
            )
        ):
            found.setdefault(row.manifest, {})[row.part] = row.artifact
        return found

    def held(self, device: str) -> set[str]:
        """What a machine holds of what releases name, as it said last."""
        return set(self._connection.execute(select(holdings.c.artifact).where(holdings.c.device == device)).scalars())

    def hold(self, device: str, digests: Collection[str]) -> None:
        """Replaces what a machine holds. What no release of ours names is left out."""
        known = set(
            self._connection.execute(
                select(release_artifacts.c.artifact).where(release_artifacts.c.artifact.in_(list(digests))).distinct()
            ).scalars()
        )
        before = self.held(device)
        if known == before:
            return
        if gone := before - known:
            self._connection.execute(
                delete(holdings).where(holdings.c.device == device, holdings.c.artifact.in_(sorted(gone)))
            )
        if fresh := known - before:
            self._connection.execute(
                insert(holdings), [{"device": device, "artifact": artifact} for artifact in sorted(fresh)]
            )
        self.changed()

    def alike(self, targets: Collection[tuple[str, str]], at_least_bytes: int) -> list[Likeness]:
        """Bases and results of which a patch would serve somebody: some release has the base for the same part.

        Only results whose compressed price is known, and is at least `at_least_bytes`.

        Args:
            targets: (product, manifest) of the releases that machines are to get.
            at_least_bytes: Less is not worth a patch.
        """
        if not targets:
            return []
        new, old, has = release_artifacts.alias("new"), release_artifacts.alias("old"), holdings.alias("has")
        holds_result = (
            select(holdings.c.device)
            .where(holdings.c.device == has.c.device, holdings.c.artifact == new.c.artifact)
            .exists()
        )
        kept = release_artifacts.alias("kept")
        goes_on = (
            select(kept.c.part)
            .where(
                kept.c.product == new.c.product,
                kept.c.manifest == new.c.manifest,
                kept.c.artifact == old.c.artifact,
            )
            .exists()
        )
        found = (old.c.manifest, new.c.manifest, new.c.part, old.c.artifact, new.c.artifact)
        rows = self._connection.execute(
            select(*found, goes_on, func.count(has.c.device.distinct()))
            .select_from(new)
            .join(compressed, compressed.c.artifact == new.c.artifact)
            .join(
                old,
                (old.c.product == new.c.product) & (old.c.part == new.c.part) & (old.c.artifact != new.c.artifact),
            )
            .join(has, has.c.artifact == old.c.artifact)
            .join(devices, (devices.c.id == has.c.device) & (devices.c.product == new.c.product))
            .where(
                tuple_(new.c.product, new.c.manifest).in_(sorted(targets)),
                compressed.c.payload_bytes + compressed.c.index_bytes >= at_least_bytes,
                devices.c.revoked_ms.is_(None),
                ~holds_result,
            )
            .group_by(new.c.product, *found)
        )
        return [
            Likeness(old_manifest, manifest, part, base, result, goes_on, count)
            for old_manifest, manifest, part, base, result, goes_on, count in rows
        ]
