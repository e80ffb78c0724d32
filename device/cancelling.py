"""Ends a task of ours for certain."""

import asyncio
from typing import Any


async def cancel(task: "asyncio.Task[Any]") -> None:
    """Cancels until the task has ended, however it ends.

    Not `task.cancel()` and `await task`: that would take a cancellation of the caller for the task's own, and one
    cancellation can be lost inside `asyncio.wait_for` (before Python 3.12).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
