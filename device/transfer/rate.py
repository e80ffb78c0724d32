"""How fast a transfer may be, how slow, and how fast it was: a token bucket, a lower bound and a measurement."""

from collections.abc import Awaitable, Callable
from typing import Final

from protocol import limits
from protocol.errors import LinkError

MEASURED_BYTES: Final = 512 * limits.KIB  # less tells of buffers, not of the link


class RateCap:
    """Leaves the rest of a narrow link to others.

    Args:
        bytes_s: At most so many a second on average; 0 does not limit.
        monotonic: Seconds that never go back.
        sleep: Waits so many seconds.
    """

    def __init__(
        self, bytes_s: float, *, monotonic: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._bytes_s = bytes_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._paid_until = monotonic()

    async def take(self, count: int) -> None:
        """Waits until `count` more bytes are within the rate. What was not used of a second is not saved up."""
        if self._bytes_s <= 0:
            return
        now = self._monotonic()
        self._paid_until = max(self._paid_until, now) + count / self._bytes_s
        if self._paid_until > now:
            await self._sleep(self._paid_until - now)


class MinimumRate:
    """Ends a stream that only pretends to flow (ATTACKS.md T9).

    Args:
        bytes_s: Less than this on average is too slow.
        over_s: Judged over so many seconds of waiting for the network.
    """

    def __init__(self, bytes_s: float, over_s: float) -> None:
        self.over_s = over_s
        self._bytes_s = bytes_s
        self._waited_s = 0.0
        self._received = 0

    def received(self, count: int, waited_s: float) -> None:
        """Takes note of `count` bytes that came after `waited_s` seconds of waiting.

        Raises:
            LinkError: Too slow.
        """
        self._received += count
        self._waited_s += waited_s
        if self._waited_s < self.over_s:
            return
        if self._received < self._bytes_s * self._waited_s:
            raise LinkError(
                f"{self._received} bytes in {self._waited_s:.0f} s: slower than the {self._bytes_s:.0f} a second asked"
            )
        self._waited_s = 0.0
        self._received = 0


class LinkRate:
    """What the link was good for, by the bytes that came last."""

    def __init__(self) -> None:
        self.kib_s = 0
        self._waited_s = 0.0
        self._received = 0

    def received(self, count: int, waited_s: float) -> None:
        """Takes note of `count` bytes that came after `waited_s` seconds of waiting for the network."""
        self._received += count
        self._waited_s += waited_s
        if self._received >= MEASURED_BYTES and self._waited_s > 0:
            self.kib_s = max(int(self._received / self._waited_s / limits.KIB), 1)
            self._received, self._waited_s = 0, 0.0
