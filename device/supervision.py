"""Keeping tasks up: one that fails is started again with back-off, and nothing else notices."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from device.retry import backoff_s

LOG: Final = logging.getLogger("headland.agent")
LIVED_S: Final = 60.0  # a life this long was no failed start
FIRST_S: Final = 0.5
LONGEST_S: Final = 30.0


class GivenUpError(Exception):
    """A task failed too often in a row: the process ends, and its supervisor starts it afresh."""


async def keep_up(
    name: str,
    task: Callable[[], Awaitable[None]],
    *,
    monotonic: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    random: Callable[[], float],
    give_up_after: int | None = None,
) -> None:
    """Runs `task` until cancelled, again whenever it ends.

    Args:
        name: For the log.
        task: Something that should run for ever.
        monotonic: Seconds that never go back.
        sleep: Waits so many seconds.
        random: Draws from 0 to 1.
        give_up_after: Failures in a row, each within a minute of its start; None never gives up.

    Raises:
        GivenUpError: After so many failures.
    """
    failures = 0
    while True:
        began_s = monotonic()
        try:
            await task()
        except asyncio.CancelledError:
            raise
        except Exception:
            # Here and nowhere else: whatever a bug raised, the other tasks go on.
            LOG.exception("%s failed and is started again", name)
        else:
            LOG.error("%s ended and is started again", name)
        failures = 1 if monotonic() - began_s >= LIVED_S else failures + 1
        if give_up_after is not None and failures >= give_up_after:
            raise GivenUpError(f"{name} failed {failures} times in a row")
        await sleep(backoff_s(failures, random(), first_s=FIRST_S, longest_s=LONGEST_S))
