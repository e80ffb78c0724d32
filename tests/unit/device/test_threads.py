"""A step on the disk that was begun is over before whoever cancelled it goes on."""

import asyncio
import threading

from device.cancelling import cancel
from device.threads import to_its_end


async def test_a_step_is_waited_for_however_often_it_is_cancelled():
    begun, may_end, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def step() -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(20.0)
        ended.set()

    task = asyncio.create_task(to_its_end(step))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await cancel(task)
    assert ended.is_set()
    assert task.cancelled()
