"""One repository's trusted metadata on the disk: ngclient's workflow, with what python-tuf leaves to others filled in.

ngclient decides (TUF client workflow 5.3 to 5.6). This module adds: every file is durable before it counts, versions
are held against floors that live elsewhere, the time comes in as an argument, root chains of any genuine length are
walked, and the timestamp may come with the answer of a contact.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar, cast

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from signing.durable import DISK, Disk
from signing.metadata import VERSION_MAX
from signing.trust.files import file_name
from signing.trust.floors import Floors, KeyedFloor
from signing.trust.source import Nowhere, Offered, Source

NEVER: Final = datetime.min.replace(tzinfo=UTC)
"""As the time: nothing has expired. For what must be known before the time is."""

Inspect = Callable[[str, Root | Targets], None]
"""Looks at root or a targets role after its signatures held and before it is kept; raises `Refused`."""

S = TypeVar("S", Timestamp, Snapshot, Targets)

_BASE: Final = "trusted:/"


@dataclass(frozen=True)
class Trusted:
    """What is trusted of a repository: signatures, thresholds and floors held. Expiry as the caller had it judged."""

    root: Root
    targets: Targets | None = None
    delegated: Mapping[str, Targets] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    """By role, of all that is stored."""


class TrustStore:
    """The trusted metadata of one repository.

    Not for two threads or processes at once on one folder.

    Args:
        name: `image`, `director`: prefix of the floors' names, and the word for messages.
        folder: Holds `root.json`, `timestamp.json`, ... (exactly the trusted bytes, names percent-encoded) and
            `root_history/`. Made when absent.
        first_root: What trust begins with where the folder holds no valid root; None when it must hold one.
        floors: Version floors, kept outside `folder`.
        inspect: What the caller asks of root and targets roles beyond TUF.
        disk: For every write.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        first_root: bytes | None,
        floors: Floors,
        *,
        inspect: Inspect | None = None,
        disk: Disk = DISK,
    ) -> None:
        self.name = name
        self._folder = folder
        self._first_root = first_root
        self._floors = floors
        self._inspect = inspect
        self._disk = disk

    def refresh(self, source: Source, now: datetime, roles: Sequence[str] = ()) -> Trusted:
        """Brings everything up to date and judges it at `now`. All that was accepted is durable, also on an error.

        When the offered timestamp is the stored one and nothing expired, nothing is fetched and nothing written.

        Args:
            source: Where newer metadata comes from.
            now: Expiry is judged by it (TUF client workflow 5.3.10: fixed for the whole refresh).
            roles: Delegated roles of the top targets that are needed too.

        Raises:
            LinkError: Something could not be fetched.
            Refused: `SIGNATURE`, `EXPIRED`, `ROLLBACK`, `METADATA`, `LENGTH`, or what `inspect` says.
        """
        if isinstance(source, Offered) and source.timestamp == self._stored("timestamp"):
            with contextlib.suppress(Refused, LinkError):
                return self._run(Offered(Nowhere(), source.timestamp), now, roles, keep=True, rise=True)
        return self._run(source, now, roles, keep=True, rise=True)

    def peek(self, source: Source, roles: Sequence[str] = ()) -> Trusted:
        """What `refresh` would come to if nothing ever expired, on a scratch copy: nothing is written, no floor rises.

        Raises:
            LinkError: As `refresh`.
            Refused: As `refresh`, but never `EXPIRED`.
        """
        if isinstance(source, Offered) and source.timestamp == self._stored("timestamp"):
            with contextlib.suppress(Refused, LinkError):
                return self._run(Offered(Nowhere(), source.timestamp), NEVER, roles, keep=False, rise=False)
        return self._run(source, NEVER, roles, keep=False, rise=False)

    def stored(self, roles: Sequence[str] = ()) -> Trusted:
        """The newest stored metadata, whether or not it has expired, and also where a refresh stopped half way.

        Raises:
            Refused: There is not even a valid root.
        """
        with self._verdicts():
            updater = self._open(Nowhere(), NEVER, keep=False, rise=False)
            return updater.whatever_holds(roles)

    def timestamp(self) -> bytes:
        """The stored timestamp, exact bytes, valid or not; empty when there is none."""
        return self._stored("timestamp") or b""

    def recover_floors(self, roles: Sequence[str] = ()) -> Trusted:
        """As `stored`, and raises the floors to what is stored and verified: for floors that were lost.

        Raises:
            Refused: There is not even a valid root.
        """
        with self._verdicts():
            updater = self._open(Nowhere(), NEVER, keep=False, rise=True)
            return updater.whatever_holds(roles)

    def search(self, source: Source, now: datetime) -> "Search":
        """Refreshes, for one who then looks for target files by path.

        Raises:
            LinkError: As `refresh`.
            Refused: As `refresh`.
        """
        with self._verdicts():
            updater = self._open(source, now, keep=True, rise=True)
            updater.refresh()
            return Search(self, updater)

    def _run(self, source: Source, now: datetime, roles: Sequence[str], *, keep: bool, rise: bool) -> Trusted:
        with self._verdicts():
            updater = self._open(source, now, keep=keep, rise=rise)
            updater.refresh()
            for role in roles:
                updater.load_delegated(role)
            return updater.outcome(roles)

    def _open(self, source: Source, now: datetime, *, keep: bool, rise: bool) -> "_DurableUpdater":
        last: Exception | None = None
        for root in (self._stored("root"), self._first_root):
            if root is None:
                continue
            try:
                return _DurableUpdater(self, root, source, now, keep=keep, rise=rise)
            except (RepositoryError, DeserializationError) as error:
                last = error
        if last is None:
            raise Refused(Reason.METADATA, f"{self.name}: there is no root to begin with")
        raise last

    def _stored(self, role: str) -> bytes | None:
        try:
            return (self._folder / file_name(role)).read_bytes()
        except OSError:  # absent, or a disk that does not read it any more: it is fetched again
            return None

    @contextlib.contextmanager
    def _verdicts(self) -> Iterator[None]:
        """Turns tuf's errors into ours."""
        try:
            yield
        except DownloadHTTPError as error:
            cause = error.__cause__
            raise (cause if isinstance(cause, LinkError) else LinkError(str(error))) from error
        except UnsignedMetadataError as error:
            raise Refused(Reason.SIGNATURE, f"{self.name}: {error}") from error
        except ExpiredMetadataError as error:
            raise Refused(Reason.EXPIRED, f"{self.name}: {error}") from error
        except BadVersionNumberError as error:
            raise Refused(Reason.ROLLBACK, f"{self.name}: {error}") from error
        except LengthOrHashMismatchError as error:
            raise Refused(Reason.METADATA, f"{self.name}: mixed or changed: {error}") from error
        except (RepositoryError, DeserializationError, ValueError, RecursionError) as error:
            raise Refused(Reason.METADATA, f"{self.name}: {error}") from error


class Search:
    """Finds target files in refreshed metadata. Made by `TrustStore.search`."""

    def __init__(self, store: TrustStore, updater: "_DurableUpdater") -> None:
        self._store = store
        self._updater = updater

    @property
    def root(self) -> Root:
        """The trusted root."""
        return self._updater.root

    def find(self, path: str) -> TargetFile | None:
        """Searches the delegations (TUF client workflow 5.6.7), fetching only the roles on the way.

        Returns:
            The file's length and hashes; None when no role lists it.

        Raises:
            LinkError: As `TrustStore.refresh`.
            Refused: As `TrustStore.refresh`.
        """
        with self._store._verdicts():
            return self._updater.get_targetinfo(path)


class _DurableUpdater(Updater):
    """ngclient's Updater for one refresh: durable, floored, with the time and the source of the caller.

    It overrides steps that python-tuf keeps private; `tests/unit/signing/test_trust_store_workflow.py` holds each of
    them, so that a newer python-tuf that moves them fails there.
    """

    def __init__(
        self, store: TrustStore, root: bytes, source: Source, now: datetime, *, keep: bool, rise: bool
    ) -> None:
        self._store = store
        self._keep = keep
        self._rise = rise
        self._parents = {"timestamp": "root", "snapshot": "root", "targets": "root"}
        if keep:
            store._disk.make_dir(store._folder / "root_history")
        super().__init__(
            str(store._folder),
            _BASE,
            fetcher=_Fetcher(source),
            config=UpdaterConfig(max_root_rotations=limits.ROOT_ROTATIONS_A_REFRESH),
            bootstrap=root,
        )
        self._trusted_set.reference_time = now

    @property
    def root(self) -> Root:
        return self._trusted_set.root

    def load_delegated(self, role: str) -> None:
        """Brings a role that the top targets delegate to up to date."""
        self._load_targets(role, Targets.type)

    def outcome(self, roles: Sequence[str]) -> Trusted:
        trusted = self._trusted_set
        loaded = ["root", "timestamp", "snapshot", "targets", *roles]
        return Trusted(
            root=trusted.root,
            targets=trusted.targets,
            delegated={role: cast(Targets, trusted[role]) for role in roles},
            versions={role: trusted[role].version for role in loaded},
        )

    def whatever_holds(self, roles: Sequence[str]) -> Trusted:
        """Root chain as stored, then each role that its delegator's signatures and the floors still hold."""
        self._load_root()
        root = self._trusted_set.root
        versions = {"root": root.version}
        stamp = self._local("timestamp", Timestamp, root)
        if stamp is not None:
            versions["timestamp"] = stamp.version
        shot = self._local("snapshot", Snapshot, root)
        if shot is not None:
            versions["snapshot"] = shot.version
        targets = self._local("targets", Targets, root)
        delegated: dict[str, Targets] = {}
        if targets is not None:
            versions["targets"] = targets.version
            for role in roles:
                self._parents[role] = Targets.type
                found = self._local(role, Targets, targets)
                if found is not None:
                    delegated[role] = found
                    versions[role] = found.version
        return Trusted(root=root, targets=targets, delegated=delegated, versions=versions)

    def _local(self, role: str, kind: type[S], delegator: Root | Targets) -> S | None:
        try:
            metadata: Metadata[S] = Metadata[S].from_bytes(self._load_local_metadata(role))
            if not isinstance(metadata.signed, kind):
                return None
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            floor = self._hold(role, metadata.signed.version, delegator)
            self._look(role, metadata.signed)
        except (OSError, RepositoryError, DeserializationError, ValueError, Refused):
            return None
        if self._rise:
            floor.rise(metadata.signed.version)
        return metadata.signed

    # What follows are steps of ngclient.

    def _load_root(self) -> None:
        super()._load_root()
        version = self._trusted_set.root.version
        floor = self._store._floors.read(f"{self._store.name}/root")
        if version < floor:
            raise Refused(Reason.ROLLBACK, f"{self._store.name}: root {version}, and root {floor} was seen before")
        if self._rise and version > floor:
            self._store._floors.rise(f"{self._store.name}/root", version)

    def _load_timestamp(self) -> None:
        super()._load_timestamp()
        self._accept("timestamp")

    def _load_snapshot(self) -> None:
        super()._load_snapshot()
        self._accept("snapshot")

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        self._parents[role] = parent_role
        try:
            targets = super()._load_targets(role, parent_role)
        except BadVersionNumberError as error:
            # Here it is no rollback: the file is not the version that the snapshot names (ATTACKS.md T7).
            raise Refused(Reason.METADATA, f"{self._store.name}: mixed: {error}") from error
        self._accept(role)
        return targets

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        signed = self._trusted_set[rolename]
        self._hold(rolename, signed.version, self._delegator(rolename))
        self._look(rolename, signed)
        if self._keep:
            self._write(self._store._folder / file_name(rolename), data)

    def _persist_root(self, version: int, data: bytes) -> None:
        self._look("root", self._trusted_set.root)
        if self._keep:
            self._write(self._store._folder / "root_history" / f"{version}.root.json", data)

    def _update_root_symlink(self) -> None:
        # A file of its own instead of a symlink: one atomic write, and no file system without symlinks to mind.
        newest = self._store._folder / "root_history" / f"{self._trusted_set.root.version}.root.json"
        if self._keep and newest.exists():
            self._write(self._store._folder / "root.json", newest.read_bytes())

    def _accept(self, role: str) -> None:
        """Holds a loaded role against floor and inspection, and raises the floor."""
        signed = self._trusted_set[role]
        floor = self._hold(role, signed.version, self._delegator(role))
        self._look(role, signed)
        if self._rise:
            floor.rise(signed.version)

    def _delegator(self, role: str) -> Root | Targets:
        return cast(Root | Targets, self._trusted_set[self._parents[role]])

    def _hold(self, role: str, version: int, delegator: Root | Targets) -> KeyedFloor:
        if version > VERSION_MAX:
            raise Refused(Reason.LIMIT, f"{self._store.name}: version {version} of {role} is above {VERSION_MAX}")
        named = delegator.get_delegated_role(role)
        floor = KeyedFloor(self._store._floors, f"{self._store.name}/{role}", named.keyids, named.threshold)
        if version < floor.value():
            raise Refused(
                Reason.ROLLBACK, f"{self._store.name}: {role} {version}, and {role} {floor.value()} was seen before"
            )
        return floor

    def _look(self, role: str, signed: object) -> None:
        if self._store._inspect is not None and isinstance(signed, Root | Targets):
            self._store._inspect(role, signed)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            if path.read_bytes() == data:
                return
        except OSError:  # absent, or a disk that does not read it any more
            pass
        self._store._disk.write(path, data)


class _Fetcher(FetcherInterface):
    """Our port behind ngclient's."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError("only whole metadata files are fetched")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        try:
            data = self._source.read(url.removeprefix(_BASE), max_length)
        except LinkError as error:
            if error.status in {403, 404}:
                raise DownloadHTTPError(str(error), error.status) from error
            raise
        if len(data) > max_length:
            raise Refused(Reason.LENGTH, f"{url.removeprefix(_BASE)}: more than {max_length} bytes")
        return data
