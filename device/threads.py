"""Work in threads that leaves something on the disk."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(step: Callable[..., T], *arguments: object) -> T:
    """Runs a step in a thread. Who cancels it waits for its end: what comes next must not meet it half done, nor find
    afterwards what it has just cleaned up."""
    running = asyncio.ensure_future(asyncio.to_thread(step, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # whoever waits for our end may cancel again meanwhile
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # whatever it was, it comes again when the same is tried again
        raise
