"""`headland-server restore`: a state folder out of a backup, and what its first start must know.

Everything is copied beside the new folder, verified, made durable, and gets its name at last: a restore that was cut
leaves nothing that looks like a server. What cannot do harm when it is missing does not stop it: a blob that is damaged
is left behind and named, for the managers' tool has it. The catalog, the keys and the CA must be whole. Of those the
newest is taken that any set has (`server.newest_keys`).
"""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol import limits
from protocol.errors import HeadlandError, Reason, Refused, StateError
from protocol.ids import DeviceId, Digest, Millis, digest, parse_name
from protocol.wire import Message, decode, encode
from server import authorities, restored
from server.backup import Meter
from server.backup_format import (
    BLOB_LIST,
    CATALOG,
    PLAIN,
    SEALED,
    Contents,
    blob_path,
    check_inside,
    copy_file,
    hash_file,
    read_blob_list,
    read_contents,
    sets,
    take_blob,
    while_reading,
)
from server.founding import Layout
from server.keyring import check_keys
from server.newest_keys import goes_on, with_newest
from server.settings import SETTINGS_FILE, read_settings
from server.storage.blobs import blob_folder
from server.storage.catalog import Catalog
from signing import durable, sealed_file
from signing.sealed_file import SEALED_BYTES

OPEN_FILES: Final = frozenset({SETTINGS_FILE, "online-keys.json", "ca/ca.pem"})
MARKER_BYTES: Final = 64 * limits.MIB


class Marker(Message):
    """`restored.json`: left for the first start, which takes the steps in the catalog and removes it.

    Args:
        id: Drawn at the restore, so that a start that was cut takes the steps once.
        backup_ms: When the catalog was copied.
        how: In words.
        revoke: Machines that a person revoked again.
        lost: Blobs that the catalog names and that did not come back.
    """

    id: str
    backup_ms: Millis
    how: str
    revoke: tuple[DeviceId, ...] = ()
    lost: tuple[Digest, ...] = ()


@dataclass(frozen=True)
class RestoreOptions:
    """What a person may choose.

    Args:
        name: Of the set; empty: the newest.
        passphrase: Asked for when the set is sealed.
        revoke: Machines that were revoked after the backup.
    """

    name: str = ""
    passphrase: Callable[[], str] | None = None
    revoke: tuple[DeviceId, ...] = ()


@dataclass(frozen=True)
class Restore:
    """What was done.

    Args:
        name: Of the set.
        contents: Of the set.
        blobs: How many came back.
        lost: Blobs that did not.
        unknown: Names of `revoke` that the backup does not know: kept out all the same.
        keys_from: The set that the CA and the online keys are from: a newer one, where there was one.
        unread: Newer sets that could not be read, with why: their keys may be newer.
    """

    name: str
    contents: Contents
    blobs: int
    lost: tuple[Digest, ...]
    unknown: tuple[DeviceId, ...]
    keys_from: str
    unread: tuple[str, ...]


def restore(backup: Path, state: Path, options: RestoreOptions, meter: Meter, draw: Callable[[], str]) -> Restore:
    """Makes a state folder out of a backup. Blocks.

    Args:
        backup: The backup folder.
        state: The new folder: absent, or empty.
        options: A person's.
        meter: Shows how it goes.
        draw: An id for this restore.

    Raises:
        StateError: No such set, the folder is not empty, a passphrase is missing or wrong, a backup is being written.
        Refused: `HASH`: the catalog or a file of the state is damaged; another set may be whole.
        SettingsError: No server could start from its keys.
    """
    for device in options.revoke:
        parse_name(device, "device")
    if not sets(backup):
        raise StateError(f"{backup} holds no backup that is whole", hint="`headland-server backup` makes one")
    with while_reading(backup):  # a backup beside it may remove sets that are too many, and their blobs
        return _restore(backup, state, options, meter, draw)


def _restore(backup: Path, state: Path, options: RestoreOptions, meter: Meter, draw: Callable[[], str]) -> Restore:
    known = sets(backup)
    name = options.name or known[-1]
    if name not in known:
        raise StateError(f"there is no set {name!r} in {backup}", hint=f"there are {', '.join(known[-8:])}")
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise StateError(f"{state} is there and not empty", hint="move it away; nothing is restored over a server")
    folder = backup / "sets" / name
    contents = read_contents(folder)
    draft = state.absolute().with_name(f"{durable.TEMPORARY_PREFIX}restore-{state.name}")
    durable.remove_tree(draft)
    durable.make_dir(draft / "tls")  # for the listeners' certificate, which the first start makes
    _copy_set(folder, contents, draft, meter)
    state_files = _state_of(folder, contents, options)
    keys_from, unread = name, []
    for newer in reversed(known[known.index(name) + 1 :]):
        try:
            other = _state_of(backup / "sets" / newer, read_contents(backup / "sets" / newer), options)
        except (HeadlandError, OSError) as error:
            unread.append(f"{newer}: {error}")
            continue
        if goes_on(state_files, other):
            keys_from, state_files = newer, with_newest(state_files, other)
            break
    _write_state(state_files, draft)
    settings = read_settings(draft)
    authorities.load(draft / "ca")
    check_keys(draft / "keys", settings.online_keys)
    embedded = not settings.storage.catalog
    if options.revoke and not embedded:
        raise StateError(
            "the catalog is in a database of its own: machines are revoked there",
            hint="start the server, then `headland device revoke NAME`",
        )
    unknown = _check_catalog(draft / CATALOG, options.revoke) if embedded else ()
    target = blob_folder(settings.storage.blobs, draft)
    # A path of its own outside the state folder may still hold the blobs, and more than this set: it is added to.
    blobs, lost = _copy_blobs(backup, read_blob_list(folder), target, meter) if target is not None else (0, [])
    if embedded:
        marker = Marker(
            id=draw(),
            backup_ms=contents.created_ms,
            how=f"restored from the set {name}",
            revoke=options.revoke,
            lost=tuple(lost),
        )
        durable.write(Layout(draft).restored, encode(marker))
    if state.exists():
        state.rmdir()
    durable.rename(draft, state.absolute())
    return Restore(
        name=name,
        contents=contents,
        blobs=blobs,
        lost=tuple(lost),
        unknown=unknown,
        keys_from=keys_from,
        unread=tuple(unread),
    )


def take_marker(layout: Layout, catalog: Catalog, now_ms: int) -> bool:
    """At the first start after a restore: takes the steps of `restored.begin`. Returns whether there was one."""
    path = layout.restored
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    marker = decode(content, Marker, limit=MARKER_BYTES)
    with catalog.write() as session:
        began = restored.begin(
            session, now_ms, restore=marker.id, backup_ms=marker.backup_ms, how=marker.how, revoke=marker.revoke
        )
        if began and marker.lost:
            session.payloads.lose(marker.lost, now_ms)
            session.events.add(now_ms, "blobs-missing", detail=f"{len(marker.lost)} did not come back with the backup")
    durable.unlink(path)  # after the commit: a cut between the two begins the same restore again, which changes nothing
    return True


def _copy_set(folder: Path, contents: Contents, draft: Path, meter: Meter) -> None:
    """Brings the catalog, and looks at the list of blobs; the state is `_state_of`."""
    moved = meter.start("catalog", sum(file.length_bytes for file in contents.files if not _is_state(file.path)))
    for file in contents.files:
        if _is_state(file.path):
            continue
        source, target = folder / file.path, draft / file.path
        try:
            found = hash_file(source, moved) if file.path == BLOB_LIST else copy_file(source, target, moved)
        except FileNotFoundError:
            found = ("", 0)
        if found != (file.sha256, file.length_bytes):
            raise _damaged(source)


def _is_state(path: str) -> bool:
    return path == SEALED or path.startswith(f"{PLAIN}/")


def _state_of(folder: Path, contents: Contents, options: RestoreOptions) -> dict[str, bytes]:
    """The files of the state folder that a set holds, by path: settings, keys, CA. Verified, and opened if sealed."""
    found = {}
    for file in contents.files:
        if not _is_state(file.path):
            continue
        try:
            data = (folder / file.path).read_bytes()
        except FileNotFoundError:
            data = b""
        if (digest(data), len(data)) != (file.sha256, file.length_bytes):
            raise _damaged(folder / file.path)
        found[file.path.removeprefix(f"{PLAIN}/")] = data
    if SEALED not in found:
        return found
    if options.passphrase is None:
        raise StateError(f"{folder.name} is sealed", hint="give its passphrase: --passphrase-file")
    content = sealed_file.read(found[SEALED], SEALED).open(options.passphrase())
    sealed = decode(content, dict[str, str], limit=SEALED_BYTES)
    for name in sealed:
        check_inside(name, SEALED)
    return {name: bytes.fromhex(data) for name, data in sealed.items()}


def _write_state(files: dict[str, bytes], draft: Path) -> None:
    for name, data in files.items():
        target = draft / name
        durable.make_dir(target.parent)
        durable.write(target, data, mode=0o644 if name in OPEN_FILES else 0o600)


def _damaged(path: Path) -> Refused:
    return Refused(Reason.HASH, f"{path} is missing or damaged", hint="take another set: --set NAME, or another copy")


def _check_catalog(path: Path, revoke: Sequence[DeviceId]) -> tuple[DeviceId, ...]:
    """Looks at the copy that will be used. Returns the names that it does not know."""
    with closing(sqlite3.connect(path)) as catalog:
        verdict = catalog.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Refused(Reason.HASH, f"the catalog is damaged: {verdict}", hint="take another set: --set NAME")
        known = {row[0] for row in catalog.execute("SELECT id FROM devices")}
    return tuple(sorted(set(revoke) - known))


def _copy_blobs(backup: Path, named: dict[Digest, int], target: Path, meter: Meter) -> tuple[int, list[Digest]]:
    moved = meter.start("blobs", sum(named.values()))
    lost = []
    for sha256, length in sorted(named.items()):
        here = blob_path(target, sha256)
        with contextlib.suppress(FileNotFoundError, Refused):
            if hash_file(here, moved) == (sha256, length):
                continue
        if not take_blob(backup / "blobs", target, sha256, length, moved):
            lost.append(sha256)
    return len(named) - len(lost), lost
