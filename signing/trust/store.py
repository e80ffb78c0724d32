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
    DownloadError,
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
from signing.metadata import VERSION_MAX, parse
from signing.trust.files import file_name
from signing.trust.floors import Floors, KeyedFloor
from signing.trust.source import Gathered, Nowhere, Offered, OverHalf, Source, Stored

NEVER: Final = datetime.min.replace(tzinfo=UTC)
"""As the time: nothing has expired. For what must be known before the time is."""

Inspect = Callable[[str, Root | Targets], None]
"""Looks at root or a targets role after its signatures held and before it is kept; raises `Refused`."""

S = TypeVar("S", Timestamp, Snapshot, Targets)

_BAD_OR_ABSENT: Final = (
    RepositoryError,
    DownloadError,
    DeserializationError,
    ValueError,
    RecursionError,
    LinkError,
    Refused,
)
_BASE: Final = "trusted:/"
_BYGONE: Final = frozenset({"timestamp", "snapshot"})  # see `OverHalf`


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

    def refresh(
        self, source: Source, now: datetime, roles: Sequence[str] = (), *, wanted: Sequence[str] = ()
    ) -> Trusted:
        """Brings everything up to date and judges it at `now`. All that was accepted is durable, also on an error.

        When the offered timestamp is the stored one and nothing expired, nothing is fetched and nothing written.

        Args:
            source: Where newer metadata comes from.
            now: Expiry is judged by it (TUF client workflow 5.3.10: fixed for the whole refresh).
            roles: Delegated roles of the top targets that are needed too.
            wanted: Likewise, of which none is needed: one that is not delegated, cannot be fetched or does not hold
                is left out and stops nothing. Their expiry is not judged here.

        Raises:
            LinkError: Something could not be fetched.
            Refused: `SIGNATURE`, `EXPIRED`, `ROLLBACK`, `METADATA`, `LENGTH`, or what `inspect` says.
        """
        if isinstance(source, Gathered):
            return self._gathered(now, roles, wanted)
        if isinstance(source, Offered) and source.timestamp == self._stored("timestamp"):
            with contextlib.suppress(Refused, LinkError):
                return self._settled(source.timestamp, now, roles, wanted, keep=True)
        return self._run(source, now, roles, wanted, keep=True)

    def peek(
        self, source: Source, roles: Sequence[str] = (), *, wanted: Sequence[str] = (), now: datetime = NEVER
    ) -> Trusted:
        """What `refresh` would come to at `now`, on a scratch copy: nothing is written, no floor rises.

        Raises:
            LinkError: As `refresh`.
            Refused: As `refresh`.
        """
        if isinstance(source, Gathered):
            return self._gathered(now, roles, wanted)
        if isinstance(source, Offered) and source.timestamp == self._stored("timestamp"):
            with contextlib.suppress(Refused, LinkError):
                return self._settled(source.timestamp, now, roles, wanted, keep=False)
        try:
            return self._run(source, now, roles, wanted, keep=False)
        except LinkError as error:
            if isinstance(source, Stored):  # it is whole: what holds no more by that time would be fetched anew
                raise Refused(Reason.EXPIRED, f"{self.name}: what is trusted had expired at {now:%Y-%m-%d}") from error
            raise

    def beside(self, source: Source, roles: Sequence[str] = (), *, wanted: Sequence[str] = ()) -> Offered:
        """What to judge a whole copy of the repository by that may be older than what is stored: itself where its
        timestamp is newer, else what is stored, of which nothing is fetched then.

        Where what is stored is not whole (a refresh was cut, the disk damaged it, there was none yet), the copy does,
        newer or not: see `OverHalf`. Where it is older than some of it: see `Gathered`.

        Args:
            source: Of the copy.
            roles: As `refresh`.
            wanted: As `refresh`.

        Raises:
            LinkError: It has no timestamp, or it cannot be read.
            Refused: Its roots do not follow on the trusted one, or its timestamp is none.
        """
        stamp = source.read("timestamp.json", UpdaterConfig().timestamp_max_length)
        try:
            self._settled(self.timestamp(), NEVER, roles, wanted, keep=False)
        except (Refused, LinkError):
            return self._beside_half(OverHalf(source, stamp), roles, wanted)
        with self._verdicts():
            updater = self._open(Offered(source, stamp), NEVER, keep=False)
            is_newer = updater.is_newer(stamp)
        return Offered(source, stamp) if is_newer else Stored(self.timestamp())

    def stored(self, roles: Sequence[str] = (), *, wanted: Sequence[str] = ()) -> Trusted:
        """The newest stored metadata, whether or not it has expired, and also where a refresh stopped half way.

        Args:
            roles: As `refresh`.
            wanted: As `refresh`. Only as the newest snapshot names them: what it names and could not be had leaves
                nothing in its place.

        Raises:
            Refused: There is not even a valid root.
        """
        with self._verdicts():
            updater = self._open(Nowhere(), NEVER, keep=False)
            return updater.whatever_holds(roles, wanted)

    def timestamp(self) -> bytes:
        """The stored timestamp, exact bytes, valid or not; empty when there is none."""
        return self._stored("timestamp") or b""

    def recover_floors(self, roles: Sequence[str] = (), *, wanted: Sequence[str] = ()) -> Trusted:
        """As `stored`, and raises the floors to what is stored and verified: for floors that were lost.

        Raises:
            Refused: There is not even a valid root.
        """
        with self._verdicts():
            updater = self._open(Nowhere(), NEVER, keep=False, rise=True)
            return updater.whatever_holds(roles, wanted)

    def search(self, source: Source, now: datetime) -> "Search":
        """Refreshes, for one who then looks for target files by path.

        Raises:
            LinkError: As `refresh`.
            Refused: As `refresh`.
        """
        with self._verdicts():
            updater = self._open(source, now, keep=True)
            updater.refresh()
            return Search(self, updater)

    def _beside_half(self, copy: OverHalf, roles: Sequence[str], wanted: Sequence[str]) -> Offered:
        try:
            self._run(copy, NEVER, roles, wanted, keep=False)
        except Refused as error:
            # Older than some file here, or signed with keys that have been rotated here since.
            if error.reason in {Reason.ROLLBACK, Reason.SIGNATURE}:
                with contextlib.suppress(Refused):
                    self._gathered(NEVER, roles, wanted)
                    return Gathered(self.timestamp())
        except LinkError:
            pass  # whoever judges it meets the same
        return copy

    def _gathered(self, now: datetime, roles: Sequence[str], wanted: Sequence[str]) -> Trusted:
        found = self.stored(roles, wanted=wanted)
        for name, signed in (("targets", found.targets), *((role, found.delegated.get(role)) for role in roles)):
            if signed is None:
                raise Refused(Reason.METADATA, f"{self.name}: no {name} is trusted yet")
            if signed.is_expired(now) or found.root.is_expired(now):
                raise Refused(Reason.EXPIRED, f"{self.name}: what is trusted had expired at {now:%Y-%m-%d}")
        return found

    def _settled(
        self, timestamp: bytes, now: datetime, roles: Sequence[str], wanted: Sequence[str], *, keep: bool
    ) -> Trusted:
        """From what is stored alone, with all that is wanted, or not at all."""
        return self._run(Offered(Nowhere(), timestamp), now, roles, wanted, keep=keep, needs_wanted=True)

    def _run(
        self,
        source: Source,
        now: datetime,
        roles: Sequence[str],
        wanted: Sequence[str],
        *,
        keep: bool,
        needs_wanted: bool = False,
    ) -> Trusted:
        with self._verdicts():
            updater = self._open(source, now, keep=keep)
            updater.refresh()
            for role in roles:
                updater.load_delegated(role)
            return updater.outcome([*roles, *updater.load_wanted(wanted, must=needs_wanted)])

    def _open(self, source: Source, now: datetime, *, keep: bool, rise: bool | None = None) -> "_DurableUpdater":
        """`rise`: whether floors rise; None: when something is kept."""
        last: Exception | None = None
        for root in (self._stored("root"), self._first_root):
            if root is None:
                continue
            try:
                return _DurableUpdater(self, root, source, now, keep=keep, rise=keep if rise is None else rise)
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
        self._bygone = _BYGONE if isinstance(source, OverHalf) else frozenset()
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

    def load_wanted(self, roles: Sequence[str], *, must: bool) -> list[str]:
        """Likewise, where the top targets delegate to it; `must`: raises where one does not hold.

        Returns:
            Those that were loaded.
        """
        loaded = []
        trusted = self._trusted_set
        delegations = trusted.targets.delegations
        now, trusted.reference_time = trusted.reference_time, NEVER
        for role in roles:
            if delegations is None or role not in (delegations.roles or {}):
                continue
            try:
                self._load_targets(role, Targets.type)
            except (
                RepositoryError,
                DownloadError,
                DeserializationError,
                ValueError,
                RecursionError,
                LinkError,
                Refused,
            ):
                if must:
                    raise
            else:
                loaded.append(role)
        trusted.reference_time = now
        return loaded

    def is_newer(self, timestamp: bytes) -> bool:
        """Whether this timestamp of the source is newer than the stored one, by what it says itself, under the newest
        root that the source has."""
        self._load_root()
        held = self._local("timestamp", Timestamp, self._trusted_set.root)
        version: int = parse(timestamp, Timestamp, "timestamp.json").signed.version
        return held is None or version > held.version

    def outcome(self, roles: Sequence[str]) -> Trusted:
        trusted = self._trusted_set
        loaded = ["root", "timestamp", "snapshot", "targets", *roles]
        return Trusted(
            root=trusted.root,
            targets=trusted.targets,
            delegated={role: cast(Targets, trusted[role]) for role in roles},
            versions={role: trusted[role].version for role in loaded},
        )

    def whatever_holds(self, roles: Sequence[str], wanted: Sequence[str] = ()) -> Trusted:
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
            named = {} if shot is None else {name: meta.version for name, meta in shot.meta.items()}
            for role in (*roles, *wanted):
                self._parents[role] = Targets.type
                found = self._local(role, Targets, targets)
                if found is not None and (role in roles or named.get(f"{role}.json", 0) == found.version):
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

    def _load_local_metadata(self, rolename: str) -> bytes:
        if rolename in self._bygone:
            raise FileNotFoundError(rolename)
        return super()._load_local_metadata(rolename)

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
        floor = self._hold(rolename, signed.version, self._delegator(rolename))
        self._look(rolename, signed)
        if self._keep and signed.version >= floor.value():
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
        if version < floor.value() and role not in self._bygone:
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
