"""Keeps the worker of one model alive: starts it, hands frames on, starts it again after a crash."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from device.cancelling import cancel
from device.inference.dialogue import Answer, Order, Ready
from device.inference.evidence import Evidence
from device.inference.frames import Frame
from device.inference.worker_process import WorkerDied, WorkerProcess
from device.supervision import keep_up
from protocol.errors import Refused

_log = logging.getLogger(__name__)

_DEATHS_PER_FRAME: Final = 2
"""A frame that was being inferred when a worker died is tried once more; then it is given up and counted."""

Start = Callable[[Order], Awaitable[WorkerProcess]]
Sleep = Callable[[float], Awaitable[None]]


class CrewGone(Exception):  # noqa: N818  (an event that the workers handle; it never leaves this room)
    """The release of this worker serves no longer; the frame goes to the next, whole."""


class GivenUp(Exception):  # noqa: N818  (as above)
    """The frame ended two workers."""


@dataclass
class Ticket:
    """A frame on its way through workers, with what it did to them."""

    frame: Frame
    deaths: int = 0


@dataclass(frozen=True)
class Backoff:
    """When a dead worker is started again, in seconds.

    A worker that had served for `steady_s` died of something rare: it is back at once, as alarms hang on it. One that
    died young will likely do so again; the wait gives the update machine the time to take the release back before the
    same frame kills the next worker.
    """

    steady_s: float = 60.0
    steady_wait_s: float = 0.1
    first_s: float = 2.0
    most_s: float = 60.0

    def wait_s(self, lived_s: float, early_deaths: int) -> float:
        """How long to wait after a life of `lived_s`, the `early_deaths`-th short one in a row (counted from 1)."""
        if lived_s >= self.steady_s:
            return self.steady_wait_s
        return min(self.most_s, self.first_s * 2.0 ** min(early_deaths - 1, 20))


class Keeper:
    """See the module. Belongs to one event loop; `stop` must be awaited.

    Args:
        order: What the worker loads.
        start: Spawns a worker.
        evidence: Of the release.
        backoff: See there.
        clock: Seconds that only ever rise.
        sleep: Waits.
    """

    def __init__(
        self,
        order: Order,
        *,
        start: Start,
        evidence: Evidence,
        backoff: Backoff,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self.order = order
        self._start = start
        self._evidence = evidence
        self._backoff = backoff
        self._clock = clock
        self._sleep = sleep
        self._process: WorkerProcess | None = None
        self._last: WorkerProcess | None = None  # the one whose end is waited for, or was met
        self._changed = asyncio.Event()
        self._gone = False
        self._task: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def process(self) -> WorkerProcess | None:
        """The worker that serves now; None while it is being started again."""
        return self._process

    @property
    def is_kept(self) -> bool:
        """Whether it was started and not stopped since: a worker that is gone then comes back by itself."""
        return self._task is not None

    async def start(self) -> None:
        """Brings the worker up.

        Raises:
            Refused: It does not come up; nothing is left running.
            OSError: The machine has no memory, process or descriptor left for it; nothing is left running.
        """
        assert self._task is None
        self._gone = False
        self._serve_with(await self._start(self.order))
        self._task = asyncio.get_running_loop().create_task(
            # Whatever a bug raises, frames must not wait for ever for a worker that nobody starts.
            keep_up(
                f"keeping the worker of model {self.order.model.name}",
                self._keep,
                monotonic=self._clock,
                sleep=self._sleep,
                random=lambda: 1.0,  # no other machine waits for the same
            )
        )

    async def infer(self, ticket: Ticket) -> tuple[Answer, Ready]:
        """One frame's answer, through as many workers as it takes, and what the one that gave it had loaded.

        Raises:
            CrewGone: The keeper was retired while the frame had no answer.
            GivenUp: The frame was being inferred when two workers died.
        """
        while True:
            process = await self._available()
            try:
                return await process.infer(ticket.frame), process.ready
            except WorkerDied as death:
                ticket.deaths += death.suspect
                if ticket.deaths >= _DEATHS_PER_FRAME:
                    raise GivenUp from None

    def retire(self) -> None:
        """Lets frames that wait for a worker go to the next release. What is being inferred is finished."""
        self._gone = True
        self._changed.set()

    async def stop(self) -> None:
        """Ends the worker. Safe to repeat."""
        self.retire()
        if self._task is not None:
            await cancel(self._task)
            self._task = None
        if self._process is not None:
            process = self._process
            self._set(None)
            await process.stop()

    async def _available(self) -> WorkerProcess:
        while True:
            if self._process is not None and not self._process.ended.done():
                return self._process
            if self._gone:
                raise CrewGone
            self._changed.clear()
            await self._changed.wait()

    async def _keep(self) -> None:
        early = 0
        while True:
            process = self._last
            assert process is not None, "a worker served before it is kept"
            born = self._clock()
            ending = await asyncio.shield(process.ended)
            lived_s = self._clock() - born
            words = await process.last_words()
            await process.stop()
            _log.warning("the worker of model %s ended: %s %s", self.order.model.name, ending, words)
            started: WorkerProcess | None = None
            while started is None:
                early = 0 if lived_s >= self._backoff.steady_s else early + 1
                await self._sleep(self._backoff.wait_s(lived_s, early))
                try:
                    started = await self._start(_again(self.order))
                except Refused as refused:
                    self._evidence.crashed(refused.reason)
                    lived_s = 0.0
                    _log.warning("the worker of model %s does not come up again: %s", self.order.model.name, refused)
                except OSError as error:
                    # No memory, process or descriptor was left: that says nothing of the model.
                    lived_s = 0.0
                    _log.warning("the worker of model %s cannot be started: %s", self.order.model.name, error)
            self._serve_with(started)
            self.restarts += 1

    def _serve_with(self, process: WorkerProcess) -> None:
        def ended(future: asyncio.Future[str]) -> None:
            # A callback, so that the evidence stands before any frame hears of the death.
            if not process.stopping:
                self._evidence.crashed(future.result())
            if self._process is process:
                self._set(None)

        process.ended.add_done_callback(ended)
        self._last = process
        self._set(process)

    def _set(self, process: WorkerProcess | None) -> None:
        self._process = process
        self._changed.set()


def _again(order: Order) -> Order:
    which: Literal["first"] = "first"
    return Order(
        model=order.model,
        variant=order.variant,
        files=order.files,
        threads=order.threads,
        goldens=which,
        limit_memory=order.limit_memory,
    )
