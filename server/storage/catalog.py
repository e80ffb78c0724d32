"""The catalog: what the server knows, in SQLite beside it or in PostgreSQL by URL.

Work is done in a `Session`, which is one transaction: `read` sees one moment, `write` happens wholly and durably or
not at all. Calls block: from an event loop they go through a thread.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, ProgrammingError

import server.migrations
from protocol.errors import LinkError, StateError
from server.storage.condemned import Condemned
from server.storage.devices import Devices
from server.storage.events import Events
from server.storage.facts import Facts
from server.storage.fleet import Fleet
from server.storage.jobs import Jobs
from server.storage.patches import Patches
from server.storage.payloads import Payloads
from server.storage.receipts import Receipts
from server.storage.repository import Repositories
from server.storage.results import Results
from server.storage.rollouts import Rollouts
from server.storage.tokens import Tokens

log = logging.getLogger("headland.server")

BUSY_TIMEOUT_S = 30  # another process (`status`, a backup) holds SQLite for moments, not for longer

ANOTHER_VERSION: Final = "another version of headland-server made or changed it: the server's log says what is amiss"
HINTS: Final = {
    "SQLITE_FULL": "its disk is full",
    "SQLITE_IOERR": "its disk fails: the server's log says how",
    "SQLITE_READONLY": "its folder or disk is read-only",
    "SQLITE_BUSY": "another program holds it",
    "SQLITE_CORRUPT": "it is damaged: `headland-server restore` makes a state folder out of a backup",
    "SQLITE_NOTADB": "it is damaged: `headland-server restore` makes a state folder out of a backup",
    "SQLITE_ERROR": ANOTHER_VERSION,
}
"""What to do, by SQLite's own name of the error."""


class Session:
    """One transaction, by subject. Used inside `Catalog.read` or `Catalog.write` and not kept."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def facts(self) -> Facts:
        """Single values: generation, versions, secrets of the server itself."""
        return Facts(self._connection)

    @cached_property
    def devices(self) -> Devices:
        """Machines, what they reported, their statuses and alerts."""
        return Devices(self._connection)

    @cached_property
    def tokens(self) -> Tokens:
        """Enrolment and operator tokens, by the hash of their secret."""
        return Tokens(self._connection)

    @cached_property
    def repositories(self) -> Repositories:
        """Signed metadata, what is served of it, and the releases that it lists."""
        return Repositories(self._connection)

    @cached_property
    def payloads(self) -> Payloads:
        """Blobs that came in, and the payloads made of them."""
        return Payloads(self._connection)

    @cached_property
    def patches(self) -> Patches:
        """Patches: wanted, made, failed."""
        return Patches(self._connection)

    @cached_property
    def fleet(self) -> Fleet:
        """What machines hold of what releases name."""
        return Fleet(self._connection)

    @cached_property
    def jobs(self) -> Jobs:
        """The work that is waiting."""
        return Jobs(self._connection)

    @cached_property
    def condemned(self) -> Condemned:
        """Blobs that may go."""
        return Condemned(self._connection)

    @cached_property
    def rollouts(self) -> Rollouts:
        """Rollouts and the machines that have a place in them."""
        return Rollouts(self._connection)

    @cached_property
    def results(self) -> Results:
        """Ingested rows, losses, conflicts."""
        return Results(self._connection)

    @cached_property
    def receipts(self) -> Receipts:
        """Receipts that wait for their machine."""
        return Receipts(self._connection)

    @cached_property
    def events(self) -> Events:
        """The audit trail."""
        return Events(self._connection)


class Catalog:
    """Opens the catalog.

    Args:
        url: An SQLAlchemy URL: `sqlite:////absolute/path/catalog.db`, `postgresql+psycopg://...`.
        migrate: Make its tables, or bring them to this version. Not by what may work beside a server: that one may be
            older.

    Raises:
        StateError: It is of a newer version; or of another one at all, or not there, without `migrate`.
        LinkError: The database is away, the disk is full.
    """

    def __init__(self, url: str, *, migrate: bool = True) -> None:
        parsed = make_url(url)
        self._embedded = parsed.get_backend_name() == "sqlite"
        arguments: dict[str, Any] = {"pool_pre_ping": not self._embedded}
        if self._embedded:
            arguments["connect_args"] = {"timeout": BUSY_TIMEOUT_S}
        self._engine = create_engine(parsed, **arguments)
        # SQLite has one writer: waiting here is fair and cheap, waiting inside SQLite is a sleep that grows.
        self._writing = threading.Lock()
        if self._embedded:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        try:
            if migrate:
                self._migrate()
            else:
                self._check(parsed.database)
        except Exception:
            self.close()
            raise
        if self._embedded and parsed.database:
            Path(parsed.database).chmod(0o600)  # SQLite gives its journal files the same mode

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one moment and changes nothing."""
        with _in_our_words(), self._engine.connect() as connection:
            yield Session(connection)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is durable once the block has ended, and never happened when it raised.

        Raises:
            LinkError: The disk is full, the database is away: the same may go well later.
        """
        with _in_our_words():
            if not self._embedded:
                with self._engine.begin() as connection:
                    yield Session(connection)
                return
            with self._writing, self._writer() as connection, connection.begin():
                yield Session(connection)

    def close(self) -> None:
        """Lets go of all connections."""
        self._engine.dispose()

    def _writer(self) -> Connection:
        return self._engine.connect().execution_options(headland_write=True)

    def _migrate(self) -> None:
        config = _migrations()
        with _in_our_words(), self._writing, self._writer() as connection:
            _demand_known(connection, ScriptDirectory.from_config(config))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()

    def _check(self, database: str | None) -> None:
        if self._embedded and database and not Path(database).exists():
            raise StateError(f"{database} is missing", hint="`headland-server restore` brings one back from a backup")
        scripts = ScriptDirectory.from_config(_migrations())
        with _in_our_words(), self._engine.connect() as connection:
            here = _demand_known(connection, scripts)
        if here != scripts.get_current_head():
            raise StateError(
                f"the catalog is of version {here or 'none'}, and this program works with {scripts.get_current_head()}",
                hint="back it up, then start this version's server: it brings the catalog up to date",
            )


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(server.migrations.__file__).parent))
    return config


def _demand_known(connection: Connection, scripts: ScriptDirectory) -> str | None:
    here = MigrationContext.configure(connection).get_current_revision()
    if here is not None and here not in {script.revision for script in scripts.walk_revisions()}:
        raise StateError(
            f"the catalog is of version {here}, and this program knows up to {scripts.get_current_head()}",
            hint="run the newer headland-server, or restore a backup that an older one made",
        )
    return here


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError):
        raise  # of a row that should not have come here, and not of the database
    except DatabaseError as error:
        log.warning("the catalog: %s", error.orig)
        raise LinkError("the catalog does not work", hint=_hint(error)) from error


def _hint(error: DatabaseError) -> str:
    if isinstance(error, ProgrammingError):
        return ANOTHER_VERSION
    name = getattr(error.orig, "sqlite_errorname", "")  # such as SQLITE_IOERR_WRITE
    return HINTS.get("_".join(name.split("_")[:2]), "the server's log says why")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Every connection: we begin transactions ourselves, and what is committed survives a power cut.

    WAL with synchronous=NORMAL loses acknowledged rows after a cut, and a receipt makes the device delete its copy.
    """
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    if mode != "wal" or level != 2:
        raise RuntimeError(f"SQLite keeps journal_mode={mode}, synchronous={level} where WAL and FULL were set")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock later can fail and leave nothing to wait for.
    immediate = connection.get_execution_options().get("headland_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
