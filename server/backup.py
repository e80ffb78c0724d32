"""`headland-server backup`: a moment of the server in a folder, also while it runs. No blob is copied twice.

The order is what makes it consistent. Blobs first, for they are most of it and immutable. Then the catalog, by SQLite's
own backup, inside one read transaction. Then the blobs that it names and that came meanwhile. Keys and settings last,
for older keys could not sign for its root; and keys before it too, for one that it names may be replaced meanwhile. A
set gets its name when all that it needs is durable; what a cut leaves behind has no such name and is swept by the next
backup.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from protocol.errors import LinkError, Refused, StateError
from protocol.ids import Digest, is_digest
from protocol.messages import TrustMark
from server import authorities
from server.authorities import RECORD, newest_mark
from server.backup_format import (
    BLOB_LIST,
    CATALOG,
    PARTIAL,
    PLAIN,
    SEALED,
    BackupFile,
    Contents,
    Moved,
    alone,
    blob_path,
    hash_file,
    next_name,
    read_blob_list,
    sets,
    take_blob,
    write_contents,
)
from server.certificates import BACKED_UP
from server.clock import NowMs
from server.founding import Layout, catalog_url, open_layout
from server.keyring import check_keys
from server.settings import ServerSettings, read_settings
from server.steady_clock import after_a_stop
from server.storage.blobs import blob_folder
from server.storage.catalog import Catalog
from signing import durable
from signing.locks import one_by_one
from signing.sealed_file import SCRYPT_N, SEALED_BYTES, RandomBytes, seal

CATALOG_TRIES: Final = 3  # a blob that the server withdrew while it was copied: the catalog is copied again
CATALOG_PAGES: Final = 4096  # a step of the copy, between two looks at the bar
NOT_STATE: Final = frozenset({"catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal"}) | frozenset(
    # Made anew, or only of this run; `starts` stays with a catalog that lies elsewhere, see `_state_files`.
    {"run.json", "lock", "scratch", "tls", "starts", "restored.json"}
)


class Meter(Protocol):
    """Shows how it goes."""

    def start(self, what: str, total_bytes: int) -> Moved:
        """Begins one piece of the work; the answer hears of each step."""
        ...


@dataclass(frozen=True)
class BackupOptions:
    """What a person may choose.

    Args:
        passphrase: Seals keys, tokens and settings; None: they lie in the open, 0600.
        link: Blobs get a second name instead of a copy: no protection against a broken disk.
        check: Blobs that were copied before are hashed again.
        keep: So many sets stay; 0: all.
        key_cost: scrypt's n.
    """

    passphrase: str | None = None
    link: bool = False
    check: bool = False
    keep: int = 0
    key_cost: int = SCRYPT_N


@dataclass(frozen=True)
class Backup:
    """What was done.

    Args:
        name: Of the set.
        contents: Of the set.
        copied: Blobs that were not here before, and `copied_bytes`.
        lacking: Blobs that the catalog names and that the server itself does not have whole.
        damaged: Blobs here that were not what their name says, and were copied again.
        removed: Sets that were more than `keep`.
    """

    name: str
    contents: Contents
    copied: int
    copied_bytes: int
    lacking: tuple[Digest, ...]
    damaged: tuple[Digest, ...]
    removed: tuple[str, ...]


def back_up(
    state: Path, backup: Path, options: BackupOptions, meter: Meter, *, now_ms: NowMs, random: RandomBytes
) -> Backup:
    """Adds a set to a backup folder, which is made when absent. Blocks.

    Raises:
        StateError: Not a server's folder, a folder inside it, another backup is being written there, or the catalog
            cannot be copied.
    """
    layout = open_layout(state)
    settings = read_settings(state)
    if backup.resolve().is_relative_to(state.resolve()):
        raise StateError(f"{backup} lies inside the state folder", hint="a backup belongs on another disk")
    durable.make_dir(backup / "sets")
    with alone(backup):
        for entry in (backup / "sets").iterdir():
            if entry.name.startswith(PARTIAL):
                durable.remove_tree(entry)
        for shelf in (backup / "blobs" / "sha256").glob("??"):
            durable.sweep(shelf)  # of a blob that the server may not have any more: nobody would copy it again
        return _Work(layout, settings, backup, options, meter).run(now_ms, random)


@dataclass
class _Work:
    layout: Layout
    settings: ServerSettings
    backup: Path
    options: BackupOptions
    meter: Meter
    copied: int = 0
    copied_bytes: int = 0
    damaged: list[Digest] = field(default_factory=list)

    def run(self, now_ms: NowMs, random: RandomBytes) -> Backup:
        blobs = blob_folder(self.settings.storage.blobs, self.layout.state)
        embedded = not self.settings.storage.catalog
        left_out = list(self._left_out(blobs))
        if blobs is not None:
            self._copy_blobs(blobs, _blobs_in(blobs), "blobs")
        folder = self.backup / "sets" / f"{PARTIAL}{os.getpid()}"
        durable.make_dir(folder)
        named: dict[Digest, int] = {}
        lacking: list[Digest] = []
        # The catalog names the keys that sign: one that is replaced and destroyed while it is copied is kept too.
        keys = self._key_files()
        created_ms = now_ms()
        for _ in range(CATALOG_TRIES if embedded else 0):
            created_ms = now_ms()
            named = self._copy_catalog(folder)
            # A set that a wrong clock named into the future would be taken for the newest for years.
            created_ms = after_a_stop(created_ms, self._known_ms(folder))
            lacking = self._copy_blobs(blobs, named, "blobs that came meanwhile") if blobs is not None else []
            if not lacking:
                break
        if not embedded and blobs is not None:
            named = _blobs_in(blobs)
            lacking = self._copy_blobs(blobs, named, "blobs that came meanwhile")
        durable.write(
            folder / BLOB_LIST, "".join(f"{sha256} {length}\n" for sha256, length in sorted(named.items())).encode()
        )
        ca = self._copy_state(folder, blobs, keys, random)
        contents = Contents(
            format=1,
            created_ms=created_ms,
            files=tuple(self._files(folder)),
            blobs=len(named),
            blob_bytes=sum(named.values()),
            left_out=tuple(left_out),
        )
        write_contents(folder, contents)
        name = next_name(self.backup, datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ"))
        durable.rename(folder, self.backup / "sets" / name)
        removed = self._forget(sets(self.backup)[: -self.options.keep or None] if self.options.keep else [])
        self._tell(created_ms, ca, now_ms())
        return Backup(
            name=name,
            contents=contents,
            copied=self.copied,
            copied_bytes=self.copied_bytes,
            lacking=tuple(sorted(lacking)),
            damaged=tuple(self.damaged),
            removed=tuple(removed),
        )

    def _left_out(self, blobs: Path | None) -> Iterator[str]:
        if self.settings.storage.catalog:
            yield "the catalog: it is in a database of its own; back it up with that database's tools, such as pg_dump"
        if blobs is None:
            yield f"blobs: they are in {self.settings.storage.blobs}; back them up there"
        for role, key in self.settings.online_keys.items():
            yield f"the online key {role}: it is at {key.uri.partition(':')[0]}:, its public half in {key.public}"

    def _copy_catalog(self, folder: Path) -> dict[Digest, int]:
        try:
            return self._copied_catalog(folder / CATALOG)
        except sqlite3.Error as error:
            raise StateError(
                f"the catalog cannot be copied: {error}",
                hint="is a disk full, or failing? The sets made before are whole",
            ) from error

    def _copied_catalog(self, target: Path) -> dict[Digest, int]:
        durable.unlink(target)
        source = self.layout.state / CATALOG
        if not source.exists():  # or SQLite would make an empty one, which looks like a server's
            raise StateError(f"{source} is missing", hint="`headland-server restore` brings one back from a backup")
        with (
            closing(sqlite3.connect(source, timeout=30)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.isolation_level = None
            size = live.execute("PRAGMA page_size").fetchone()[0]
            # One moment for the whole copy: without it each write of the server would begin it anew.
            live.execute("BEGIN")
            total = live.execute("SELECT page_count, count(*) FROM pragma_page_count, sqlite_schema").fetchone()[0] or 0
            moved = self.meter.start("catalog", total * size)
            left = total

            def step(_status: int, remaining: int, _total: int) -> None:
                nonlocal left
                moved(max(0, left - remaining) * size)
                left = remaining

            live.backup(copy, pages=CATALOG_PAGES, progress=step)
            live.execute("ROLLBACK")
            copy.execute("PRAGMA journal_mode=DELETE")
            verdict = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise StateError(f"the catalog is damaged: {verdict}", hint="the sets made before are whole")
            named = dict(copy.execute("SELECT sha256, length_bytes FROM blobs"))
        target.chmod(0o600)
        durable.sync_file(target)
        return named

    def _known_ms(self, folder: Path) -> int:
        with closing(sqlite3.connect(folder / CATALOG)) as copy:
            row = copy.execute("SELECT value FROM facts WHERE name = 'known_ms'").fetchone()
        return int(row[0]) if row is not None else 0

    def _copy_blobs(self, source: Path, wanted: dict[Digest, int], what: str) -> list[Digest]:
        """Copies those that are not here yet. Returns those that the server does not have whole."""
        target = self.backup / "blobs"
        missing = [(sha256, length) for sha256, length in wanted.items() if not self._is_here(target, sha256, length)]
        moved = self.meter.start(what, sum(length for _, length in missing))
        lacking = []
        for sha256, length in missing:
            if take_blob(source, target, sha256, length, moved, link=self.options.link):
                self.copied += 1
                self.copied_bytes += length
            else:
                lacking.append(sha256)
        return lacking

    def _is_here(self, target: Path, sha256: Digest, length: int) -> bool:
        path = blob_path(target, sha256)
        try:
            if path.stat().st_size != length:
                self.damaged.append(sha256)
                return False
        except FileNotFoundError:
            return False
        try:
            whole = not self.options.check or hash_file(path, lambda _: None)[0] == sha256
        except Refused:
            whole = False
        if not whole:
            self.damaged.append(sha256)
        return whole

    def _copy_state(
        self, folder: Path, blobs: Path | None, keys: Mapping[str, bytes], random: RandomBytes
    ) -> TrustMark:
        """Returns the mark of the newest CA that was copied. `keys`: as they were before the catalog."""
        files = self._state_files(blobs)
        for name, data in keys.items():
            if not name.endswith(".next.pem") and files.get(name, data) != data:
                files[f"{name.removesuffix('.pem')}.next.pem"], files[name] = files[name], data
        ca = newest_mark(files[f"ca/{RECORD}"])
        if self.options.passphrase is not None:
            content = json.dumps({name: data.hex() for name, data in files.items()}).encode()
            if len(content) > SEALED_BYTES:
                largest = max(files, key=lambda name: len(files[name]))
                raise StateError(
                    f"{self.layout.state / largest} makes this too much to seal: no restore would open it",
                    hint="move what is no part of the server out of its folder",
                )
            durable.write(folder / SEALED, seal(content, self.options.passphrase, random, self.options.key_cost))
            return ca
        for name, data in files.items():
            path = folder / PLAIN / name
            durable.make_dir(path.parent)
            durable.write(path, data)
        return ca

    def _state_files(self, blobs: Path | None) -> dict[str, bytes]:
        """Everything in the state folder that is not made anew: what is added there one day is not forgotten here."""
        state = self.layout.state
        # A catalog elsewhere comes back by other hands: `starts` beside it shows whether it is older than this.
        leave = NOT_STATE - ({"starts"} if self.settings.storage.catalog else set())
        # A rotation in between would leave one CA's record beside another one's key: nobody could start from that.
        with one_by_one(self.layout.ca), one_by_one(self.layout.keys):
            found = {
                str(path.relative_to(state)): path.read_bytes()
                for entry in state.iterdir()
                if entry.name not in leave
                for path in _files_in(entry, blobs)
            }
            # What no server could start from is no backup.
            authorities.load(self.layout.ca)
            check_keys(self.layout.keys, self.settings.online_keys)
        return found

    def _key_files(self) -> dict[str, bytes]:
        state, keys = self.layout.state, self.layout.keys
        with one_by_one(keys):
            return {str(path.relative_to(state)): path.read_bytes() for path in _files_in(keys, None)}

    def _files(self, folder: Path) -> Iterator[BackupFile]:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                sha256, length = hash_file(path, lambda _: None)
                yield BackupFile(path=str(path.relative_to(folder)), sha256=sha256, length_bytes=length)

    def _forget(self, names: Sequence[str]) -> list[str]:
        """Removes sets, and then the blobs that no set names any more."""
        for name in names:
            folder = self.backup / "sets" / name
            gone = folder.with_name(f"{PARTIAL}{name}")
            durable.rename(folder, gone)  # from one step to the next it is whole, or none
            durable.remove_tree(gone)
        if names:
            named: set[Digest] = set()
            for name in sets(self.backup):
                try:
                    named.update(read_blob_list(self.backup / "sets" / name))
                except (Refused, OSError):
                    return list(names)  # of an older set, and damaged: no one knows which blobs are its own
            unnamed = [sha256 for sha256 in _blobs_in(self.backup / "blobs") if sha256 not in named]
            for sha256 in unnamed:
                durable.unlink(blob_path(self.backup / "blobs", sha256))
        return list(names)

    def _tell(self, created_ms: int, ca: TrustMark, now_ms: int) -> None:
        # The set is whole, and the status does not know, where the catalog is of another version, whose server may be
        # running, or its disk is full or failing.
        with contextlib.suppress(StateError, LinkError):
            catalog = Catalog(catalog_url(self.settings, self.layout.state), migrate=False)
            with closing(catalog), catalog.write() as session:
                session.facts.put("backup_ms", created_ms)
                session.facts.put(BACKED_UP, ca)
                session.events.add(now_ms, "backed-up", what=str(self.backup))


def _files_in(entry: Path, leave: Path | None) -> Iterator[Path]:
    """The files at or below a path but for those below `leave`, which are many and come and go."""
    if entry == leave or entry.name.startswith(durable.TEMPORARY_PREFIX):
        return
    if entry.is_dir():
        for each in sorted(entry.iterdir()):
            yield from _files_in(each, leave)
    elif entry.is_file():
        yield entry


def _blobs_in(folder: Path) -> dict[Digest, int]:
    found: dict[Digest, int] = {}
    paths: Iterable[Path] = folder.glob("sha256/??/*")
    for path in paths:
        if is_digest(path.name):
            try:
                found[path.name] = path.stat().st_size
            except FileNotFoundError:
                continue  # withdrawn meanwhile
    return found
