"""In the place of an outbox that its disk does not let open: inference and alarms go on, no row is kept.

It refuses each row as an outbox on a full disk does, so the pump tries again, and counts what it has to give up. Once
there is room the agent takes all parts up anew, and with them the real outbox; what is in that was never touched.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from device.day import Instant
from device.outbox import schema
from device.outbox.book import FrameMark
from device.outbox.box import Mark, Outbox
from device.outbox.writer import Frames, Rows
from protocol.errors import StateError

LOG: Final = logging.getLogger("headland.agent")


class UnopenedOutbox(Outbox):
    """See the module. For a machine that speaks to no server meanwhile.

    Args:
        why: It could not be opened.
        remembered: Its mark, as it was kept elsewhere.
    """

    def __init__(self, why: str, remembered: Mark | None) -> None:
        self.why = why
        self._remembered = remembered or Mark(epoch="", next_seqs={})

    async def close(self) -> None:
        """Nothing is open."""

    async def enqueue_all(self, rows: Rows, *, done_frames: Frames = ()) -> list[int]:
        """Refuses: as on a full disk."""
        raise StateError(self.why)

    @property
    def epoch(self) -> str:
        """The last that was known."""
        return self._remembered.epoch

    def mark(self) -> Mark:
        """The last that was known: no row comes."""
        return self._remembered

    async def rows_since(self, mark: Mark) -> list[bytes]:
        """None can be read."""
        return []

    def produced(self) -> int:
        """Not known."""
        return 0

    def is_done(self, frame: FrameMark) -> bool:
        """Not known: such a frame is inferred once more, and its rows are not kept."""
        return False

    @property
    def done_frames(self) -> dict[str, str]:
        """Not known."""
        return {}

    async def forget_frames(self, frames: Frames) -> None:
        """Refuses."""
        raise StateError(self.why)

    async def tend(self, now: Instant, free_bytes: int | None = None) -> None:
        """Nothing to look after."""

    async def give_back(self, need_bytes: int) -> int:
        """Nothing."""
        return 0


async def opened_or_not(make: Callable[[], Outbox], remembered: Mark | None) -> Outbox:
    """The outbox; where its disk is full or fails, an `UnopenedOutbox`.

    Args:
        make: Opens it. Blocking.
        remembered: Its mark, as it was kept elsewhere.

    Raises:
        StateError: It is not the disk: a newer agent wrote it, or the file system cannot hold it durably.
    """
    try:
        return await asyncio.to_thread(make)
    except OSError as error:
        why = f"the outbox cannot be opened: {error}"
    except StateError as error:
        if not isinstance(error.__cause__, sqlite3.Error):
            raise
        why = error.message
    LOG.critical("%s", why)
    return UnopenedOutbox(why, remembered)


def why_unopenable(path: Path) -> str:
    """What keeps the outbox at `path` from being opened; empty when nothing does. Changes nothing. Blocking."""
    if not path.exists():
        return ""
    try:
        with contextlib.closing(schema.open_reader(path)) as connection:
            schema.is_empty(connection)
    except UnicodeDecodeError:  # of SQLite's own words about a damaged schema
        return ""
    except sqlite3.Error as error:
        return "" if schema.is_damage(error) else f"the outbox cannot be opened: {error}"  # a damaged one is begun anew
    return ""
