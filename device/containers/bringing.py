"""Brings what the engine lost back beside the looks: an image may take an hour, and all else is looked after meanwhile.

One at a time, and none that nobody wants any longer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import NoReturn

from device.cancelling import cancel
from protocol.container import Image
from protocol.errors import StateError
from protocol.ids import Digest


class ComingError(StateError):
    """An image is on its way into the engine, or waits for its turn."""


class Bringing:
    """See the module. Belongs to one event loop; `only(())` must be awaited at the end.

    Args:
        bring: As `device.containers.stock.Stock.bring`.
        wake: Called when something has come, or does not.
    """

    def __init__(self, bring: Callable[[Image], Awaitable[None]], wake: Callable[[], None]) -> None:
        self._bring = bring
        self._wake = wake
        self._image: Digest | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures: dict[Digest, BaseException] = {}

    def need(self, image: Image) -> NoReturn:
        """To be asked again and again while the engine does not hold the image.

        Raises:
            ComingError: Until it does.
            Exception: What bringing it failed with, once; asked again, it is tried again.
        """
        name = image.config.sha256
        if (failure := self._failures.pop(name, None)) is not None:
            raise failure
        if self._task is None:
            self._image, self._task = name, asyncio.create_task(self._come(image), name="an image")
        raise ComingError(f"image {name[:12]} is on its way into the engine")

    async def only(self, images: Collection[Digest]) -> None:
        """On return nothing but these is brought."""
        self._failures = {name: failure for name, failure in self._failures.items() if name in images}
        if self._task is not None and self._image not in images:
            await cancel(self._task)
            self._task = None

    async def _come(self, image: Image) -> None:
        try:
            await self._bring(image)
        except Exception as error:
            self._failures[image.config.sha256] = error
        finally:
            self._task = None
            self._wake()
