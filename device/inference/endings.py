"""How a process ended, in words and as evidence."""

import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from protocol.errors import Reason, Refused

T = TypeVar("T")

_log = logging.getLogger(__name__)

KILLED_WAIT_S: Final = 2.0  # a machine that is being stopped may kill us after our processes


class Killed(Refused):
    """A process got a SIGKILL that we did not send: for want of memory, or from somebody outside."""


def verdict_of(returncode: int, message: str) -> Refused:
    """What a process that ended by itself says of its model."""
    kind = Killed if returncode == -signal.SIGKILL else Refused
    return kind(reason_of(returncode), message)


async def once_more_if_killed(attempt: Callable[[], Awaitable[T]], sleep: Callable[[float], Awaitable[None]]) -> T:
    """Runs `attempt`, and again after a SIGKILL: one alone is no evidence, as anybody may have sent it.

    Raises:
        Refused: As `attempt`; of a SIGKILL, the second in a row.
    """
    try:
        return await attempt()
    except Killed as killed:
        _log.warning("%s: it is tried once more", killed.message)
    await sleep(KILLED_WAIT_S)
    return await attempt()


def ending_of(returncode: int) -> str:
    """`SIGSEGV` for a signal, `exit 1` for a code."""
    if returncode < 0:
        try:
            return signal.Signals(-returncode).name
        except ValueError:
            return f"signal {-returncode}"
    return f"exit {returncode}"


def reason_of(returncode: int) -> Reason:
    """What an ending is evidence of.

    SIGKILL that we did not send is the kernel's, out of memory; SIGXCPU is the limit on processor time. Everything
    else, exit codes too, is a crash.
    """
    if returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return Reason.BOUNDS
    return Reason.MODEL_CRASH
