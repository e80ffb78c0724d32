"""Signed metadata in the catalog: what managers signed (every version, exact bytes) and what is served of it now."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Row, bindparam, delete, func, insert, select, update

from server.storage.codec import pairs
from server.storage.records import Release, RepositoryKind
from server.storage.schema import releases, served_files, signed_metadata

_kept = signed_metadata.c
_OF: Final[BindParameter[str]] = bindparam("of")
# Built once: they are asked at each contact and each time that something is signed.
_ALL_SIGNED: Final = (
    select(_kept.version, _kept.content)
    .where(_kept.repository == _OF, _kept.role == bindparam("named"))
    .order_by(_kept.version)
)
_NEWEST_OF_ROLES: Final = (
    select(_kept.role, func.max(_kept.version).label("version"))
    .where(_kept.repository == _OF, _kept.role != "root")
    .group_by(_kept.role)
    .subquery()
)
_NEWEST_SIGNED: Final = (
    select(_kept.role, _kept.content)
    .join(_NEWEST_OF_ROLES, (_kept.role == _NEWEST_OF_ROLES.c.role) & (_kept.version == _NEWEST_OF_ROLES.c.version))
    .where(_kept.repository == _OF)
    .order_by(_kept.role)
)
_NEWEST: Final = select(_kept.repository, _kept.role, func.max(_kept.version)).group_by(_kept.repository, _kept.role)
_SERVED: Final = select(served_files.c.content).where(
    served_files.c.repository == _OF, served_files.c.name == bindparam("named")
)
_RELEASES: Final = select(releases).order_by(
    releases.c.product, releases.c.era.desc(), releases.c.release_counter.desc(), releases.c.manifest
)
_RELEASES_OF: Final = _RELEASES.where(releases.c.product == _OF)
_SERVED_NAMES: Final = select(served_files.c.name).where(served_files.c.repository == _OF)


class Repositories:
    """Both TUF repositories, as bytes that somebody else verified."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add_signed(self, repository: RepositoryKind, role: str, version: int, content: bytes) -> None:
        """Keeps one version of one role for ever; the same version again changes nothing."""
        known = self._connection.execute(
            select(signed_metadata.c.version).where(
                signed_metadata.c.repository == repository,
                signed_metadata.c.role == role,
                signed_metadata.c.version == version,
            )
        ).one_or_none()
        if known is None:
            self._connection.execute(
                insert(signed_metadata).values(repository=repository, role=role, version=version, content=content)
            )

    def all_signed(self, repository: RepositoryKind, role: str) -> dict[int, bytes]:
        """Every version that is kept of one role, oldest first."""
        return pairs(self._connection.execute(_ALL_SIGNED, {"of": repository, "named": role}))

    def newest_signed(self, repository: RepositoryKind) -> dict[str, bytes]:
        """The newest version of each role but root. Reads no older one: they are kept for ever, and asked for often."""
        return pairs(self._connection.execute(_NEWEST_SIGNED, {"of": repository}))

    def newest(self) -> dict[str, int]:
        """The highest version kept of each offline role, by `REPOSITORY/ROLE`."""
        rows = self._connection.execute(_NEWEST)
        return {f"{repository}/{role}": version for repository, role, version in rows}

    def serve(self, repository: RepositoryKind, files: Mapping[str, bytes], *, forget: Iterable[str] = ()) -> None:
        """Puts files on offer, replacing those of the same name, and withdraws those in `forget`."""
        known = set(self.served_names(repository))
        for name, content in files.items():
            if name in known:
                self._connection.execute(
                    update(served_files)
                    .where(served_files.c.repository == repository, served_files.c.name == name)
                    .values(content=content)
                )
            else:
                self._connection.execute(insert(served_files).values(repository=repository, name=name, content=content))
        gone = [name for name in forget if name not in files]
        if gone:
            self._connection.execute(
                delete(served_files).where(served_files.c.repository == repository, served_files.c.name.in_(gone))
            )

    def served(self, repository: RepositoryKind, name: str) -> bytes | None:
        """One file on offer, or None."""
        return self._connection.execute(_SERVED, {"of": repository, "named": name}).scalar_one_or_none()

    def served_names(self, repository: RepositoryKind) -> list[str]:
        """The names of all files on offer."""
        return list(self._connection.execute(_SERVED_NAMES, {"of": repository}).scalars())

    def put_releases(self, product: str, listed: Iterable[Release]) -> list[Release]:
        """Makes `listed` what the product's role lists now. Returns those that were listed and no longer are."""
        before = {release.manifest: release for release in self.releases(product)}
        now = {release.manifest: release for release in listed}
        for manifest, release in now.items():
            values = {
                "version": release.version,
                "manifest_bytes": release.manifest_bytes,
                "release_counter": release.release_counter,
                "era": release.era,
                "artifacts": release.artifacts,
                "total_bytes": release.total_bytes,
                "listed": True,
            }
            if manifest in before:
                self._connection.execute(
                    update(releases)
                    .where(releases.c.product == product, releases.c.manifest == manifest)
                    .values(values)
                )
            else:
                self._connection.execute(insert(releases).values(product=product, manifest=manifest, **values))
        gone = [release for manifest, release in before.items() if release.listed and manifest not in now]
        for release in gone:
            self._connection.execute(
                update(releases)
                .where(releases.c.product == product, releases.c.manifest == release.manifest)
                .values(listed=False)
            )
        return gone

    def releases(self, product: str | None = None) -> list[Release]:
        """All releases ever listed, by product, newest counter first."""
        execute = self._connection.execute
        rows = execute(_RELEASES) if product is None else execute(_RELEASES_OF, {"of": product})
        return [_release(row) for row in rows]


def _release(row: Row[Any]) -> Release:
    return Release(**row._mapping)
