"""The outbox's database: its tables, and connections whose durability was checked, not hoped for.

WAL with synchronous=FULL: with NORMAL a power cut takes acknowledged rows, with FULL it takes none. Both are set and
read back on each connection, since SQLite falls back without a word where a file system cannot do WAL.

SQLite's pages carry no checksums, so the rows here do: each table has a column `seal`. Pages that are no longer needed
can be given back to the file system a few at a time (incremental vacuum).
"""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from device import damage
from device.outbox.keys import seal
from protocol.errors import StateError
from signing import durable

BUSY_S: Final = 5.0
WAL_KEPT_BYTES: Final = 8 << 20  # a large deletion makes the log long: it is cut back at the next checkpoint
VERSION: Final = 1
FORMAT: Final = "format"  # the version once more, sealed: a damaged version is not a newer agent's

PAGE_BYTES: Final = 4096  # salvage counts on it
# The bytes of a row, of whatever type a flipped bit makes them: SQLite gives a text back as it lies there, or none.
BODY: Final = "COALESCE(CAST(body AS BLOB), x'')"
ACCOUNTS: Final = ("meta", "epochs", "lanes", "spans", "losses", "moments", "frames")

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
    """Whether the file's content is at fault, as opposed to the disk being full or the file being busy.

    Queries are fixed and fit the schema: one that fails as such met accounts that are not ours.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_ERROR or damage.is_damage(error)


def damaged(why: str) -> sqlite3.DatabaseError:
    """The error of a file whose content is at fault, where SQLite itself saw nothing."""
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def sealed(connection: sqlite3.Connection, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Rows of accounts whose last column is their seal; they come without it.

    Raises:
        sqlite3.DatabaseError: One does not have its seal: `is_damage`.
    """
    for *columns, mark in connection.execute(query, values):
        if seal(*columns) != mark:
            raise damaged("accounts do not have their seal")
        yield tuple(columns)


def check(connection: sqlite3.Connection, whole_bytes: int) -> None:
    """Looks for damage: in the whole file where it is at most `whole_bytes` long, else in the accounts.

    Raises:
        sqlite3.DatabaseError: There is some.
    """
    small = used_bytes(connection) <= whole_bytes
    for verdict in ["quick_check(1)"] if small else [f"quick_check({table})" for table in ACCOUNTS]:
        found = connection.execute(f"PRAGMA {verdict}").fetchone()[0]
        if found != "ok":
            raise damaged(str(found))


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk could not take the bytes."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in FULL_CODES


def is_unsure(error: sqlite3.Error) -> bool:
    """Whether the disk erred while it wrote: what was asked of it may be done, or not."""
    return not is_damage(error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the file has no tables yet: it was made a moment ago, or cut while it was."""
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)


def was_cut_while_made(path: Path) -> bool:
    """Whether the power went before the file was in WAL mode: no row was ever in it, and a reader cannot open it.

    The journal of that one change is gone for good with the first commit, which syncs the folder for its log.
    """
    journal = path.with_name(f"{path.name}-journal")
    return journal.exists() and not (path.exists() and path.stat().st_size > PAGE_BYTES)


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Looks at the format.

    Raises:
        StateError: A newer agent wrote it.
        sqlite3.DatabaseError: It is none that was ever written.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        return
    if version < VERSION or (FORMAT, str(VERSION)) in sealed(connection, "SELECT key, value, seal FROM meta"):
        raise damaged("its version is not that of its accounts")
    raise StateError(f"{path.name} was written by a newer agent (format {version}, this one knows {VERSION})")


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the database takes on the disk, free pages left out: what the budget is held against."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return int((pages - free) * PAGE_BYTES)


def check_header(path: Path) -> None:
    """Looks at the fields of the file's header that never change.

    SQLite takes some of them at their word: one flipped bit makes a file read-only, or another size of page.

    Raises:
        sqlite3.DatabaseError: They are not what this module writes.
    """
    if path.stat().st_size and (why := damage.check_header(path, PAGE_BYTES)):
        raise damaged(why)


def free_pages(connection: sqlite3.Connection) -> int:
    """Pages that hold nothing and still take room on the disk."""
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    # A damaged text must come to the check of its seal, and not end in an error of its own.
    connection.text_factory = lambda text: text.decode(errors="replace")
    try:
        if not read_only:
            _make_durable(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_durable(connection: sqlite3.Connection, path: Path) -> None:
    # The first two count only as long as the file is empty: they say how its pages are laid out.
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
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
    if is_empty(connection):
        _create(connection)
    else:
        check_version(connection, path)


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _create(connection: sqlite3.Connection) -> None:
    # Imported here: the tables are made once in a machine's life, and the library would cost each idle agent 14 MiB.
    from sqlite_utils import Database

    database = Database(connection)
    with database.atomic():
        database.table("meta").create({"key": str, "value": str, "seal": int}, pk="key", strict=True)
        database.table("epochs").create({"no": int, "token": str, "made_ms": int, "seal": int}, pk="no", strict=True)
        database.table("rows").create(
            {"id": int, "seal": int, "body": bytes},  # in this order: `carving.py` looks for it
            pk="id",
            not_null=("seal", "body"),
            strict=True,
        )
        database.table("lanes").create(
            {
                "epoch": int,
                "lane": str,
                "next_seq": int,
                "sent_before": int,
                "folded_gone": int,
                "folded_moved": int,
                "folded_lost": int,
                "seal": int,
            },
            pk=("epoch", "lane"),
            strict=True,
        )
        database.table("spans").create(
            {"epoch": int, "lane": str, "kind": str, "first": int, "last": int, "seal": int},
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
                "seal": int,
            },
            pk="id",
            strict=True,
        )
        database.table("moments").create(
            {
                "epoch": int,
                "lane": str,
                "next_seq": int,
                "boot_id": str,
                "boot_ms": int,
                "sure_ms": int,
                "seal": int,
            },
            pk=("epoch", "lane", "next_seq"),
            strict=True,
        )
        database.table("frames").create({"name": str, "content": str, "seal": int}, pk="name", strict=True)
        database.execute("INSERT INTO meta VALUES (?, ?, ?)", (FORMAT, str(VERSION), seal(FORMAT, str(VERSION))))
        database.execute(f"PRAGMA user_version={VERSION}")
