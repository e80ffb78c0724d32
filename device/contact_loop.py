"""When to speak to the server: at its interval, at once when there is news, later and later while it cannot be reached.

Links that drop are the normal case: each outage is logged once, and its end.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, Protocol

from device.retry import backoff_s
from device.settings import ServerSettings
from protocol.errors import HeadlandError, LinkError, Reason, Refused
from protocol.messages import SyncAnswer

LOG: Final = logging.getLogger("headland.contact")
JITTER: Final = 0.1  # of the interval, either way: machines that were switched on together drift apart
BARE_EVERY: Final = 4  # failed visits in a row: then it is asked whether the certificate is what fails
WAKE_GAP_S: Final = 1.0  # news in quick succession share a visit


class Contacting(Protocol):
    """As `device.contact.Contact`."""

    async def make(self) -> SyncAnswer:
        """Makes one contact."""
        ...


class Renewing(Protocol):
    """As `device.renewal.Renewal`."""

    async def after_contact(self, asked: bool) -> None:
        """Renews the certificate if it is time to."""
        ...

    async def renew(self) -> None:
        """Renews it now."""
        ...

    async def renew_bare(self) -> None:
        """Renews it without showing the old one."""
        ...


class Draining(Protocol):
    """As `device.drain.Drain`."""

    async def run(self, go_on: Callable[[], bool] = ...) -> int:
        """Sends until nothing waits, or `go_on` says no."""
        ...


class News:
    """What ends the wait for the next visit. Only for the event loop."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self.sync_wanted = True

    def results(self) -> None:
        """Results are there that should not wait."""
        self._rung.set()

    def to_tell(self) -> None:
        """The server should hear how the machine is: a contact, not only results."""
        self.sync_wanted = True
        self._rung.set()

    def taken(self) -> None:
        """A visit begins; what comes now is news again."""
        self._rung.clear()

    async def wait(self) -> None:
        """Until there is news."""
        await self._rung.wait()


class ContactLoop:
    """Visits the server for as long as it runs.

    Args:
        contact: One contact.
        drain: Sends results.
        settings: Intervals.
        news: Ends a wait early.
        renewal: Keeps the certificate good.
        monotonic: Seconds that never go back.
        random: Draws from 0 to 1.
    """

    def __init__(
        self,
        contact: Contacting,
        drain: Draining,
        settings: ServerSettings,
        news: News,
        *,
        renewal: Renewing,
        monotonic: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._contact = contact
        self._drain = drain
        self._settings = settings
        self._renewal = renewal
        self._monotonic = monotonic
        self._random = random
        self._news = news
        self._failures = 0
        self._due_s = monotonic()
        self.trouble = ""
        """Why the last visit failed, for people; empty when it did not."""

    async def run(self) -> None:
        """Visits until cancelled."""
        while True:
            await self.visit()
            await self._wait()

    async def visit(self) -> None:
        """One visit: a contact if one is due, then the results. Errors of the world end the visit, not the loop."""
        self._news.taken()
        try:
            if self._news.sync_wanted or self._monotonic() >= self._due_s:
                self._news.sync_wanted = False
                answer = await self._contact.make()
                self._due_s = self._monotonic() + self._interval_s(answer.poll_s)
                await self._renewal.after_contact(answer.renew)
            await self._drain.run(lambda: not self._news.sync_wanted and self._monotonic() < self._due_s)
        except HeadlandError as error:
            await self._failed(error)
        else:
            if self._failures:
                LOG.info("the server answers again, after %d tries", self._failures)
            self._failures = 0
            self.trouble = ""

    async def _failed(self, error: HeadlandError) -> None:
        self._news.sync_wanted = True
        self._failures += 1
        if error.message != self.trouble or self._failures == 1:
            LOG.log(logging.WARNING if self._failures == 1 else logging.INFO, "no contact: %s", error.message)
        self.trouble = error.message
        if isinstance(error, Refused) and error.reason is Reason.CERTIFICATE:
            with contextlib.suppress(HeadlandError):  # it says so itself
                await self._renewal.renew()
        elif isinstance(error, LinkError) and error.status is None and self._failures % BARE_EVERY == 0:
            # A certificate that the server does not take looks like a dropped link. Nearly always it is one.
            with contextlib.suppress(HeadlandError):
                await self._renewal.renew_bare()

    async def _wait(self) -> None:
        """Until the next visit. While the server cannot be reached news do not shorten the wait."""
        if self._failures:
            await asyncio.sleep(
                backoff_s(
                    self._failures,
                    self._random(),
                    first_s=self._settings.retry_first_s,
                    longest_s=self._settings.retry_longest_s,
                )
            )
            return
        # A wait for the timer or for news, whichever comes first; the time-out is the timer.
        try:
            async with asyncio.timeout(max(0.0, self._due_s - self._monotonic())):
                await self._news.wait()
        except TimeoutError:
            return
        await asyncio.sleep(WAKE_GAP_S)

    def _interval_s(self, asked_s: float) -> float:
        wanted_s = min(max(asked_s, self._settings.poll_min_s), self._settings.poll_max_s)
        return wanted_s * (1 - JITTER + 2 * JITTER * self._random())
