"""The world of one play: time that jumps to what comes next, chance by name, and a log whose hash tells plays apart.

Everything of a play runs in one thread, in an order that only the seed decides: what the product gives to threads runs
between two turns of the loop, a few turns later than it was asked for, as threads do.
"""

import asyncio
import functools
import hashlib
import random
import selectors
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

START_MS = 1_790_000_000_000
"""2026-09-21: when every play begins."""

DAY_S = 86_400.0


STILL_TURNS = 50_000
"""Of the loop at one moment: far more than anything takes that ever comes to an end."""


class StuckError(AssertionError):
    """Nobody waits for a time any more, and nothing is left to do; or there is always something to do at once."""


class Chance:
    """Random numbers, one stream for each name: what one part draws does not change what another part draws.

    Args:
        seed: Of the play.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def of(self, name: str) -> random.Random:
        if name not in self._streams:
            self._streams[name] = random.Random(f"{self._seed}/{name}")
        return self._streams[name]


class World:
    """Time, chance and the log.

    Args:
        seed: Of the play.
        begins_s: When it begins, after `START_MS`.
    """

    def __init__(self, seed: int, begins_s: float = 0.0) -> None:
        self.seed = seed
        self.chance = Chance(seed)
        self.loop = VirtualLoop(self.chance.of("threads"))
        self.loop.pass_s(begins_s)
        self.broken: asyncio.Future[None] = self.loop.create_future()
        """Ends the play with what went wrong."""
        self.lines: list[str] = []
        self.seen: Counter[str] = Counter()
        """How often each fault happened."""

    def now_ms(self) -> int:
        """True time."""
        return START_MS + int(self.loop.time() * 1000)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_ms() // 1000, UTC)

    def log(self, who: str, what: str) -> None:
        self.lines.append(f"{self.loop.time() / DAY_S:12.6f} {who:8} {what}")

    def fault(self, kind: str, who: str, what: str = "") -> None:
        """Notes a fault that happens now."""
        self.seen[kind] += 1
        self.log(who, f"! {kind} {what}".rstrip())

    def failed(self, task: "asyncio.Task[Any]") -> None:
        """A task that must not end has ended: the play is over."""
        if not task.cancelled():
            self.break_off(task.exception() or AssertionError("a task that must not end has ended"))

    def break_off(self, error: BaseException) -> None:
        """Ends the play; only the first error counts."""
        if not self.broken.done():
            self.broken.set_exception(error)

    def hash(self) -> str:
        """Of the log: the same for the same seed."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in which nothing waits: when nothing is ready, it is as late as the next timer.

    Args:
        chance: Draws how late a thread begins.
    """

    def __init__(self, chance: random.Random) -> None:
        self._virtual_s = 0.0
        self._chance = chance
        super().__init__(_Impatient(self))
        self._clock_resolution = 1e-6  # floats of a year of seconds are no finer

    def time(self) -> float:
        return self._virtual_s

    def pass_s(self, seconds: float) -> None:
        self._virtual_s += seconds

    def add_signal_handler(self, *_: Any) -> None:
        """What ends a process ends the plays in it, not an agent in one of them."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """As the real one, but the thread is this one."""
        future = self.create_future()
        job = functools.partial(func, *args)

        def work(turns: int) -> None:
            if future.cancelled():  # as in a pool: what has not begun does not begin
                return
            if turns:
                self.call_soon(work, turns - 1)
                return
            try:
                result = job()
            except BaseException as error:
                self.call_soon(_fail, future, error)
            else:
                self.call_soon(_succeed, future, result)

        work(self._chance.choice((0, 0, 1, 3)))
        return future


class _Impatient(selectors.DefaultSelector):
    """Never waits. Nothing of a play comes from outside, so there is nothing to wait for."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._still = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StuckError("nothing will ever happen again")
        self._still = self._still + 1 if timeout <= 0 else 0
        if self._still > STILL_TURNS:
            raise StuckError("something is done again and again, and no time passes")
        if timeout > 0:
            self._loop.pass_s(timeout)
        return []


def _succeed(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


async def ended(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels tasks and waits for their ends, whatever these are."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # whatever it is, it is not the play's
