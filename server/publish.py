"""Publishing: what managers signed goes on offer whole or not at all, and the online roles are kept fresh over it.

Judging is `signing.repository.accept`; here is the order of things: blobs first, then one transaction that keeps the
signed files for ever, renders what is served, notes what is listed now, and asks for payloads.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Token
from protocol.messages import SignedFile
from protocol.release import ReleaseManifest, parse_manifest
from protocol.wire import Message, decode, encode
from server import restored
from server.clock import NowMs, as_datetime
from server.keyring import Keyring, put_named, read_named
from server.parts import parts_of
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog, Session
from server.storage.records import REPOSITORIES, Release, RepositoryKind
from signing.metadata import parse
from signing.online_keys import named_keys
from signing.repository import (
    ListedRelease,
    RepositorySet,
    accept,
    read_release_list,
    render_online,
    roles_with_metadata,
)

log = logging.getLogger("headland.server")

ONLINE = ("timestamp", "snapshot")
VERSION_REACH = 1 << 52  # of what machines report; above that only rotated keys help. Half of what JSON numbers hold
CATCH_UP_PAUSE_MS = 600_000  # a machine that lies makes the fleet fetch a snapshot this often, not at each contact
SNAPSHOTS_KEPT = 16  # a machine in the middle of a slow refresh still finds the one that its timestamp names


class PublishRequest(Message):
    """All files of one push.

    Args:
        files: In any order.
        again: It is everything in force that the workspace has: a restored server waits for such pushes.
        workspace: Drawn by the workspace that pushes, so that it is known whom to wait for.
    """

    files: tuple[SignedFile, ...]
    again: bool = False
    workspace: Token | None = None


class Published(Message):
    """What a push changed: versions of all roles now, by `REPOSITORY/ROLE`.

    Args:
        versions: Of what is kept here; on offer, unless `held`.
        delisted: Releases, as `PRODUCT VERSION`.
        held: Why nothing of it is on offer yet, or empty: the server came out of a backup.
    """

    versions: dict[str, int]
    delisted: tuple[str, ...] = ()
    held: str = ""


@dataclass(frozen=True)
class _Rendered:
    """What is about to be served: files by name, the version of the online roles, and the keys that are named."""

    version: int
    files: Mapping[RepositoryKind, Mapping[str, bytes]]
    keyids: Mapping[str, str]


class Publisher:
    """Keeps both repositories.

    Args:
        catalog: Holds the files.
        blobs: Holds manifests and artifacts.
        keyring: The online keys.
        now_ms: The clock.
        resign_after: Snapshot and timestamp are signed anew when they are older than this.
    """

    def __init__(
        self, catalog: Catalog, blobs: BlobStore, keyring: Keyring, now_ms: NowMs, resign_after: timedelta
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._keyring = keyring
        self._now_ms = now_ms
        self._resign_after_ms = resign_after // timedelta(milliseconds=1)

    def publish(self, push: PublishRequest, who: str) -> Published:
        """Takes a push, all or nothing. Blocks.

        Args:
            push: The same bytes again are fine; of a whole push also older ones, which are let lie.
            who: The operator token's name, for the audit trail.

        Raises:
            Refused: Signatures below the threshold, a rollback, expired, malformed, or a manifest that does not fit.
            StateError: A blob is missing, or the managers delegate to other online keys than this server's. Not while
                publishing is held: then what comes is kept, and `Published.held` says what else is needed.
        """
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            self._begin(session)
            held = restored.is_held(session)
            offered = _sorted(push.files)
            delisted = self._take(session, offered, now_ms, returning=held or push.again)
            whole = _whole(offered) if push.again else ()
            if push.workspace is not None:
                restored.note_workspace(session, push.workspace, now_ms)
            if held and whole:
                restored.note_return(session, whole, push.workspace)
            why = self._settle(session, now_ms) if held else ""
            if not held:
                self._render(session, now_ms)
            versions = _versions(session)
            session.events.add(now_ms, "published", who=who, what=_names(push.files))
        self.settle_keys()
        return Published(versions=versions, delisted=tuple(delisted), held=why)

    def take_back(self, files: Sequence[SignedFile], device: str) -> None:
        """Takes signed files from a machine that trusts them, while they are missing here. Blocks.

        They are judged as those of a push: the machine is not believed, and nothing goes back.

        Args:
            files: In any order.
            device: Whose certificate brought them.

        Raises:
            Refused: As `publish`.
            StateError: None of this is missing here, or it names other online keys than this server's.
        """
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            self._begin(session)
            before = session.repositories.newest()
            held = restored.is_held(session)
            self._take(session, _sorted(files), now_ms, returning=True)
            gained = sorted(
                f"{name} {new}" for name, new in session.repositories.newest().items() if new > before.get(name, 0)
            )
            if not gained:
                raise StateError("nothing of this is missing here")
            if held:
                self._settle(session, now_ms)
            else:
                self._render(session, now_ms)
            session.events.add(now_ms, "metadata-returned", device=device, what=", ".join(gained))
        self.settle_keys()

    def resume(self, who: str) -> None:
        """Publishes what is here, by a person's word that nothing more is to be waited for. Blocks.

        Raises:
            StateError: Nothing is held, or the managers delegate to other online keys than this server's.
        """
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            self._begin(session)
            restored.resume(session, who, now_ms)
            self._render(session, now_ms)
        self.settle_keys()

    def offers(self, session: Session, trusted: Mapping[str, int]) -> tuple[str, str]:
        """The timestamps of both repositories for a machine, image first; empty where ours would go back for it.

        Args:
            session: Any.
            trusted: Versions that the machine trusts, by `REPOSITORY/ROLE`.

        Raises:
            StateError: Nothing was published yet.
        """
        ours = current_versions(session)
        found = []
        for repository in REPOSITORIES:
            stamp = session.repositories.served(repository, "timestamp.json")
            if stamp is None:
                raise StateError("nothing was published yet", hint="`headland release push`")
            goes_back = any(
                version > ours.get(name, version)
                for name, version in trusted.items()
                if name.partition("/")[0] == repository
            )
            found.append("" if goes_back else stamp.decode())
        return found[0], found[1]

    def refuse(self, error: Refused | StateError) -> None:
        """Notes a push that was turned away."""
        with self._catalog.write() as session:
            reason = error.reason.value if isinstance(error, Refused) else ""
            session.events.add(self._now_ms(), "publish-refused", reason=reason, detail=error.message)

    def resign(self, *, force: bool = False) -> bool:
        """Signs snapshot and timestamp anew when they are due. Blocks.

        Args:
            force: Whether or not they are due: at start, so that a restored catalog's versions jump ahead.

        Returns:
            Whether it did.
        """
        now_ms = self._now_ms()
        with self._catalog.read() as session:
            rendered_ms = int(session.facts.get("rendered_ms") or 0)
            published = any(session.repositories.served_names(repository) for repository in REPOSITORIES)
        fresh = 0 <= now_ms - rendered_ms < self._resign_after_ms
        if not published or (fresh and not force):
            return False
        try:
            with self._catalog.write() as session:
                if restored.is_held(session):  # asked here: a machine may be showing this very moment that it must be
                    return False
                self._render(session, now_ms)
        except StateError as error:
            # Without the keys that the managers named nothing can be signed; what is on offer stays, and grows old.
            self._note_trouble(error.message)
            return False
        self._note_trouble("")
        return True

    def settle_keys(self) -> None:
        """Destroys online keys that the metadata on offer names no more. Safe to repeat. Blocks."""
        with self._catalog.read() as session:
            named = read_named(session)
        done = self._keyring.settle(named.keyids) if named is not None else ()
        if done:
            with self._catalog.write() as session:
                session.events.add(self._now_ms(), "online-key-destroyed", what=", ".join(done))

    def _note_trouble(self, why: str) -> None:
        with self._catalog.write() as session:
            if (session.facts.get("resign_trouble") or "") != why:
                session.facts.put("resign_trouble", why)
                if why:
                    log.error("snapshot and timestamp cannot be signed: %s", why)
                    session.events.add(self._now_ms(), "resign-failed", detail=why)

    def catch_up(self, session: Session, seen: Mapping[str, int], now_ms: int) -> bool:
        """Signs snapshot and timestamp anew, above those that a machine trusts (`adr/getting-ahead-again.md`).

        Not while it trusts newer offline roles too: such a snapshot would go back, and waits for the managers' push.

        Args:
            session: A `write`.
            seen: Versions that the machine trusts, by `REPOSITORY/ROLE`; its word only.
            now_ms: The clock.

        Returns:
            Whether it did.
        """
        ours = current_versions(session)
        ahead = {role: version for role, version in seen.items() if version > ours.get(role, version)}
        online = [version for role, version in ahead.items() if role.partition("/")[2] in ONLINE]
        reached = [version for version in online if version < VERSION_REACH]
        if not reached:
            return False
        # Kept, so that whatever is signed next is above it, if not now then at the managers' push.
        session.facts.put("seen_version", max(session.facts.number("seen_version"), *reached))
        if restored.is_held(session):
            return False
        if len(reached) < len(ahead) or 0 <= now_ms - session.facts.number("caught_up_ms") < CATCH_UP_PAUSE_MS:
            return False
        session.facts.put("caught_up_ms", now_ms)
        self._render(session, now_ms)
        return True

    def _begin(self, session: Session) -> None:
        """What comes may name other online keys: a command may have made, or cancelled, the very keys since."""
        publishing_alone(session)
        self._keyring.reload()

    def _take(
        self, session: Session, offered: Mapping[RepositoryKind, Mapping[str, bytes]], now_ms: int, *, returning: bool
    ) -> list[str]:
        """Judges and keeps files, and lists what they list. Returns what was delisted.

        Args:
            session: A `write`.
            offered: By repository and name.
            now_ms: The clock.
            returning: They come back to a server that lost them: what is older than what is here already is let lie.
        """
        delisted: list[str] = []
        for repository, of in sorted(offered.items()):
            current = in_force(session, repository)
            files = _not_older(current, of) if returning else of
            try:
                published = accept(repository, current, files, as_datetime(now_ms), returning=returning)
            except Refused as error:
                if not returning:
                    raise
                # Most likely something new on top of what has not come back yet.
                hint = f"the server was restored from a backup: first {restored.PUSH_AGAIN}"
                raise Refused(error.reason, error.message, hint=hint) from error
            _keep(session, repository, published)
            if repository == "image":
                delisted += self._list(session, published, published if returning else current, now_ms)
        return delisted

    def _settle(self, session: Session, now_ms: int) -> str:
        """Ends the hold when nothing is missing any more. Returns what still keeps it, or an empty text."""
        session.facts.put("versions", encode(_versions(session)).decode())
        why = self._obstacle(session, now_ms)
        if not restored.settle(session, why):
            return why
        self._render(session, now_ms)
        session.events.add(now_ms, "publishing-resumed", detail="nothing is missing any more")
        return ""

    def _obstacle(self, session: Session, now_ms: int) -> str:
        """What keeps a restored server from publishing, in words; empty when nothing does."""
        found = restored.obstacles(session)
        try:
            self._rendered(session, now_ms)
        except StateError as error:
            found.append(f"{error.message}; {error.hint}")
        return "; ".join(found)

    def _render(self, session: Session, now_ms: int) -> None:
        self._serve(session, self._rendered(session, now_ms), now_ms)

    def _rendered(self, session: Session, now_ms: int) -> "_Rendered":
        before = max(session.facts.number("online_version"), session.facts.number("seen_version"))
        version = max(before + 1, now_ms // 1000)
        found: dict[RepositoryKind, dict[str, bytes]] = {}
        keyids: dict[str, str] = {}
        for repository in REPOSITORIES:
            published = in_force(session, repository)
            if published is None:
                continue
            # In the transaction that puts the metadata on offer: the server switches to a key when it is named, and
            # never before.
            keys = {
                role: self._keyring.signer(f"{repository}.{role}", named)
                for role, named in named_keys(repository, published).items()
            }
            keyids |= {f"{repository}.{role}": signer.public_key.keyid for role, signer in keys.items()}
            now = as_datetime(now_ms)
            found[repository] = render_online(published, keys["snapshot"], keys["timestamp"], version, now)
        return _Rendered(version, found, keyids)

    def _serve(self, session: Session, rendered: "_Rendered", now_ms: int) -> None:
        for repository, files in rendered.files.items():
            shots = sorted(
                (name for name in session.repositories.served_names(repository) if name.endswith(".snapshot.json")),
                key=lambda name: int(name.partition(".")[0]),
            )
            session.repositories.serve(repository, files, forget=shots[: -(SNAPSHOTS_KEPT - 1)])
        session.facts.put("online_version", rendered.version)
        session.facts.put("rendered_ms", now_ms)
        session.facts.put("versions", encode(_versions(session)).decode())
        switched = put_named(session, rendered.keyids, now_ms)
        if switched:
            session.events.add(now_ms, "online-key-switched", what=", ".join(switched))

    def _list(self, session: Session, published: RepositorySet, before: RepositorySet | None, now_ms: int) -> list[str]:
        """Notes what every product's role lists now. Returns what it delisted, as `PRODUCT VERSION`.

        Args:
            session: A `write`.
            published: What is kept now.
            before: Its releases were published once. One whose blobs have not come back to a restored server waits for
                them, and keeps nothing else from being published: least of all a delisting.
            now_ms: The clock.
        """
        delisted: list[str] = []
        for product in published.delegated:
            known = {release.manifest: release for release in session.repositories.releases(product)}
            listed = []
            for entry in read_release_list(published, product):
                held = known.get(entry.manifest_sha256)
                if held is not None:
                    listed.append(held)
                    continue
                try:
                    manifest = self._read_manifest(session, entry)
                except StateError as error:
                    if not _lists(before, entry):
                        raise
                    what = f"{product} {entry.version}"
                    session.events.add(now_ms, "blobs-missing", what=what, detail=error.message)
                    continue
                artifacts = manifest.artifacts()
                listed.append(
                    Release(
                        product=product,
                        version=entry.version,
                        manifest=entry.manifest_sha256,
                        manifest_bytes=entry.length_bytes,
                        release_counter=entry.release_counter,
                        era=entry.era,
                        artifacts=len(artifacts),
                        total_bytes=sum(artifact.length_bytes for artifact in artifacts),
                        listed=True,
                    )
                )
                session.payloads.want((artifact.sha256 for artifact in artifacts), now_ms)
                session.fleet.note_release(product, entry.manifest_sha256, parts_of(manifest))
                session.events.add(now_ms, "released", what=f"{product} {entry.version}")
            for gone in session.repositories.put_releases(product, listed):
                delisted.append(f"{product} {gone.version}")
                session.fleet.changed()
                session.events.add(now_ms, "delisted", what=f"{product} {gone.version}")
                for rollout in session.rollouts.all(product):
                    if rollout.manifest == gone.manifest and rollout.state != "halted":
                        session.rollouts.turn(rollout.name, "halted", "the managers delisted the release")
                        session.events.add(now_ms, "rollout-halted", what=rollout.name, reason=Reason.DELISTED.value)
        return delisted

    def _read_manifest(self, session: Session, entry: ListedRelease) -> ReleaseManifest:
        what = f"{entry.product} {entry.version}"
        if session.payloads.blob_bytes(entry.manifest_sha256) is None:
            raise StateError(
                f"{what}: its manifest {entry.manifest_sha256} was not pushed", hint="push the blobs, then the metadata"
            )
        data = b"".join(self._blobs.read_now(entry.manifest_sha256, limits.MIB))
        if hashlib.sha256(data).hexdigest() != entry.manifest_sha256 or len(data) != entry.length_bytes:
            raise Refused(Reason.HASH, f"{what}: the stored manifest is not the one that was signed")
        manifest = parse_manifest(data)
        said = (manifest.product, manifest.version, manifest.release_counter, manifest.era)
        if said != (entry.product, entry.version, entry.release_counter, entry.era):
            raise Refused(Reason.MANIFEST, f"{what}: the manifest says {' '.join(map(str, said))}")
        missing = [
            artifact.sha256
            for artifact in manifest.artifacts()
            if session.payloads.blob_bytes(artifact.sha256) != artifact.length_bytes
        ]
        if missing:
            raise StateError(
                f"{what}: {len(missing)} of its artifacts were not pushed: {', '.join(missing[:8])}",
                hint="push the blobs, then the metadata",
            )
        return manifest


def publishing_alone(session: Session) -> None:
    """Holds off every push, of other processes too, and what must not meet one, until the `write` ends."""
    session.facts.number("online_version")


def role_states(session: Session, repository: RepositoryKind) -> dict[str, dict[str, Any]]:
    """Version and expiry of every role on offer, by role."""
    published = in_force(session, repository)
    if published is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    root = parse(published.root(), Root, "root.json").signed
    found["root"] = {"version": root.version, "expires": root.expires.isoformat()}
    for role, data in {"targets": published.targets, **published.delegated}.items():
        signed = parse(data, Targets, f"{role}.json").signed
        found[role] = {"version": signed.version, "expires": signed.expires.isoformat()}
    stamp_bytes = session.repositories.served(repository, "timestamp.json")
    if stamp_bytes is not None:
        stamp = parse(stamp_bytes, Timestamp, "timestamp.json").signed
        found["timestamp"] = {"version": stamp.version, "expires": stamp.expires.isoformat()}
        name = f"{stamp.snapshot_meta.version}.snapshot.json"
        shot = parse(session.repositories.served(repository, name) or b"", Snapshot, name).signed
        found["snapshot"] = {"version": shot.version, "expires": shot.expires.isoformat()}
    return found


def current_versions(session: Session) -> Mapping[str, int]:
    """Versions of all roles on offer by `REPOSITORY/ROLE`, as they were rendered last."""
    text = session.facts.get("versions")
    return {} if text is None else decode(text, dict[str, int], limit=limits.METADATA_BYTES)


def first_root(session: Session, repository: RepositoryKind) -> bytes:
    """`1.root.json`, where a machine's trust begins.

    Raises:
        StateError: Nothing was published yet.
    """
    data = session.repositories.served(repository, "1.root.json")
    if data is None:
        raise StateError(
            f"the {repository} repository was not published yet",
            hint="`headland keys init`, sign, then `headland release push`",
        )
    return data


def in_force(session: Session, repository: RepositoryKind) -> RepositorySet | None:
    """The offline-signed metadata that is in force; None before the first publication."""
    roots = session.repositories.all_signed(repository, "root")
    delegated = session.repositories.newest_signed(repository)
    targets = delegated.pop("targets", None)
    if not roots or targets is None:
        return None
    return RepositorySet(roots=roots, targets=targets, delegated=delegated)


def _sorted(files: Sequence[SignedFile]) -> dict[RepositoryKind, dict[str, bytes]]:
    offered: dict[RepositoryKind, dict[str, bytes]] = {}
    for file in files:
        if file.name in offered.setdefault(file.repository, {}):
            raise Refused(Reason.METADATA, f"{file.repository}/{file.name} stands twice in one push")
        offered[file.repository][file.name] = file.content.encode()
    return offered


def _names(files: Sequence[SignedFile]) -> str:
    return ", ".join(f"{file.repository}/{file.name}" for file in files)


def _whole(offered: Mapping[RepositoryKind, Mapping[str, bytes]]) -> tuple[str, ...]:
    """The roles of a push as `REPOSITORY/ROLE`; none when it is not all that a workspace has."""
    found: list[str] = []
    for repository in REPOSITORIES:
        files = offered.get(repository, {})
        roles = ["targets"]
        if "targets.json" in files:
            roles += roles_with_metadata(repository, parse(files["targets.json"], Targets, "targets.json").signed)
        if "1.root.json" not in files or any(f"{role}.json" not in files for role in roles):
            return ()
        found += [f"{repository}/{role}" for role in ("root", *roles)]
    return tuple(found)


def _not_older(current: RepositorySet | None, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Without targets roles of which a newer version is here: two who bring back what they hold need not agree."""
    if current is None:
        return dict(files)
    here = {"targets.json": current.targets, **{f"{role}.json": data for role, data in current.delegated.items()}}
    return {
        name: data
        for name, data in files.items()
        if name not in here
        or parse(data, Targets, name).signed.version >= parse(here[name], Targets, name).signed.version
    }


def _lists(published: RepositorySet | None, entry: ListedRelease) -> bool:
    if published is None or entry.product not in published.delegated:
        return False
    return entry.manifest_sha256 in {each.manifest_sha256 for each in read_release_list(published, entry.product)}


def _keep(session: Session, repository: RepositoryKind, published: RepositorySet) -> None:
    for version, data in published.roots.items():
        session.repositories.add_signed(repository, "root", version, data)
    for role, data in {"targets": published.targets, **published.delegated}.items():
        version = parse(data, Targets, f"{role}.json").signed.version
        session.repositories.add_signed(repository, role, version, data)


def _versions(session: Session) -> dict[str, int]:
    found = session.repositories.newest()
    for repository in REPOSITORIES:
        stamp = session.repositories.served(repository, "timestamp.json")
        if stamp is not None:
            # One number for both, always: `signing.repository.render_online`.
            version = parse(stamp, Timestamp, "timestamp.json").signed.version
            found |= {f"{repository}/{role}": version for role in ONLINE}
    return found
