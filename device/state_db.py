"""`state.db`: the update record, trust floors, refusals, and what waits to be told to the server.

Every change is one short transaction that is on the disk when the method returns (WAL, synchronous=FULL, both checked
on each connection), so a reader after a power cut sees all of it or nothing. The trust keeper, a process of its own,
opens the same file. Methods block: callers in an event loop use a thread. What the values mean is the callers'.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from device.update.states import UpdateRecord
from protocol.errors import Reason, StateError
from protocol.ids import Count, Digest, Millis, Version
from protocol.messages import Alert, UpdateStatus
from protocol.wire import Message, decode, encode

BUSY_S: Final = 20.0  # transactions take milliseconds; a slow card's flush may take seconds
RECORD_BYTES: Final = 1 << 20
STATUSES_KEPT: Final = 1024  # a machine that is never in range must not fill its disk with statuses
SCHEMA: Final = 1


class Refusal(Message):
    """A release that this machine will not install again until a person lifts it."""

    manifest: Digest
    release: Version
    reason: Reason
    at_ms: Millis
    detail: str = ""


class StateDb:
    """The database of one state folder. Safe to share between threads.

    Args:
        path: Made (mode 0600) when absent.

    Raises:
        StateError: It cannot be opened, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        with self._named_errors():
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Ends the connection. What was written is durable with or without it."""
        with self._lock:
            self._connection.close()

    # Values

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        rows = self._read("SELECT value FROM facts WHERE key = ?", (key,))
        return bytes(rows[0][0]) if rows else None

    def put(self, key: str, value: bytes) -> None:
        """Sets `key`."""
        with self._transaction() as connection:
            _put(connection, key, value)

    def change(self, key: str, make: Callable[[bytes | None], bytes]) -> None:
        """Sets `key` to what `make` gives for its value (None: there is none), in one transaction.

        Nobody else writes in between, in no process: a technician's command changes what the agent keeps.
        """
        with self._transaction() as connection:
            row = connection.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
            _put(connection, key, make(None if row is None else bytes(row[0])))

    def remove(self, key: str) -> None:
        """Forgets `key`; nothing happens when it is not there."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM facts WHERE key = ?", (key,))

    # Floors

    def floor(self, name: str) -> int:
        """The floor `name`, 0 when it was never set."""
        rows = self._read("SELECT value FROM floors WHERE name = ?", (name,))
        return int(rows[0][0]) if rows else 0

    def floors(self, prefix: str = "") -> dict[str, int]:
        """All floors whose names begin with `prefix`."""
        found = self._read("SELECT name, value FROM floors WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))
        return {str(name): int(value) for name, value in found}

    def raise_floor(self, name: str, value: int) -> None:
        """Raises the floor to `value`; a lower value changes nothing."""
        with self._transaction() as connection:
            _raise_floor(connection, name, value)

    # The update record

    def record(self) -> UpdateRecord:
        """The update record; a new one when none was written."""
        found = self.get("update/record")
        return UpdateRecord() if found is None else decode(found, UpdateRecord, limit=RECORD_BYTES)

    def write_record(
        self,
        record: UpdateRecord,
        *,
        floors: Mapping[str, int] | None = None,
        statuses: Iterable[UpdateStatus] = (),
        refusal: Refusal | None = None,
        facts: Mapping[str, bytes] | None = None,
    ) -> None:
        """Writes the record and all that belongs to the same step, in one transaction.

        Args:
            record: The new one.
            floors: Raised.
            statuses: Queued for the server.
            refusal: Remembered; the first one of a manifest stays.
            facts: Set, as by `put`.
        """
        with self._transaction() as connection:
            _put(connection, "update/record", encode(record))
            for name, value in (floors or {}).items():
                _raise_floor(connection, name, value)
            if refusal is not None:
                _add_refusal(connection, refusal)
            _tell(connection, statuses, facts or {})

    def tell(self, statuses: Iterable[UpdateStatus], facts: Mapping[str, bytes]) -> None:
        """Queues statuses together with the facts that say that they were told, in one transaction.

        A status whose id is queued already is kept once.
        """
        with self._transaction() as connection:
            _tell(connection, statuses, facts)

    # Refusals

    def refusals(self) -> tuple[Refusal, ...]:
        """All that is refused, oldest first."""
        rows = self._read("SELECT body FROM refusals ORDER BY rowid", ())
        return tuple(decode(bytes(body), Refusal, limit=RECORD_BYTES) for (body,) in rows)

    def lift_refusal(self, name: str) -> tuple[Refusal, ...]:
        """Forgets the refusals that a person names.

        Args:
            name: A release's version, or a manifest's digest (its first 8 digits or more will do).

        Returns:
            What was lifted; empty when nothing has this name.
        """
        with self._transaction() as connection:
            rows = connection.execute("SELECT body FROM refusals ORDER BY rowid").fetchall()
            found = tuple(decode(bytes(body), Refusal, limit=RECORD_BYTES) for (body,) in rows)
            lifted = tuple(
                refusal
                for refusal in found
                if refusal.release == name or (len(name) >= 8 and refusal.manifest.startswith(name))
            )
            connection.executemany(
                "DELETE FROM refusals WHERE manifest = ?", [(refusal.manifest,) for refusal in lifted]
            )
        return lifted

    # What waits for the server

    def pending_statuses(self, limit: int) -> tuple[UpdateStatus, ...]:
        """The oldest queued statuses, at most `limit`."""
        rows = self._read("SELECT body FROM statuses ORDER BY seq LIMIT ?", (limit,))
        return tuple(decode(bytes(body), UpdateStatus, limit=RECORD_BYTES) for (body,) in rows)

    def drop_statuses(self, ids: Iterable[str]) -> None:
        """Forgets statuses that the server has."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM statuses WHERE id = ?", [(name,) for name in ids])

    def add_alert(self, alert: Alert) -> None:
        """Queues an alert; the same id twice is kept once."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO alerts (id, body) VALUES (?, ?)", (alert.id, encode(alert)))
            _trim(connection, "alerts")

    def pending_alerts(self, limit: int) -> tuple[Alert, ...]:
        """The oldest queued alerts, at most `limit`."""
        rows = self._read("SELECT body FROM alerts ORDER BY seq LIMIT ?", (limit,))
        return tuple(decode(bytes(body), Alert, limit=RECORD_BYTES) for (body,) in rows)

    def drop_alerts(self, ids: Iterable[str]) -> None:
        """Forgets alerts that the server has."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM alerts WHERE id = ?", [(name,) for name in ids])

    # Counters

    def count(self, name: str, more: int) -> None:
        """Adds `more` to the running total `name`."""
        self.count_all({name: more}, {})

    def count_all(self, more: Mapping[str, int], facts: Mapping[str, bytes]) -> None:
        """Adds to several running totals, and sets the facts that say how far was counted, in one transaction."""
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = value + ?",
                [(name, value, value) for name, value in more.items()],
            )
            for key, value in facts.items():
                _put(connection, key, value)

    def counters(self) -> dict[str, Count]:
        """All running totals by name."""
        return {str(name): int(value) for name, value in self._read("SELECT name, value FROM counters", ())}

    # How

    def _prepare(self) -> None:
        connection = self._connection
        # A file that is not a database shows itself here, at the first read.
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous = FULL")
        synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
        if (mode, synchronous) != ("wal", 2):
            raise StateError(
                f"{self._path}: journal mode {mode} with synchronous {synchronous} would not survive a power cut",
                hint="the state folder must lie on a local file system with shared memory",
            )
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise StateError(f"{self._path} was written by a newer agent (schema {version}, known {SCHEMA})")
        if version < SCHEMA:
            with self._transaction():
                if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA:
                    _make_schema(connection)

    def _read(self, query: str, values: tuple[object, ...]) -> list[tuple[bytes, ...]]:
        with self._lock, self._named_errors():
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._named_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StateError(
                f"{self._path}: {error}", hint="the file may be damaged, or its disk full or read-only"
            ) from error


def _make_schema(connection: sqlite3.Connection) -> None:
    """Runs once in the life of a state folder: the library is imported here so that no running agent carries it."""
    from sqlite_utils import Database

    database = Database(connection)
    database.table("facts").create({"key": str, "value": bytes}, pk="key", not_null={"value"})
    database.table("floors").create({"name": str, "value": int}, pk="name", not_null={"value"})
    database.table("refusals").create({"manifest": str, "body": bytes}, pk="manifest", not_null={"body"})
    for table in ("statuses", "alerts"):
        database.table(table).create({"seq": int, "id": str, "body": bytes}, pk="seq", not_null={"id", "body"})
        database.table(table).create_index(["id"], unique=True)
    database.table("counters").create({"name": str, "value": int}, pk="name", not_null={"value"})
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _put(connection: sqlite3.Connection, key: str, value: bytes) -> None:
    connection.execute(
        "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value",
        (key, value),
    )


def _tell(connection: sqlite3.Connection, statuses: Iterable[UpdateStatus], facts: Mapping[str, bytes]) -> None:
    for status in statuses:
        _add_status(connection, status)
    for key, value in facts.items():
        _put(connection, key, value)


def _raise_floor(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute(
        "INSERT INTO floors (name, value) VALUES (?, ?)"
        " ON CONFLICT(name) DO UPDATE SET value = max(value, excluded.value)",
        (name, value),
    )


def _add_refusal(connection: sqlite3.Connection, refusal: Refusal) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO refusals (manifest, body) VALUES (?, ?)", (refusal.manifest, encode(refusal))
    )


def _add_status(connection: sqlite3.Connection, status: UpdateStatus) -> None:
    connection.execute("INSERT OR IGNORE INTO statuses (id, body) VALUES (?, ?)", (status.id, encode(status)))
    _trim(connection, "statuses")


def _trim(connection: sqlite3.Connection, table: str) -> None:
    """Drops the oldest beyond what is kept."""
    assert table in ("statuses", "alerts")
    connection.execute(
        f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?",  # noqa: S608  (one of two names of ours)
        (STATUSES_KEPT,),
    )
