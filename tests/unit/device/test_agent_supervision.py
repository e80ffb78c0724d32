"""What goes on when something fails, and what systemd is told."""

import asyncio
import logging
import socket
import threading

import pytest

from device import agent, identity
from device.identity import Enrolment
from device.layout import Layout
from device.settings import DeviceSettings
from device.supervision import LIVED_S, GivenUpError, keep_up
from device.systemd import Notifier
from protocol.errors import StateError
from protocol.wire import encode


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


async def test_a_disk_that_stalls_leaves_watchdog_and_alarms_alone(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    layout.identity.mkdir()
    identity.keep_key(layout.identity / "key.pem")
    enrolment = Enrolment(server="https://farm:8443", device="tractor-1", product="pest-detector")
    (layout.identity / "enrolment.json").write_bytes(encode(enrolment))
    goes_on, stalled = threading.Event(), threading.Semaphore(0)

    def stalls(*_: object) -> None:
        stalled.release()
        goes_on.wait(60)

    monkeypatch.setattr(agent, "write_status", stalls)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        work = asyncio.create_task(agent.run(layout, DeviceSettings()))
        try:
            async with asyncio.timeout(30):
                while not stalled.acquire(blocking=False):  # noqa: ASYNC110  (a thread rings no bell)
                    await asyncio.sleep(0.01)
            stalls_too = [asyncio.create_task(asyncio.to_thread(goes_on.wait, 60)) for _ in range(16)]
            # More than the socket held before; and there is a thread left to hear them in.
            await asyncio.wait_for(asyncio.to_thread(lambda: [systemd.recv(100) for _ in range(50)]), 20)
        finally:
            goes_on.set()
            work.cancel()
            await asyncio.gather(work, *stalls_too, return_exceptions=True)


async def test_a_full_disk_is_tried_again_and_fills_no_log(caplog):
    tries = 0

    def keep_it() -> None:
        nonlocal tries
        tries += 1
        raise StateError("the disk is full")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent._every(0.001, keep_it), 0.3)
    assert tries > 1
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_nobody_listening_is_no_trouble(tmp_path):
    Notifier({}).alive()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).alive()
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog_s is None
