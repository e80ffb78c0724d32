"""When the agent takes all parts up anew: not in a circle, for that interrupts inference each time."""

import asyncio
import contextlib
from types import SimpleNamespace

from device import agent
from device.layout import Layout
from device.settings import DeviceSettings


async def test_what_could_not_be_used_is_looked_at_after_a_wait_only():
    done, answers = [], ["the disk is full", ""]

    def look():
        done.append("looked")
        return answers.pop(0)

    async def sleep(seconds):
        done.append(seconds)

    change = agent._Change(asyncio.get_running_loop())
    await change.look_until(look, 60.0, sleep)
    assert done == [60.0, "looked", 60.0, "looked"]
    assert change.found.is_set()


async def test_the_wait_doubles_while_it_seems_usable_and_is_not_and_begins_anew_once_it_was(tmp_path, monkeypatch):
    """A rebuild that fails each time: looked at from outside, there is room for it."""
    waits, waiting = [], [True] * 11 + [False, True]

    @contextlib.asynccontextmanager
    async def assembled(*_, **__):
        yield SimpleNamespace(waits_for_disk=waiting.pop(0), waits_for_identity=False)

    async def work(parts, notifier, change, on_ready, wait_s):
        waits.append(wait_s)
        if waiting:
            change.found.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(agent, "assembled", assembled)
    monkeypatch.setattr(agent, "examine", lambda *_, **__: ())
    monkeypatch.setattr(agent, "_work", work)
    layout = Layout(tmp_path)
    await agent.run(layout, DeviceSettings())
    assert waits == [*(10.0 * 2**vain for vain in range(9)), 3600.0, 3600.0, 10.0, 10.0]
