"""What a backup folder looks like. Writing is `server.backup`, reading is `server.restoring`.

    BACKUP/
      sets/20261123T041500Z/   one moment of the server; a folder of this name is whole and durable
        backup.json            what is in it, with lengths and hashes, and the hash of that line
        catalog.db             a copy of the catalog, of one moment
        state/...              settings, keys and CA, as in the state folder; or sealed under a passphrase: state.sealed
        blobs.txt              the blobs that the catalog names: SHA256 LENGTH
      blobs/sha256/AB/...      the blobs of all sets; immutable, copied once
      lock                     held by who writes, and by who restores

All of it is a secret (keys, tokens, results): folders are 0700 and files 0600.
"""

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Literal

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Digest, Length, Millis, digest, is_digest
from protocol.wire import Message, decode, encode
from signing import durable
from signing.locks import held

SET_NAME: Final = re.compile(r"^([0-9]{8}T[0-9]{6}Z)(?:-([0-9]{1,9}))?\Z")
PARTIAL: Final = ".partial-"
CATALOG: Final = "catalog.db"
SEALED: Final = "state.sealed"
PLAIN: Final = "state"
BLOB_LIST: Final = "blobs.txt"
CONTENTS: Final = "backup.json"
CONTENTS_BYTES: Final = 4 * limits.MIB
CHUNK_BYTES: Final = limits.MIB
UNREADABLE: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.ENODATA, errno.EBADMSG})
"""What a disk says of a file that it cannot give back: to us, one that is damaged. Other errors are not the file's."""

Moved = Callable[[int], None]
"""Hears how many bytes more were dealt with."""


class BackupFile(Message):
    """A file of a set, by its path inside it."""

    path: str
    sha256: Digest
    length_bytes: Length


class Contents(Message):
    """`backup.json`.

    Args:
        format: Of this folder.
        created_ms: When the catalog was copied, by the server's clock.
        files: All but this one.
        blobs: How many `blobs.txt` lists, and `blob_bytes`; with those that the server itself did not have whole.
        left_out: What is kept elsewhere and must be backed up there, in words.
    """

    format: Literal[1]
    created_ms: Millis
    files: tuple[BackupFile, ...]
    blobs: Length
    blob_bytes: Length
    left_out: tuple[str, ...] = ()


def sets(backup: Path) -> list[str]:
    """The names of all whole sets, oldest first."""
    folder = backup / "sets"
    found = [SET_NAME.match(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    # By number within a second: `-10` comes after `-9`.
    return [each.string for each in sorted(filter(None, found), key=lambda each: (each[1], int(each[2] or 0)))]


def next_name(backup: Path, stem: str) -> str:
    """A name for a set of this second that comes after all that are there: a name that is free again may not, nor does
    one by a clock that was ahead and went back. The newest set is what a restore takes, and the last that goes."""
    newest = SET_NAME.match(next(reversed(sets(backup)), ""))
    if newest is None or newest[1] < stem:
        return stem
    return f"{newest[1]}-{int(newest[2] or 0) + 1}"


def read_contents(folder: Path) -> Contents:
    """What a set says is in it.

    Raises:
        Refused: `HASH`: it was changed; `METADATA`: it names a file outside.
    """
    data = (folder / CONTENTS).read_bytes()
    line, _, said = data.partition(b"\n")
    if said.strip() != digest(line).encode():
        raise Refused(Reason.HASH, f"{folder / CONTENTS} is damaged", hint="take another set: --set NAME")
    contents = decode(line, Contents, limit=CONTENTS_BYTES)
    for file in contents.files:
        check_inside(file.path, folder.name)
    return contents


def check_inside(path: str, what: str) -> None:
    """Refuses a path that leads out of the folder that it is relative to.

    Raises:
        Refused: `METADATA`.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise Refused(Reason.METADATA, f"{what}: {path!r} leads outside")


def write_contents(folder: Path, contents: Contents) -> None:
    """The last file of a set."""
    line = encode(contents)
    assert len(line) <= CONTENTS_BYTES, "nothing in it grows with the catalog"
    durable.write(folder / CONTENTS, line + b"\n" + digest(line).encode() + b"\n")


def read_blob_list(folder: Path) -> dict[Digest, int]:
    """Blobs of a set with their lengths.

    Raises:
        Refused: `METADATA`: misspelt.
    """
    found = {}
    for line in (folder / BLOB_LIST).read_text(encoding="ascii", errors="replace").splitlines():
        sha256, _, length = line.partition(" ")
        if not is_digest(sha256) or not length.isdigit():
            raise Refused(Reason.METADATA, f"{folder / BLOB_LIST}: {line!r:.100} is no blob")
        found[sha256] = int(length)
    return found


def blob_path(folder: Path, sha256: Digest) -> Path:
    """Where a blob lies below a folder of blobs, as in the state folder."""
    return folder / "sha256" / sha256[:2] / sha256


def take_blob(source: Path, target: Path, sha256: Digest, length: int, moved: Moved, *, link: bool = False) -> bool:
    """Brings a blob from one folder of blobs to another; it gets its name when it is whole and durable.

    Args:
        source: The folder that has it.
        target: The other.
        sha256: Which.
        length: In bytes.
        moved: Hears of each step.
        link: It gets a second name instead of a copy.

    Returns:
        False: the source does not have it whole, or its disk cannot read it. Nothing of it stays then.
    """
    here, there = blob_path(target, sha256), blob_path(source, sha256)
    durable.make_dir(here.parent)
    part = here.with_name(f"{durable.TEMPORARY_PREFIX}{sha256}")
    try:
        if link:
            durable.unlink(part)
            durable.link(there, part)
            found = hash_file(part, moved)
        else:
            found = copy_file(there, part, moved)
    except FileNotFoundError:
        return False
    except Refused:
        found = ("", 0)
    if found != (sha256, length):
        durable.unlink(part)
        return False
    durable.rename(part, here)
    return True


def copy_file(source: Path, target: Path, moved: Moved) -> tuple[Digest, int]:
    """Copies a file of any size; durable on return. Returns hash and length of what was copied.

    Raises:
        Refused: As `hash_file`.
    """
    durable.unlink(target)
    hasher = hashlib.sha256()
    with source.open("rb") as reader, durable.open_part(target) as part:
        while chunk := _read(reader, source):
            hasher.update(chunk)
            part.append(chunk)
            moved(len(chunk))
        part.sync()
        return hasher.hexdigest(), part.length_bytes


def hash_file(path: Path, moved: Moved) -> tuple[Digest, int]:
    """Hash and length of a file.

    Raises:
        Refused: `HASH`: its disk cannot read it.
    """
    hasher, length = hashlib.sha256(), 0
    with path.open("rb") as reader:
        while chunk := _read(reader, path):
            hasher.update(chunk)
            length += len(chunk)
            moved(len(chunk))
    return hasher.hexdigest(), length


def _read(reader: BinaryIO, path: Path) -> bytes:
    try:
        return reader.read(CHUNK_BYTES)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise Refused(Reason.HASH, f"{path} cannot be read: {error.strerror}") from error


def alone(backup: Path) -> AbstractContextManager[None]:
    """Holds a backup folder against another who writes it, or reads it while blobs might go.

    Raises:
        StateError: Somebody does.
    """
    return held(
        backup / "lock",
        StateError(f"another backup is being written to {backup}, or read", hint="wait until it is done"),
    )


@contextmanager
def while_reading(backup: Path) -> Iterator[None]:
    """As `alone`; a folder that cannot be written needs no lock."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(backup))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
        yield
