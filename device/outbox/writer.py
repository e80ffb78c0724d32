"""The one thread that writes: rows that wait together share a transaction, and so one flush of the disk.

It knows nothing of rows and lanes; what is done inside a transaction comes in as functions. What those raise goes to
who waits; a bug is logged as well, and the thread goes on whatever happens in it.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from protocol.errors import HeadlandError, StateError

T = TypeVar("T")

LOG: Final = logging.getLogger("headland.outbox")
EXPECTED: Final = (sqlite3.Error, OSError, HeadlandError)
"""What a disk does, and what we say ourselves. All else is a bug."""

GROUP_ROWS: Final = 1024  # from here on a group is not made longer: the first row would wait too long for the last
RUN_S: Final = 600.0  # a job may wait for many flushes; after that its disk is as good as gone
STOP_S: Final = 10.0  # a flush on a slow card; after that the process ends with the thread, which is safe


Rows = Sequence[tuple[str, bytes]]
"""Lane and exact bytes of each."""

Frames = Sequence[tuple[str, str]]
"""Name and content's hash of each."""


@dataclass(frozen=True)
class Append:
    """Rows that wait to be durable together, with the marks of frames; `future` gets the rows' numbers."""

    rows: Rows
    future: "asyncio.Future[list[int]]"
    frames: Frames = ()


@dataclass(frozen=True)
class _Job:
    run: Callable[[], Any]
    future: "asyncio.Future[Any]"


@dataclass(frozen=True)
class _BlockingJob:
    run: Callable[[], Any]
    future: "concurrent.futures.Future[Any]"


class Writer:
    """Runs appends in groups and jobs one by one, in the order in which they came.

    Args:
        append: Makes rows and marks durable and returns the number of each row; runs in the thread.
    """

    def __init__(self, append: Callable[[Rows, Frames], list[int]]) -> None:
        self._append = append
        self._queue: queue.SimpleQueue[Append | _Job | _BlockingJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="outbox-writer", daemon=True)
        self._stopped = False

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    async def append(self, rows: Rows, frames: Frames = ()) -> list[int]:
        """Returns the rows' numbers once all of them are durable, and the marks with them."""
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._put(Append(rows, future, frames))
        return await future

    async def run(self, job: Callable[[], T]) -> T:
        """Runs `job` in the thread, after all that was asked before."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(_Job(job, future))
        return await future

    def run_blocking(self, job: Callable[[], T]) -> T:
        """As `run`, for another thread, which waits.

        Raises:
            StateError: The writer was stopped, or did not come to the job.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._put(_BlockingJob(job, future))
        try:
            return future.result(RUN_S)
        except TimeoutError as error:
            raise StateError("the outbox was closed, or its disk does not answer") from error

    async def stop(self) -> None:
        """Finishes what was asked, then ends the thread. What comes later is refused."""
        if not self._stopped:
            self._stopped = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join, STOP_S)

    def _put(self, work: Append | _Job | _BlockingJob) -> None:
        if self._stopped:
            raise StateError("the outbox is closed")
        self._queue.put(work)

    def _serve(self) -> None:
        goes_on = True
        while goes_on:
            taken: list[Append | _Job | _BlockingJob | None] = []
            try:
                self._work_through(taken)
            except BaseException as error:
                LOG.exception("the outbox's writer failed, and goes on")
                for work in taken:
                    if work is not None:
                        _settle([work], [error])
            goes_on = None not in taken

    def _work_through(self, taken: "list[Append | _Job | _BlockingJob | None]") -> None:
        """Waits for work, and does what is there; `taken` gets all that was taken from the queue."""
        group: list[Append] = []
        length = 0
        taken.append(self._queue.get())
        while True:
            work = taken[-1]
            if isinstance(work, Append):
                group.append(work)
                length += len(work.rows)
            else:
                self._flush(group)
                group, length = [], 0
                if work is None:
                    return
                _settle([work], [_outcome(work.run)])
            if length >= GROUP_ROWS:
                break
            try:
                taken.append(self._queue.get_nowait())
            except queue.Empty:
                break
        self._flush(group)

    def _flush(self, group: Sequence[Append]) -> None:
        if not group:
            return
        rows = group[0].rows if len(group) == 1 else [row for work in group for row in work.rows]
        frames = [frame for work in group for frame in work.frames]
        result = _outcome(lambda: self._append(rows, frames))
        if isinstance(result, BaseException):
            _settle(group, [result] * len(group))
        else:
            numbers = iter(result)
            _settle(group, [list(itertools.islice(numbers, len(work.rows))) for work in group])


def _outcome(run: Callable[[], Any]) -> Any:
    """What it returns, or what it raises."""
    try:
        return run()
    except EXPECTED as error:
        return error
    except BaseException as error:
        LOG.exception("a bug in the outbox's work; the writer goes on")
        return error


def _settle(works: Sequence[Append | _Job | _BlockingJob], results: Sequence[Any]) -> None:
    """Tells those who wait, unless they were told. All of `works` belong to one loop, or it is one that blocks."""

    def settle() -> None:
        for work, result in zip(works, results, strict=True):
            if work.future.done():  # its caller was cancelled; the row is durable all the same
                continue
            if isinstance(result, Exception) and not isinstance(result, StopIteration):
                work.future.set_exception(result)
            elif isinstance(result, BaseException):
                # It would end the loop, or no future takes it.
                work.future.set_exception(StateError(f"the outbox failed: {result!r}"))
            else:
                work.future.set_result(result)

    if isinstance(works[0], _BlockingJob):
        settle()
        return
    # A closed loop has nobody left who waits.
    with contextlib.suppress(RuntimeError):
        works[0].future.get_loop().call_soon_threadsafe(settle)
