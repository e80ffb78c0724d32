"""The outbox's database: its tables, and connections whose durability was checked, not hoped for.

WAL with synchronous=FULL: with NORMAL a power cut takes acknowledged rows, with FULL it takes none. Both are set and
read back on each connection, since SQLite falls back without a word where a file system cannot do WAL.
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

from protocol.errors import StateError
from signing import durable

BUSY_S: Final = 5.0
WAL_KEPT_BYTES: Final = 8 << 20  # a large deletion makes the log long: it is cut back at the next checkpoint
VERSION: Final = 1

CORRUPT_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
FULL_CODES: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})


def open_writer(path: Path) -> sqlite3.Connection:
    """A connection for the writing thread; makes file and tables when there are none.

    Raises:
        sqlite3.DatabaseError: The file is damaged.
        StateError: The file system cannot hold it durably, or a newer agent wrote it.
    """
    fresh = not path.exists()
    if fresh:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    connection = _connect(path, read_only=False)
    try:
        _bring_up(connection, path)
        if fresh:
            durable.sync_dir(path.parent)
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads; the writer goes on beside it."""
    return _connect(path, read_only=True)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file's content is at fault, as opposed to the disk being full or the file being busy."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in CORRUPT_CODES


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk could not take the bytes."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in FULL_CODES


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the database takes on the disk, free pages left out: what the budget is held against."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    return int((pages - free) * size)


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if not read_only:
            _make_durable(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_durable(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(f"PRAGMA journal_size_limit={WAL_KEPT_BYTES}")
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous=FULL")
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    if mode != "wal" or level != 2:
        raise StateError(
            f"{path}: this file system gives journal_mode={mode}, synchronous={level}; WAL and FULL are needed",
            hint="put the state folder on a local disk",
        )


def _bring_up(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StateError(f"{path.name} was written by a newer agent (format {version}, this one knows {VERSION})")
    if version < VERSION:
        _create(connection)


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _create(connection: sqlite3.Connection) -> None:
    # Imported here: the tables are made once in a machine's life, and the library would cost each idle agent 14 MiB.
    from sqlite_utils import Database

    database = Database(connection)
    with database.atomic():
        database.table("meta").create({"key": str, "value": str}, pk="key", strict=True)
        database.table("epochs").create({"no": int, "token": str, "made_ms": int}, pk="no", strict=True)
        database.table("rows").create(
            {"epoch": int, "lane": str, "seq": int, "body": bytes, "sha256": bytes},
            pk=("epoch", "lane", "seq"),
            not_null=("body", "sha256"),
            strict=True,
        )
        database.table("lanes").create(
            {"epoch": int, "lane": str, "next_seq": int, "sent_before": int}, pk=("epoch", "lane"), strict=True
        )
        database.table("spans").create(
            {"epoch": int, "lane": str, "kind": str, "first": int, "last": int},
            pk=("epoch", "lane", "kind", "first"),
            strict=True,
        )
        database.table("losses").create(
            {
                "id": int,
                "epoch": int,
                "lane": str,
                "first": int,
                "last": int,
                "reason": str,
                "at_ms": int,
                "exact": int,
                "offered": int,
                "receipted": int,
            },
            pk="id",
            strict=True,
        )
        database.execute(f"PRAGMA user_version={VERSION}")
