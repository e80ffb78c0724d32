"""A thread that works on one stick, in order, and whom nobody has to wait for.

A write to a bad stick may never return. That must hold up neither the loop nor the end of the agent, as a thread of the
loop's executor would; and what the thread holds open is closed by itself, after all that it was given: a number of a
file that was closed under a work that hangs may be another file's by the time that it goes on.
"""

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from protocol.errors import LinkError

T = TypeVar("T")

ANSWER_S: Final = 60.0
"""A stick that needs longer for one piece, which is synced, is of no use."""


class Hand:
    """Works until `end`.

    Args:
        what: It works on, for people.
        answer_s: How long one work may take.
    """

    def __init__(self, what: str, answer_s: float = ANSWER_S) -> None:
        self._what = what
        self._answer_s = answer_s
        self._works: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_late = False
        self._thread = threading.Thread(target=self._run, name=f"hand on {what}", daemon=True)
        self._thread.start()

    @property
    def hangs(self) -> bool:
        """Whether a work that took too long has not ended yet."""
        return self._is_late and self._thread.is_alive()

    async def do(self, work: Callable[..., T], *arguments: object) -> T:
        """Does a work after those before it.

        Raises:
            LinkError: It took too long, or one before it did.
        """
        if self._is_late:
            raise self._late()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def carry_out() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work(*arguments))
                except BaseException as error:  # whatever it is, it is told to the one who waits
                    done.set_exception(error)

        self._works.put(carry_out)
        waited = asyncio.wait_for(asyncio.wrap_future(done), self._answer_s)
        try:
            return await waited
        except TimeoutError as error:
            self._is_late = True
            raise self._late() from error

    def later(self, work: Callable[[], None]) -> None:
        """Does a work that cannot fail after those before it, whenever that is."""
        self._works.put(work)

    def end(self) -> None:
        """Takes no more."""
        self._works.put(None)

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            work()

    def _late(self) -> LinkError:
        return LinkError(f"the stick at {self._what} does not answer: pull it out and plug it in again")
