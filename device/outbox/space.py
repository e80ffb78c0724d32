"""Giving space back to the file system: a few pages at a time, so that new rows never wait for long.

Free pages stay in the file as a rule, for the next rows. They go when the file is over its budget or the disk is low;
then rows that the server has receipted go as well, which are kept only for as long as there is room.
"""

import sqlite3
from typing import Final

from device.outbox import schema
from device.outbox.core import Core
from device.outbox.room import delete_receipted

RECEIPTED_ROWS: Final = 500  # deleted in one transaction
PAGES: Final = 64  # moved in one transaction: a quarter of a megabyte of log


def step(core: Core, *, receipted: bool) -> bool:
    """One short piece of work in the writing thread. Returns whether there may be more.

    Args:
        core: The outbox.
        receipted: Whether rows that were receipted go too.
    """
    if schema.free_pages(core.connection):
        with core.watched():
            # It moves one page a step, and `execute` takes one step where there is nothing to fetch.
            core.connection.executescript(f"PRAGMA incremental_vacuum({PAGES})")
        return True
    return receipted and bool(core.transact(lambda draft: delete_receipted(draft, RECEIPTED_ROWS)))


def finish(core: Core) -> None:
    """Has the file system take what was given back. Waits for nobody: a reader in the way means the next time."""
    connection = core.connection
    with core.alone() as alone:
        if not alone:
            return
        connection.execute("PRAGMA busy_timeout=0")
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
        finally:
            connection.execute(f"PRAGMA busy_timeout={int(schema.BUSY_S * 1000)}")


def is_over(core: Core) -> bool:
    """Whether the file is longer than the budget allows, and could be shorter."""
    return core.pages_bytes() > core.budget_bytes and schema.free_pages(core.connection) > 0
