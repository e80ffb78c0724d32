"""What is damage to a database, as told from a full disk or a lock; and where a damaged file goes.

A damaged file is never deleted to make a new one: it is renamed, for whoever wants to know what happened to it.
"""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.errors import StateError
from signing.durable import DISK, Disk

KEPT_FILES: Final = 3  # of one database; a disk that keeps damaging it must not be filled by that
LOGS: Final = ("-wal", "-shm", "-journal")
DAMAGED: Final = ".damaged-"
SET_ASIDE: Final = ".set-aside"  # behind the name of what is no database

# Primary codes (https://www.sqlite.org/rescode.html): SQLITE_CORRUPT, _CONSTRAINT, _MISMATCH, _NOTADB.
# Our statements break no constraint of a whole database.
_CODES: Final = frozenset({11, 19, 20, 26})
# SQLITE_IOERR_READ, _SHORT_READ, _CORRUPTFS: the disk does not give back what lay there.
_UNREADABLE: Final = frozenset({10 | 1 << 8, 10 | 2 << 8, 10 | 33 << 8})
_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\0"
_VERSIONS: Final = bytes((2, 2, 0, 64, 32, 32))  # written and read as WAL, nothing reserved; the rest is fixed
_SCHEMA_FORMATS: Final = tuple(number.to_bytes(4, "big") for number in range(5))
_ENCODINGS: Final = (bytes(4), (1).to_bytes(4, "big"))  # UTF-8, or not said before the first checkpoint

_CHANGED: Final = ("no such table", "no such column", "has no column", "could not decode", "already exists")


class StateDamagedError(StateError):
    """The bytes of a state database are not what was written: it is rebuilt, from its seal if there is one."""

    def __init__(self, message: str, *, hint: str = "", why: str = "") -> None:
        super().__init__(message, hint=hint)
        self.why = why or message


def check_header(path: Path, page_bytes: int | None = None) -> str:
    """What is wrong with the beginning of a WAL database that lost nothing; empty when nothing is.

    SQLite takes a changed version there for a file of another program or one that is read-only
    (https://www.sqlite.org/fileformat.html#the_database_header).

    Args:
        path: Of the database.
        page_bytes: The size of its pages where that is fixed.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
        return "it does not begin as a database does"
    if head[18:24] != _VERSIONS or head[44:48] not in _SCHEMA_FORMATS or head[56:60] not in _ENCODINGS:
        return "its header was changed"
    if page_bytes is not None and head[16:18] != page_bytes.to_bytes(2, "big"):
        return "its header names another size of page"
    return ""


def is_damage(error: BaseException) -> bool:
    """Whether an error of SQLite says that the file is not what was written."""
    if isinstance(error, UnicodeDecodeError):  # of a name in the schema, or of SQLite's own words about it
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int) and (code & 0xFF in _CODES or code in _UNREADABLE):
        return True
    # The statements are fixed, so a table or column that is not there was overwritten.
    return isinstance(error, sqlite3.Error) and any(word in str(error).lower() for word in _CHANGED)


def set_aside(path: Path, disk: Disk = DISK) -> Path | None:
    """Renames a database and its logs, so that another one can take the place; older kept ones go.

    The kept ones are numbered in their order, not by a clock, which may be years ahead and right again the next time.
    Safe to repeat after a cut: logs that were left behind follow their database. A new database put here never finds
    an old one's log.

    Returns:
        The damaged database's new path; None when nothing was there.
    """
    here = with_logs(path)
    if not here:
        return None
    before = kept(path)
    target = before[-1] if before and path not in here else _next(path, before)
    if any(_beside(target, path, part).exists() for part in here):
        target = _next(path, before)
    for part in here:
        disk.rename(part, _beside(target, path, part))
    for old in kept(path)[:-KEPT_FILES]:
        remove(old, disk)
    return target


def make_way(path: Path, disk: Disk = DISK) -> Path:
    """Renames what lies where a file or folder of ours belongs; of each name, the newest is kept.

    Returns:
        Where it is now.
    """
    target = path.with_name(path.name + SET_ASIDE)
    if target.is_dir() and not target.is_symlink():
        disk.remove_tree(target)
    else:
        disk.unlink(target)
    disk.rename(path, target)
    return target


def with_logs(path: Path) -> list[Path]:
    """A database and its logs, those of them that are there."""
    return [part for suffix in ("", *LOGS) if (part := path.with_name(path.name + suffix)).exists()]


def kept(path: Path, mark: str = DAMAGED) -> list[Path]:
    """The damaged files kept beside a database, oldest first; of one, there may be only a log.

    Args:
        path: Of the database.
        mark: What stands in their names before the number.
    """
    found: dict[int, Path] = {}
    for each in path.parent.glob(f"{path.stem}{mark}*{path.suffix}*"):
        name = each.name
        for suffix in LOGS:
            name = name.removesuffix(suffix)
        with contextlib.suppress(ValueError):
            found[_number(Path(name))] = path.with_name(name)
    return [found[number] for number in sorted(found)]


def mark_as(file: Path, mark: str, disk: Disk = DISK) -> None:
    """Gives a kept database and its logs another mark; safe to repeat after a cut."""
    target = file.with_name(file.name.replace(DAMAGED, mark, 1))
    for suffix in (*LOGS, ""):
        part = file.with_name(file.name + suffix)
        if part.exists():
            disk.rename(part, target.with_name(target.name + suffix))


def remove(file: Path, disk: Disk = DISK) -> None:
    """Deletes a kept database and its logs."""
    for suffix in (*LOGS, ""):
        disk.unlink(file.with_name(file.name + suffix))


def _next(path: Path, before: Sequence[Path]) -> Path:
    number = 1 + max((_number(file) for file in before), default=0)
    return path.with_name(f"{path.stem}{DAMAGED}{number}{path.suffix}")


def _number(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _beside(target: Path, path: Path, part: Path) -> Path:
    return target.with_name(target.name + part.name.removeprefix(path.name))
