"""Where blocking work goes: a few threads, so that the event loop never waits for a disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A bounded pool.

    Args:
        count: Threads; requests beyond them wait in order.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="server")

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs `work` in a thread and waits for it. A cancelled caller does not stop work that began."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args, **kwargs))

    async def close(self) -> None:
        """Waits for what runs, drops what has not begun."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
