"""What goes on when something fails, and what systemd is told."""

import asyncio
import logging
import socket

import pytest

from device.supervision import LIVED_S, GivenUpError, keep_up
from device.systemd import Notifier


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock():
    return Clock()


async def keep(task, clock, **more):
    await keep_up("it", task, monotonic=lambda: clock.now, sleep=clock.sleep, random=lambda: 1.0, **more)


async def test_a_task_that_fails_is_started_again_ever_later(clock, caplog):
    caplog.set_level(logging.CRITICAL)
    starts = 0

    async def fails() -> None:
        nonlocal starts
        starts += 1
        if starts == 12:
            raise asyncio.CancelledError
        raise RuntimeError("a bug")

    with pytest.raises(asyncio.CancelledError):
        await keep(fails, clock)
    assert starts == 12
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[-1] <= 30


async def test_a_task_that_ends_is_started_again(clock):
    starts = 0

    async def ends() -> None:
        nonlocal starts
        starts += 1
        if starts == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await keep(ends, clock)


async def test_what_cannot_be_kept_up_is_given_up_but_a_long_life_forgives(clock):
    lives = iter([0.0, 0.0, LIVED_S, 0.0, 0.0, 0.0])
    starts = 0

    async def dies() -> None:
        nonlocal starts
        starts += 1
        clock.now += next(lives)
        raise RuntimeError("again")

    with pytest.raises(GivenUpError, match="3 times"):
        await keep(dies, clock, give_up_after=3)
    assert starts == 5


def test_systemd_hears_that_the_agent_is_up_alive_and_stopping(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(2)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000"})
        assert notifier.watchdog_s == 3.0
        notifier.ready()
        notifier.alive()
        notifier.stopping()
        assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_nobody_listening_is_no_trouble(tmp_path):
    Notifier({}).alive()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).alive()
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog_s is None
