"""Repeats what may be repeated while the link is at fault, for some seconds."""

from collections.abc import Callable
from typing import Final, TypeVar

import tenacity

from protocol.errors import LinkError

T = TypeVar("T")

TRIES: Final = 4


def patiently(call: Callable[[], T]) -> T:
    """The result of the first call that the link let through.

    Args:
        call: May be made again.

    Raises:
        LinkError: Of the last try, or of one that is not worth another.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, LinkError) and error.retryable),
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=3.0),
        reraise=True,
    )
    return retrying(call)
