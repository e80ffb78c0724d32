"""`state.db`: the update record, trust floors, refusals, and what waits to be told to the server.

Every change is one short transaction that is on the disk when the method returns (WAL, synchronous=FULL, both checked
on each connection), so a reader after a power cut sees all of it or nothing. The trust keeper, a process of its own,
opens the same file. Methods block: callers in an event loop use a thread. What the values mean is the callers'.

Commits, refusals and floors are sealed as well (`device.seal`) before their method returns. Facts carry a checksum,
for SQLite does not notice when the disk changes a value.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from device import clock
from device.damage import StateDamagedError, check_header, is_damage
from device.refusals import Refusal
from device.seal import Sealed, Seals
from device.update.states import UpdateRecord
from protocol.errors import Refused, StateError
from protocol.ids import Count
from protocol.messages import Alert, UpdateStatus
from protocol.wire import Message, decode, encode
from signing.durable import DISK, Disk

LOG: Final = logging.getLogger("headland.state")
BUSY_S: Final = 20.0  # transactions take milliseconds; a slow card's flush may take seconds
RECORD_BYTES: Final = 1 << 20
STATUSES_KEPT: Final = 1024  # a machine that is never in range must not fill its disk with statuses
MOST: Final = 1 << 53  # as `protocol.ids.Count`
SCHEMA: Final = 1
RECORD: Final = "update/record"
SERIAL: Final = "seal/serial"
RECOVERING: Final = "state/recovering"
"""Set while what ran here is still to be heard from the server: see `device.recovery`."""
SEALED_FACTS: Final = (clock.KEY, RECOVERING)

M = TypeVar("M", bound=Message)


class StateDb:
    """The database of one state folder. Safe to share between threads.

    Args:
        path: Made (mode 0600) when absent, if `create`. None keeps everything in memory, for a machine whose disk
            takes nothing: it lasts as long as the process.
        create: Whether it may be made. Where one must be there already, an absent or empty file is damage.
        sealed: Whether its seal is kept up.
        disk: Through which the seal is written.
        on_damage: Called with the reason wherever damage shows itself, in the thread that met it.

    Raises:
        StateDamagedError: It is not what was written.
        StateError: It cannot be opened.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        create: bool = True,
        sealed: bool = True,
        disk: Disk = DISK,
        on_damage: Callable[[str], None] | None = None,
    ) -> None:
        self._path = path
        self._seals = Seals(path, disk) if path is not None and sealed else None
        self.on_damage = on_damage
        self._lock = threading.RLock()
        self.seal_trouble = ""
        """Why the seal is behind; empty when it is not. It is tried again at the next occasion."""
        self._owes_both = False  # a change that is to stand in both generations is not there yet
        with self._named_errors():
            self._connection = self._connect(create)
            try:
                self._prepare(create)
            except BaseException:
                self._connection.close()
                raise

    @property
    def is_in_memory(self) -> bool:
        """Whether it ends with the process."""
        return self._path is None

    @property
    def is_recovering(self) -> bool:
        """Whether what ran here is still to be heard from the server, and offers wait for that."""
        return self.get(RECOVERING) is not None

    def close(self) -> None:
        """Ends the connection. What was written is durable with or without it."""
        with self._lock:
            self._connection.close()

    # Values

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        rows = self._read("SELECT key, value, crc FROM facts WHERE key = ?", (key,))
        return self._whole(rows[0]) if rows else None

    def put(self, key: str, value: bytes, *, seal: bool = False) -> None:
        """Sets `key`.

        Args:
            key: Of any fact.
            value: Its new value.
            seal: Counts it among the sealed changes: a database that went back behind it shows by its seal.
        """
        seal = seal or key in SEALED_FACTS
        with self._transaction() as connection:
            _put(connection, key, value)
            if seal:
                _count_change(connection)
        if seal:
            self.seal()

    def change(self, key: str, make: Callable[[bytes | None], bytes | None]) -> None:
        """Sets `key` to what `make` gives for its value (None: there is none), in one transaction.

        Nobody else writes in between, in no process: the trust keeper and a technician's command change what the agent
        keeps. Where `make` gives None, nothing is written.
        """
        with self._transaction() as connection:
            row = connection.execute("SELECT key, value, crc FROM facts WHERE key = ?", (key,)).fetchone()
            made = make(None if row is None else self._whole(row))
            if made is None:
                return
            _put(connection, key, made)
            if key in SEALED_FACTS:
                _count_change(connection)
        if key in SEALED_FACTS:
            self.seal()

    def remove(self, key: str) -> None:
        """Forgets `key`; nothing happens when it is not there."""
        assert key not in SEALED_FACTS
        with self._transaction() as connection:
            connection.execute("DELETE FROM facts WHERE key = ?", (key,))

    # Floors

    def floor(self, name: str) -> int:
        """The floor `name`, 0 when it was never set."""
        return self._numbers(self._read("SELECT name, value FROM floors WHERE name = ?", (name,))).get(name, 0)

    def floors(self, prefix: str = "") -> dict[str, int]:
        """All floors whose names begin with `prefix`."""
        return self._numbers(
            self._read("SELECT name, value FROM floors WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))
        )

    def raise_floor(self, name: str, value: int) -> None:
        """Raises the floor to `value`; a lower value changes nothing. Whoever raises several seals once, at the end."""
        with self._transaction() as connection:
            _raise_floor(connection, name, value)
            _count_change(connection)

    # The update record

    def record(self) -> UpdateRecord:
        """The update record; a new one when none was written."""
        found = self.get(RECORD)
        return UpdateRecord() if found is None else self._parse(found, UpdateRecord)

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

        A commit and a refusal are in both generations of the seal when it returns.

        Args:
            record: The new one.
            floors: Raised.
            statuses: Queued for the server.
            refusal: Remembered; the first one of a manifest stays.
            facts: Set, as by `put`.
        """
        seal = bool(floors) or refusal is not None
        with self._transaction() as connection:
            _put(connection, RECORD, encode(record))
            for name, value in (floors or {}).items():
                _raise_floor(connection, name, value)
            if refusal is not None:
                _add_refusal(connection, refusal)
            _tell(connection, statuses, facts or {})
            if seal:
                _count_change(connection)
        if seal:
            self.seal(both=True)

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
        return self._parse_all(rows, Refusal)

    def lift_refusal(self, name: str) -> tuple[Refusal, ...]:
        """Forgets the refusals that a person names.

        Args:
            name: A release's version, or a manifest's digest (its first 8 digits or more will do).

        Returns:
            What was lifted; empty when nothing has this name.
        """
        with self._transaction() as connection:
            rows = connection.execute("SELECT body FROM refusals ORDER BY rowid").fetchall()
            found = self._parse_all(rows, Refusal)
            lifted = tuple(
                refusal
                for refusal in found
                if refusal.release == name or (len(name) >= 8 and refusal.manifest.startswith(name))
            )
            connection.executemany(
                "DELETE FROM refusals WHERE manifest = ?", [(refusal.manifest,) for refusal in lifted]
            )
            if lifted:
                _count_change(connection)
        if lifted:
            self.seal(both=True)
        return lifted

    # What waits for the server

    def pending_statuses(self, limit: int) -> tuple[UpdateStatus, ...]:
        """The oldest queued statuses, at most `limit`."""
        rows = self._read("SELECT body FROM statuses ORDER BY seq LIMIT ?", (limit,))
        return self._parse_all(rows, UpdateStatus)

    def drop_statuses(self, ids: Iterable[str]) -> None:
        """Forgets statuses that the server has."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM statuses WHERE id = ?", [(name,) for name in ids])

    def add_alert(self, alert: Alert) -> None:
        """Queues an alert; the same id twice is kept once."""
        with self._transaction() as connection:
            _add_alert(connection, alert)

    def pending_alerts(self, limit: int) -> tuple[Alert, ...]:
        """The oldest queued alerts, at most `limit`."""
        rows = self._read("SELECT body FROM alerts ORDER BY seq LIMIT ?", (limit,))
        return self._parse_all(rows, Alert)

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
        return self._numbers(self._read("SELECT name, value FROM counters", ()))

    # Seal and check

    def sealed(self) -> Sealed:
        """What a seal of now would hold."""
        with self._transaction() as connection:
            return self._sealed(connection)

    def seal(self, *, both: bool = False) -> None:
        """Renews the seal where it is behind. A disk that takes none now is no reason to stop: `seal_trouble` says so.

        Args:
            both: Leaves no generation that is older.
        """
        if self._seals is None:
            return
        with self._transaction() as connection:  # nobody else changes or seals anything meanwhile
            now, newest = self._sealed(connection), self._seals.newest()
            self._owes_both = self._owes_both or both
            serial = newest.serial if newest is not None else -1
            # One that is ahead stays: by that a database that went back shows.
            if serial < now.serial or (serial == now.serial and self._owes_both and self._seals.behind(serial)):
                try:
                    self._seals.write(now, both=self._owes_both)
                except OSError as error:
                    if not self.seal_trouble:
                        LOG.warning("the seal of %s is behind: %s", self._path, error)
                    self.seal_trouble = str(error)
                    return
            self._owes_both = False
        self.seal_trouble = ""

    def restore(self, sealed: Sealed, facts: Mapping[str, bytes], alert: Alert) -> None:
        """Makes a fresh database hold what was sealed, as the change after it, in one transaction.

        Args:
            sealed: By the seal, or by what else is known.
            facts: Set beside it.
            alert: Says why.
        """
        record = UpdateRecord(
            active=sealed.committed.digest if sealed.committed is not None else None,
            committed=sealed.committed,
            previous=sealed.previous,
        )
        with self._transaction() as connection:
            _put(connection, RECORD, encode(record))
            for name, value in sealed.floors.items():
                _raise_floor(connection, name, value)
            for refusal in sealed.refusals:
                _add_refusal(connection, refusal)
            for key, text in sealed.facts.items():
                _put(connection, key, text.encode())
            for key, fact in facts.items():
                _put(connection, key, fact)
            _put(connection, SERIAL, b"%d" % (sealed.serial + 1))
            _add_alert(connection, alert)
        self.seal(both=True)

    def recover(self, floors: Mapping[str, int]) -> None:
        """Raises floors and ends what `RECOVERING` says, in one transaction, sealed on return."""
        with self._transaction() as connection:
            for name, value in floors.items():
                _raise_floor(connection, name, value)
            connection.execute("DELETE FROM facts WHERE key = ?", (RECOVERING,))
            _count_change(connection)
        self.seal(both=True)

    def check(self) -> None:
        """Reads all of it and holds it against the seal.

        Raises:
            StateDamagedError: With what was found.
        """
        with self._transaction() as connection:
            found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(3)")]
            if found != ["ok"]:
                raise self._damaged(" ".join("; ".join(found).split()))
            for row in connection.execute("SELECT key, value, crc FROM facts"):
                self._whole(row)
            self._numbers(connection.execute("SELECT name, value FROM counters"))
            now = self._sealed(connection)
            # Still inside: another process may change the database and seal that as soon as it can.
            newest = self._seals.newest() if self._seals is not None else None
        self.record()
        self.pending_statuses(STATUSES_KEPT)
        self.pending_alerts(STATUSES_KEPT)
        if newest is not None and now.serial < newest.serial:
            raise self._damaged(f"it went back: change {now.serial} is its last, {newest.serial} was sealed")
        if newest is not None and now.serial == newest.serial and now != newest:
            raise self._damaged(f"it is not what was sealed after change {now.serial}")

    # How

    def _connect(self, create: bool) -> sqlite3.Connection:
        path = self._path
        if path is None:
            return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        if create and not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        if not create and (not path.exists() or not path.stat().st_size):
            raise self._damaged("it is empty" if path.exists() else "it is missing")
        if not create and (why := check_header(path)):
            raise self._damaged(why)
        return sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=rw",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )

    def _prepare(self, create: bool) -> None:
        connection = self._connection
        # A file that is not a database shows itself here, at the first read.
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous = FULL")
        synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
        if self._path is not None and (mode, synchronous) != ("wal", 2):
            raise StateError(
                f"{self._path}: journal mode {mode} with synchronous {synchronous} would not survive a power cut",
                hint="the state folder must lie on a local file system with shared memory",
            )
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            newest = self._seals.newest() if self._seals is not None else None
            if newest is not None and newest.schema <= SCHEMA:  # a newer agent would have sealed it, too
                raise self._damaged(f"it says that its schema is {version}")
            raise StateError(f"{self._path} was written by a newer agent (schema {version}, known {SCHEMA})")
        if version < SCHEMA:
            with self._transaction():
                if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA:
                    if not create or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise self._damaged(f"it says that its schema is {version}")
                    _make_schema(connection)
            self.seal(both=True)

    def _sealed(self, connection: sqlite3.Connection) -> Sealed:
        facts = {}
        for key in (SERIAL, RECORD, *SEALED_FACTS):
            row = connection.execute("SELECT key, value, crc FROM facts WHERE key = ?", (key,)).fetchone()
            if row is not None:
                facts[key] = self._whole(row)
        record = self._parse(facts[RECORD], UpdateRecord) if RECORD in facts else UpdateRecord()
        return Sealed(
            format=1,
            schema=SCHEMA,
            serial=int(facts.get(SERIAL, b"0")),
            committed=record.committed,
            previous=record.previous,
            floors=self._numbers(connection.execute("SELECT name, value FROM floors")),
            refusals=self._parse_all(connection.execute("SELECT body FROM refusals ORDER BY rowid"), Refusal),
            facts={key: facts[key].decode() for key in SEALED_FACTS if key in facts},
        )

    def _whole(self, row: tuple[object, ...]) -> bytes:
        """The value of a fact."""
        key, value, crc = row
        if not isinstance(key, str) or not isinstance(value, bytes) or crc != _crc(key, value):
            raise self._damaged(f"the fact {key!r} is not what was written")
        return value

    def _numbers(self, rows: Iterable[tuple[object, ...]]) -> dict[str, int]:
        found = {}
        for name, value in rows:
            if not isinstance(name, str) or not isinstance(value, int) or not 0 <= value <= MOST:
                raise self._damaged(f"{name!r} was never {value!r:.40}")
            found[name] = value
        return found

    def _parse(self, data: object, kind: type[M]) -> M:
        if not isinstance(data, bytes):
            raise self._damaged(f"a {kind.__name__} of another type")
        try:
            return decode(data, kind, limit=RECORD_BYTES)
        except Refused as error:
            raise self._damaged(error.message) from error

    def _parse_all(self, rows: Iterable[tuple[object, ...]], kind: type[M]) -> tuple[M, ...]:
        return tuple(self._parse(body, kind) for (body,) in rows)

    def _damaged(self, why: str) -> StateDamagedError:
        if self.on_damage is not None:
            self.on_damage(why)
        return StateDamagedError(
            f"{self._path} is damaged: {why}",
            hint="the agent makes it anew when it starts; so does `headland-device doctor --fix`",
            why=why,
        )

    def _read(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
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
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            if is_damage(error):
                raise self._damaged(str(error)) from error
            raise StateError(f"{self._path}: {error}", hint="its disk may be full, failing or read-only") from error


def _crc(key: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key.encode()))


def _make_schema(connection: sqlite3.Connection) -> None:
    """Runs once in the life of a state folder: the library is imported here so that no running agent carries it."""
    from sqlite_utils import Database

    database = Database(connection)
    database.table("facts").create({"key": str, "value": bytes, "crc": int}, pk="key", not_null={"value", "crc"})
    database.table("floors").create({"name": str, "value": int}, pk="name", not_null={"value"})
    database.table("refusals").create({"manifest": str, "body": bytes}, pk="manifest", not_null={"body"})
    for table in ("statuses", "alerts"):
        database.table(table).create({"seq": int, "id": str, "body": bytes}, pk="seq", not_null={"id", "body"})
        database.table(table).create_index(["id"], unique=True)
    database.table("counters").create({"name": str, "value": int}, pk="name", not_null={"value"})
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _put(connection: sqlite3.Connection, key: str, value: bytes) -> None:
    connection.execute(
        "INSERT INTO facts (key, value, crc) VALUES (?, ?, ?)"
        " ON CONFLICT(key) DO UPDATE SET value = excluded.value, crc = excluded.crc",
        (key, value, _crc(key, value)),
    )


def _count_change(connection: sqlite3.Connection) -> None:
    """In the transaction of a change that is sealed."""
    row = connection.execute("SELECT value FROM facts WHERE key = ?", (SERIAL,)).fetchone()
    _put(connection, SERIAL, b"%d" % (1 if row is None else int(row[0]) + 1))


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


def _add_alert(connection: sqlite3.Connection, alert: Alert) -> None:
    connection.execute("INSERT OR IGNORE INTO alerts (id, body) VALUES (?, ?)", (alert.id, encode(alert)))
    _trim(connection, "alerts")


def _trim(connection: sqlite3.Connection, table: str) -> None:
    """Drops the oldest beyond what is kept."""
    assert table in ("statuses", "alerts")
    connection.execute(
        f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?",  # noqa: S608  (one of two names of ours)
        (STATUSES_KEPT,),
    )
