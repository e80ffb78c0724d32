"""The agent's tasks, and their order. Inference comes first and goes on whatever else fails.

Contact, updates and bookkeeping are started again with back-off when they fail. The agent ends when it is told to, or
when inference cannot be kept up, for its supervisor to start it afresh. It may be killed at any moment: all that counts
is durable, and the next start takes it up.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from device.cancelling import cancel
from device.damage import make_way
from device.last_settings import load_or_last
from device.layout import Layout
from device.parts import Parts, assembled, draw_token, why_cut_off
from device.repair.examine import examine
from device.repair.fault import Place
from device.rescue import why_unusable
from device.settings import DeviceSettings
from device.status import AgentStatus, UpdateNow, blank_status, write_status
from device.store import free_bytes
from device.supervision import GivenUpError, keep_up
from device.systemd import Notifier
from device.unopened import why_unopenable
from protocol.errors import HeadlandError, Refused, StateError
from protocol.messages import ErrorAnswer
from protocol.wire import Message, encode
from signing import durable, locks

LOG: Final = logging.getLogger("headland.agent")
THREADS: Final = 32  # more than all tasks together can have wait for a disk that stalls: alarms need one too
STATUS_S: Final = 1.0
COUNTS_S: Final = 2.0  # frames' counts may lag behind by so much after a cut
TEND_S: Final = 5.0  # how often old results are dropped, and space is given back
CLOCK_S: Final = 600.0  # how often it is looked whether sure time is due for its hourly checkpoint
INFERENCE_FAILURES: Final = 5
REBUILDS: Final = 3  # of state.db in one life of the agent; then its supervisor starts it afresh
RETRY_S: Final = 10.0  # how often it is looked whether what could not be used can be; doubles when vain
LONGEST_RETRY_S: Final = 3600.0


class Up(Message):
    """What `headland-device run --json` prints once."""

    running: bool
    pid: int
    state: str


async def run(layout: Layout, settings: DeviceSettings, *, on_ready: Callable[[Parts], None] = lambda _: None) -> None:
    """Runs the agent until SIGTERM or SIGINT.

    Args:
        layout: Its state folder; no other agent may run on it.
        settings: Read and checked.
        on_ready: Called once what the update record names serves, as far as it can.

    Raises:
        StateError: Not enrolled, another agent runs here, a database cannot be opened, or inference cannot be kept up.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="agent"))
    notifier = Notifier()
    damages = vain = 0
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(held(layout))
        await stack.enter_async_context(_beating(notifier))
        while True:
            change = _Change(loop)
            place = Place(layout, draw_token, keep_free_bytes=settings.store.keep_free_bytes)
            found = await asyncio.to_thread(examine, place, mend=True)
            async with assembled(layout, settings, found=found, on_damage=change.damaged) as parts:
                vain = vain + 1 if parts.waits_for_disk or parts.waits_for_identity else 0
                work = asyncio.create_task(_work(parts, notifier, change, on_ready, retry_s(vain)))
                waits = [asyncio.create_task(event.wait()) for event in (stop, change.found)]
                await asyncio.wait({work, *waits}, return_when=asyncio.FIRST_COMPLETED)
                again = change.found.is_set() and not stop.is_set() and not work.done()
                if not again:
                    notifier.stopping()
                LOG.info("all is taken up anew" if again else "stopping")
                for task in (work, *waits):
                    task.cancel()
                ended, *_ = await asyncio.gather(work, *waits, return_exceptions=True)
            if not again:
                break
            on_ready = _told_already
            damages += bool(change.why)
            if damages > REBUILDS:
                raise StateError(
                    f"state.db was damaged {damages} times since the agent started: {change.why}",
                    hint="the disk of the state folder, or the memory, fails",
                )
    if isinstance(ended, BaseExceptionGroup):
        given_up = ended.subgroup(GivenUpError)
        raise StateError(str(given_up.exceptions[0])) if given_up is not None else ended
    if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
        raise ended


class _Change:
    """What makes all parts be taken up anew: `state.db` is damaged, or what could not be used or read can be now.

    Args:
        loop: The agent's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.found = asyncio.Event()
        self.why = ""
        self._loop = loop

    def damaged(self, why: str) -> None:
        """Called in any thread."""
        self.why = self.why or why
        self._loop.call_soon_threadsafe(self.found.set)

    async def look_until(
        self, why_not: Callable[[], str], wait_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Looks until nothing speaks against it any more, and has all parts taken up anew then.

        Waits first: a moment ago something did, and to take all up anew interrupts inference.

        Args:
            why_not: Looks; blocking.
            wait_s: Between looks.
            sleep: Waits.
        """
        await sleep(wait_s)
        while await asyncio.to_thread(why_not):
            await sleep(wait_s)
        self.found.set()


def _why_no_databases(layout: Layout) -> str:
    return why_unusable(layout) or why_unopenable(layout.outbox_db)


def retry_s(vain: int) -> float:
    """How long to wait, in seconds, before looking whether what was missing is there.

    Args:
        vain: Times in a row that all was taken up without it.
    """
    return min(LONGEST_RETRY_S, RETRY_S * 2.0 ** min(max(vain - 1, 0), 20))


def _told_already(parts: Parts) -> None:
    """That the agent is up is said once."""


@contextlib.contextmanager
def held(layout: Layout) -> Iterator[None]:
    """Holds the state folder against a second agent; the kernel lets go of it when the process ends, however it ends.

    Raises:
        StateError: Another agent holds it, or it never ran and its disk takes no writes.
    """
    taken = StateError(
        f"another agent runs on {layout.state}", hint=f"headland-device status --state {layout.state} shows it"
    )
    with contextlib.ExitStack() as stack:
        try:
            if not layout.run.is_dir():
                if layout.run.exists():
                    make_way(layout.run)
                durable.make_dir(layout.run)
            if layout.lock.is_dir():
                make_way(layout.lock)
            stack.enter_context(locks.held(layout.lock, taken))
        except OSError as error:
            raise StateError(
                f"{layout.lock} cannot be made: {error}", hint="is the disk full, or read-only?"
            ) from error
        # What the agent before this one said of itself would be taken for what this one says.
        blank_status(layout.status)
        yield


async def _work(
    parts: Parts, notifier: Notifier, change: _Change, on_ready: Callable[[Parts], None], wait_s: float
) -> None:
    up = partial(keep_up, monotonic=time.monotonic, sleep=asyncio.sleep, random=random.random)
    started_ms = parts.clock.now().ms
    ready = asyncio.Event()

    async def update() -> None:
        if not ready.is_set():
            # Workers serve what the record says before anything is fetched, judged or reported.
            await parts.updater.start()
            ready.set()
            on_ready(parts)
        await parts.updater.run_forever()

    async def contact() -> None:
        # What runs is known once the updater has started; before that a report would say that nothing does.
        await ready.wait()
        await parts.contact_loop.run()

    async def infer() -> None:
        await parts.source.start()
        try:
            await parts.pump.run()
        finally:
            await parts.source.close()

    notifier.ready()
    async with asyncio.TaskGroup() as group:
        group.create_task(up("inference", infer, give_up_after=INFERENCE_FAILURES))
        group.create_task(up("local link", lambda: parts.local_link.run(lambda: parts.pump.numbers().frames_inferred)))
        group.create_task(up("updates", update))
        if not parts.isolated:
            group.create_task(up("contact", contact))
        group.create_task(up("kits", parts.kits.run))
        if parts.exports is not None:
            group.create_task(up("results by stick", parts.exports.run))
        group.create_task(up("desk", parts.desk.run))
        group.create_task(up("page", parts.page.run))
        if parts.waits_for_disk:
            group.create_task(up("rescue", lambda: change.look_until(partial(_why_no_databases, parts.layout), wait_s)))
        if parts.waits_for_identity:
            group.create_task(up("identity", lambda: change.look_until(partial(why_cut_off, parts.layout), wait_s)))
        group.create_task(up("status", lambda: _tell(parts, started_ms)))
        group.create_task(up("counts", lambda: _every(COUNTS_S, parts.totals.keep)))
        group.create_task(up("outbox", lambda: _tend(parts)))
        group.create_task(up("clock", lambda: _every(CLOCK_S, parts.clock.keep)))
        group.create_task(up("seal", lambda: _every(CLOCK_S, parts.state.seal)))


@contextlib.asynccontextmanager
async def _beating(notifier: Notifier) -> AsyncIterator[None]:
    """Tells the watchdog that the loop goes round; in a task that asks nothing of any disk, which may stall."""

    async def beat() -> None:
        while True:
            notifier.alive()
            await asyncio.sleep(STATUS_S if notifier.watchdog_s is None else min(STATUS_S, notifier.watchdog_s / 3))

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        await cancel(task)


async def _tell(parts: Parts, started_ms: int) -> None:
    """Renews the status each second."""
    while True:
        numbers = parts.pump.numbers()
        parts.totals.saw(
            numbers.frames_inferred,
            numbers.frames_dropped,
            numbers.frames_unkept,
            parts.outbox.mark(),
            numbers.results_given_up,
        )
        workers = parts.workers.status()
        if parts.fallbacks.changed(workers):
            # On a full disk it is told later.
            with contextlib.suppress(StateError):
                await asyncio.to_thread(parts.fallbacks.tell, workers, parts.clock.now().ms)
        engine = parts.workers.engine_status()
        if engine is not None and parts.troubles.changed(engine):
            with contextlib.suppress(StateError):
                await asyncio.to_thread(parts.troubles.tell, engine, parts.clock.now().ms)
        try:
            await asyncio.to_thread(write_status, parts.layout.status, status_of(parts, started_ms))
        except OSError as error:
            LOG.debug("the status cannot be written: %s", error)
        await asyncio.sleep(STATUS_S)


async def _tend(parts: Parts) -> None:
    """Looks after the outbox; what a full disk does not take is tried again the next time."""
    while True:
        await asyncio.sleep(TEND_S)
        free = await asyncio.to_thread(free_bytes, parts.layout.state)
        try:
            await parts.outbox.tend(parts.clock.instant(), free)
        except StateError as error:
            LOG.debug("%s", error)


async def _every(interval_s: float, action: Callable[[], None]) -> None:
    """Keeps something; what a full disk does not take is tried again the next time: `status` says that it is full."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await asyncio.to_thread(action)
        except StateError as error:
            LOG.debug("%s", error)


def status_of(parts: Parts, started_ms: int) -> AgentStatus:
    """What only the running agent knows. Never blocks."""
    reading = parts.clock.now()
    progress = parts.updater.progress() if parts.updater.started else None
    return AgentStatus(
        pid=os.getpid(),
        agent=parts.inventory.agent,
        started_ms=started_ms,
        at_ms=reading.ms,
        sure_of_time=reading.sure,
        update=UpdateNow(
            state=progress.state.value,
            release=progress.release,
            offer=progress.offer,
            forced=bool(progress.forced),
            why=progress.why,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            needs_bytes=progress.needs_bytes,
            healthy_s=progress.healthy_s,
            healthy_of_s=progress.healthy_of_s,
            damaged=progress.damaged,
        )
        if progress is not None
        else None,
        workers=parts.workers.status(),
        engine=parts.workers.engine_status(),
        pump=parts.pump.numbers(),
        counters=parts.totals.now(parts.outbox.produced()),
        frames_waiting=parts.source.waiting,
        contact_trouble=parts.contact_loop.trouble,
        kits=parts.kits.shown(),
        trouble=(
            *(why for why in (parts.isolated, parts.page.trouble) if why),
            *(one.line() for one in parts.found if one.is_news),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m device.agent`: what `headland-device run` becomes. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="device.agent")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    layout = Layout(options.state)

    def ready(parts: Parts) -> None:
        LOG.info("up: %s", parts.layout.state)
        if options.json:
            sys.stdout.buffer.write(encode(Up(running=True, pid=os.getpid(), state=str(layout.state))) + b"\n")
            sys.stdout.flush()

    try:
        settings, trouble = load_or_last(layout)
        if trouble:
            LOG.error("%s", trouble)
        asyncio.run(run(layout, settings, on_ready=ready))
    except HeadlandError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint and error.hint not in error.message:
            sys.stderr.write(f"hint: {error.hint}\n")
        if options.json:
            reason = error.reason.value if isinstance(error, Refused) else ""
            sys.stdout.buffer.write(encode(ErrorAnswer(error=error.message, reason=reason, hint=error.hint)) + b"\n")
            sys.stdout.flush()
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
