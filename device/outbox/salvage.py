"""Salvage: rows of damaged files are looked for beside the intake, and queued again under their own numbers.

What is found is exactly what was put in; what is not is counted as lost, "at most" so much. A cut on the way costs
nothing: the damaged file stays until all of it was looked through, and a row is taken once.

Rows of a lane wait for those before them that are looked for. Not while the disk takes nothing of what was found: room
comes with receipts, and so only if rows go.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from device.outbox import damage
from device.outbox.carving import Found, carve
from device.outbox.core import Core
from device.outbox.writer import EXPECTED
from protocol import limits

_T = TypeVar("_T")
LOG: Final = logging.getLogger("headland.outbox")
CHUNK_ROWS: Final = 256  # one transaction: enqueues wait for no more than this between two
CHUNK_BYTES: Final = 256 * limits.KIB
LONGEST_REST: Final = 720  # looks after the outbox: about an hour


class Runs(Protocol):
    """As `Writer.run_blocking`."""

    def __call__(self, job: Callable[[], _T], /) -> _T:
        """Runs `job` in the writing thread, and returns what it returns."""
        ...


class Salvage:
    """Looks through damaged files in a thread of its own, for as long as there are any.

    Args:
        core: The outbox.
        path: Of its database.
        run: Brings work into the writing thread.
    """

    def __init__(self, core: Core, path: Path, run: Runs) -> None:
        self._core = core
        self._path = path
        self._run = run
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.is_stuck = False  # what was found could not be kept the last time
        self._bugs = 0  # that ended it in a row
        self._rest = 0  # so often `tend` leaves it alone after one: it would come to the same place again

    def start_if_needed(self) -> None:
        """Begins when something is astray or a damaged file lies there. From the writing thread, or before it runs."""
        if self._thread is not None or self._rest or not (self._core.astray or damage.quarantined(self._path)):
            return
        self._thread = threading.Thread(target=self._work, name="outbox-salvage", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the machine has no thread to give
            LOG.warning("salvage of the outbox waits: %s", error)
            self.is_stuck = True
            self._thread = None

    def tend(self) -> None:
        """Goes on after something kept it from going on; from the writing thread, now and then."""
        self._rest = max(0, self._rest - 1)
        self.start_if_needed()

    def stop(self, timeout_s: float) -> None:
        """Ends it after the transaction that runs; the next start goes on."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def join(self) -> None:
        """Waits until it has come to an end."""
        while (thread := self._thread) is not None:
            thread.join()
            if self._thread is thread:  # stopped on the way
                return

    def _work(self) -> None:
        try:
            self._look_through()
        except EXPECTED as error:
            # A full disk, as a rule: `start_if_needed` is called again.
            LOG.warning("salvage of the outbox waits: %s", error)
        except BaseException:
            LOG.exception("a bug ended the salvage of the outbox; it begins anew later")
            self._rest = min(2**self._bugs, LONGEST_REST)
            self._bugs += 1
        else:
            return
        # Nobody waits for what is astray meanwhile; the damaged file stays until all of it was looked through.
        self.is_stuck = True
        self._thread = None

    def _look_through(self) -> None:
        done: list[Path] = []
        while True:
            fresh = [file for file in self._run(self._quarantined) if file not in done]
            if not fresh:
                if self._run(lambda: self._conclude(done)):
                    return
                continue
            chunk: list[Found] = []
            length = 0
            for row in carve(fresh[0], self._core.book.epochs):
                if self._stop.is_set():
                    return
                chunk.append(row)
                length += len(row.body)
                if len(chunk) >= CHUNK_ROWS or length >= CHUNK_BYTES:
                    self._take(chunk)
                    chunk, length = [], 0
            self._take(chunk)
            done.append(fresh[0])

    def _quarantined(self) -> list[Path]:
        """In the writing thread: a file is set aside there before the book says what of it is astray."""
        self._core.ensure_open()
        return damage.quarantined(self._path)

    def _take(self, chunk: list[Found]) -> None:
        wanted = [row for row in chunk if self._core.book.lane(row.epoch, row.lane).astray.within(row.seq, row.seq)]
        if wanted:
            self._run(lambda: self._core.adopt(wanted))
            self.is_stuck = False

    def _conclude(self, done: list[Path]) -> bool:
        """In the writing thread: False when another file was damaged meanwhile."""
        if any(file not in done for file in damage.quarantined(self._path)):
            return False
        lost = self._core.give_up()
        self.is_stuck = False
        self._bugs = 0
        if done:
            LOG.info("the damaged outbox was looked through: at most %d results are lost", lost)
        for file in done:
            damage.finish(self._path, file, keep=bool(lost) and file == done[-1])
        self._thread = None
        return True
