"""Brings blobs from sticks for the update machine, and tries the next stick where one gave bytes that are wrong."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from device.kits.shelf import PREFIX, Shelf
from device.transfer.fetch import TransferSettings
from device.transfer.patching import PatchFailedError
from device.transfer.purse import Purse
from device.update.world import Fetcher
from protocol import limits
from protocol.artifact import Artifact
from protocol.errors import LinkError, Refused
from protocol.ids import Digest
from protocol.objects import Payload, TransferPlan

T = TypeVar("T")

STICK: Final = TransferSettings(attempts=4, first_retry_s=0.25, longest_retry_s=2.0)
"""A stick that is back goes on at once by itself; one that is gone is said to be after a few seconds."""
SYNC_BYTES: Final = 32 * limits.MIB
"""After a cut so much is read from the stick again, in a second or two. To sync each segment takes longer than that."""


class NotingSource:
    """The shelf, and which of its blobs was asked for last. For one transfer.

    Args:
        shelf: Has the blobs.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._last: Digest | None = None

    async def stream(self, path: str, *, first: int, length: int) -> AsyncGenerator[bytes, None]:
        """As `device.transfer.fetch.Source.stream`."""
        self._last = path.removeprefix(PREFIX)
        async with aclosing(self._shelf.stream(path, first=first, length=length)) as pieces:
            async for piece in pieces:
                yield piece

    def doubt_last(self) -> bool:
        """What was asked for last was not what was signed. Returns whether another stick may have it whole."""
        last, self._last = self._last, None
        return last is not None and self._shelf.doubt(last)


class KitFetcher:
    """Implements `device.update.world.Fetcher`.

    Args:
        transfer: From `source`.
        source: Where it streams from.
        tell: Called when a fetch did not come to its end: another plan may bring it.
    """

    def __init__(self, transfer: Fetcher, source: NotingSource, tell: Callable[[], None]) -> None:
        self._transfer = transfer
        self._source = source
        self._tell = tell

    async def small(self, payload: Payload, limit: int) -> bytes:
        """As `Fetcher`. Nobody is told of a failure but the one who asked: a manifest is asked for with each plan."""
        return await self._from_another(lambda: self._transfer.small(payload, limit))

    async def fetch(
        self, plan: TransferPlan, artifacts: Sequence[Artifact], progress: Callable[[int], None], purse: Purse
    ) -> None:
        """As `Fetcher`."""
        try:
            await self._from_another(lambda: self._transfer.fetch(plan, artifacts, progress, purse))
        except (Refused, PatchFailedError, LinkError):
            self._tell()
            raise

    async def _from_another(self, action: Callable[[], Awaitable[T]]) -> T:
        """Does it again as long as a stick turned out bad and another is left."""
        while True:
            try:
                return await action()
            except Refused:
                if not self._source.doubt_last():
                    raise
