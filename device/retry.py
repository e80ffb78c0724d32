"""The one place that tries again: tenacity behind it, back-off with chance in it, and patience that progress renews."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import tenacity

from protocol.errors import LinkError

T = TypeVar("T")

FIRST_S: Final = 0.5
LONGEST_S: Final = 30.0


def backoff_s(failures: int, chance: float, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> float:
    """How long to wait after so many failures in a row, in seconds: doubling, with chance, so that fleets spread out.

    Args:
        failures: At least 1.
        chance: From 0 to 1, freshly drawn.
        first_s: The longest wait after the first failure.
        longest_s: The longest of all.
    """
    top = min(longest_s, first_s * 2.0 ** min(max(failures, 1) - 1, 40))
    return top * (0.5 + 0.5 * chance)


async def persist(
    action: Callable[[], Awaitable[T]],
    *,
    attempts: int,
    random: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    first_s: float = FIRST_S,
    longest_s: float = LONGEST_S,
    progress: Callable[[], int] = lambda: 0,
    step: int = 1,
) -> T:
    """Does `action` until it succeeds, the failure would not go away, or patience is spent.

    Args:
        action: Safe to repeat.
        attempts: Failures in a row without progress that are borne.
        random: Draws from 0 to 1.
        sleep: Waits so many seconds.
        first_s: As in `backoff_s`, and so is `longest_s`.
        longest_s: The longest wait.
        progress: Where the action is; only grows.
        step: So much of it renews the patience: a trickle does not.

    Raises:
        LinkError: The last one, or one that is not retryable.
    """
    patience = _Patience(progress, step)

    def count(_: tenacity.RetryCallState) -> None:
        patience.count_failure()

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, LinkError) and error.retryable),
        after=count,
        wait=lambda _: backoff_s(patience.failures, random(), first_s=first_s, longest_s=longest_s),
        stop=lambda _: patience.failures >= attempts,
        sleep=sleep,
        reraise=True,
    )
    return await retrying(action)


class _Patience:
    """Failures in a row since the last progress."""

    def __init__(self, progress: Callable[[], int], step: int) -> None:
        self.failures = 0
        self._progress = progress
        self._step = step
        self._position = progress()

    def count_failure(self) -> None:
        if self._progress() >= self._position + self._step:
            self._position = self._progress()
            self.failures = 0
        self.failures += 1
