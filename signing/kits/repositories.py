"""The whole metadata of both repositories as it goes into a kit: fetched as the server publishes it, judged by roots
that are trusted already. Nothing is written here.

A machine takes the same files in the same way (`signing.trust_store`); what would not hold there is refused here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api.metadata import Snapshot, Targets, Timestamp

from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import Digest
from protocol.objects import TECHNICIANS
from signing.metadata import parse
from signing.repository import ListedRelease, RepositoryKind, RepositorySet, releases_of
from signing.server_client import Operator
from signing.trust_store import MemoryFloors, Trusted, TrustStore
from signing.workspace import KINDS

Files = Mapping[str, bytes]
"""Metadata by the name under which a server publishes it."""

NOWHERE: Final = Path("/nonexistent/headland")  # a store that is only looked with has no folder


@dataclass(frozen=True)
class Judged:
    """What the metadata of a kit comes to.

    Args:
        image: Trusted as of the given time, with the product's role.
        director: Likewise; with the list of technicians where there is one.
        listed: What the product's role lists, by manifest.
    """

    image: Trusted
    director: Trusted
    listed: Mapping[Digest, ListedRelease]

    def director_targets(self) -> Targets:
        """The director's top targets: they say who signs kits."""
        assert self.director.targets is not None  # a look ends with them
        return self.director.targets


def fetch(
    server: Operator, product: str, roots: Mapping[RepositoryKind, Mapping[int, bytes]]
) -> dict[RepositoryKind, Files]:
    """Everything that a machine of a product needs of both repositories, as it is published now.

    Args:
        server: The operators' door.
        product: Whose role is wanted; others' are left out.
        roots: What is known of the chains; what comes after is asked for.

    Raises:
        LinkError: The server cannot be reached.
        Refused: `METADATA`: it gives no metadata.
    """
    return {kind: _fetch(server, kind, product, roots.get(kind, {})) for kind in KINDS}


def judge(
    files: Mapping[RepositoryKind, Files], first: Mapping[RepositoryKind, bytes], product: str, at: datetime
) -> Judged:
    """Judges the files as a machine would at that moment.

    Args:
        files: By repository.
        first: The root to begin with, of each.
        product: Whose role is wanted.
        at: Expiry is judged by it.

    Raises:
        Refused: Not signed as it must be, mixed, expired, or not whole.
    """
    image = _look("image", files["image"], first["image"], (product,), at)
    named = _snapshot(files["director"], "director").meta
    lists = (TECHNICIANS,) if f"{TECHNICIANS}.json" in named else ()
    director = _look("director", files["director"], first["director"], lists, at)
    listed = {each.manifest_sha256: each for each in releases_of(product, image.delegated[product])}
    return Judged(image=image, director=director, listed=listed)


def behind(
    judged: Judged,
    files: Mapping[RepositoryKind, Files],
    published: Mapping[RepositoryKind, RepositorySet],
    product: str,
) -> list[str]:
    """What is older than, or another one of the same version as, what was published already; a line each.

    A signature stays good when it is replaced by a newer one: a server that was set back, or a copy of one, offers a
    release that was delisted since, and technicians who were revoked.

    Args:
        judged: By `judge`.
        files: That it was judged from.
        published: What the managers' workspace knows of.
        product: Whose role is looked at.
    """
    found = []
    for kind, trusted in (("image", judged.image), ("director", judged.director)):
        assert kind in KINDS
        for role, signed in {"targets": trusted.targets, **trusted.delegated}.items():
            if signed is None or role not in {"targets", product, TECHNICIANS}:
                continue
            data = published[kind].targets if role == "targets" else published[kind].delegated.get(role)
            if data is None:
                continue
            known = parse(data, Targets, f"{kind}/{role}.json").signed.version
            if signed.version < known:
                found.append(f"{kind}/{role}.json of version {signed.version}; version {known} is published")
            elif signed.version == known and files[kind][f"{known}.{quote(role, '')}.json"] != data:
                found.append(f"{kind}/{role}.json of version {known} with other bytes than were published")
    return found


class _Held:
    """A source of files in memory."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def read(self, name: str, limit_bytes: int) -> bytes:
        data = self._files.get(name)
        if data is None:
            raise LinkError(f"{name} is not there", retryable=False, status=404)
        return data


def _fetch(server: Operator, kind: RepositoryKind, product: str, roots: Mapping[int, bytes]) -> Files:
    files = {f"{number}.root.json": data for number, data in roots.items()}
    number = max(roots, default=0) + 1
    while (root := _absent_or(server, kind, f"{number}.root.json")) is not None:
        files[f"{number}.root.json"] = root
        number += 1
        if len(files) > limits.KIT_METADATA_FILES or sum(map(len, files.values())) > limits.KIT_METADATA_BYTES:
            raise Refused(Reason.LIMIT, f"the server gives more roots of {kind} than a kit may have")
    files["timestamp.json"] = server.metadata(kind, "timestamp.json")
    version = parse(files["timestamp.json"], Timestamp, "timestamp.json").signed.snapshot_meta.version
    files[f"{version}.snapshot.json"] = server.metadata(kind, f"{version}.snapshot.json")
    meta = _snapshot(files, kind).meta
    for role in ("targets", product if kind == "image" else TECHNICIANS):
        named = meta.get(f"{role}.json")
        if named is None and role != TECHNICIANS:
            raise StateError(f"the server publishes no {role}.json", hint="`headland release push` publishes it")
        if named is not None:
            name = f"{named.version}.{quote(role, '')}.json"
            files[name] = server.metadata(kind, name)
    return files


def _absent_or(server: Operator, kind: RepositoryKind, name: str) -> bytes | None:
    try:
        return server.metadata(kind, name)
    except StateError:  # no such file
        return None


def _snapshot(files: Files, kind: RepositoryKind) -> Snapshot:
    stamp = files.get("timestamp.json", b"")
    version = parse(stamp, Timestamp, f"{kind}/timestamp.json").signed.snapshot_meta.version
    name = f"{version}.snapshot.json"
    if name not in files:
        raise Refused(Reason.METADATA, f"{kind}/{name} is missing")
    return parse(files[name], Snapshot, f"{kind}/{name}").signed


def _look(kind: RepositoryKind, files: Files, first: bytes, roles: tuple[str, ...], at: datetime) -> Trusted:
    try:
        trusted = TrustStore(kind, NOWHERE, first, MemoryFloors()).peek(_Held(files), roles)
    except LinkError as error:
        raise Refused(Reason.METADATA, f"{kind}: {error.message}") from error
    stamp = parse(files["timestamp.json"], Timestamp, "timestamp.json").signed
    judged = {"root": trusted.root, "timestamp": stamp, "snapshot": _snapshot(files, kind), "targets": trusted.targets}
    for name, signed in {**judged, **{role: trusted.delegated[role] for role in roles if role != TECHNICIANS}}.items():
        if signed is not None and signed.is_expired(at):
            raise Refused(Reason.EXPIRED, f"{kind}/{name}.json expired at {signed.expires:%Y-%m-%d %H:%M} UTC")
    return trusted
