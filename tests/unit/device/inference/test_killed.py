"""A SIGKILL from outside is no evidence against a release; one that comes again and again is."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from device.inference import endings
from device.inference.canary_client import SubprocessCanary
from device.inference.workers import ProcessWorkers
from protocol.errors import Reason, Refused
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, make_release

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
    monkeypatch.setattr(endings, "KILLED_WAIT_S", 0.01)


def children(module: str) -> list[int]:
    """Our own children that run this module."""
    found = []
    for name in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if module.encode() in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
            found.append(int(name))
    return found


async def kill(module: str, times: int) -> None:
    """Kills as many different children as they come up."""
    killed: set[int] = set()
    while len(killed) < times:
        for pid in await asyncio.to_thread(children, module):
            if pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        await asyncio.sleep(0.01)


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "release", ModelSpec(tiny.brightness()))


@pytest.fixture
async def workers():
    made = ProcessWorkers(clock=time.monotonic)
    yield made
    await made.close()


async def test_a_worker_that_is_killed_while_it_loads_is_loaded_again(workers, release):
    await asyncio.gather(workers.converge(release), kill("device.inference.worker", 1))
    assert workers.health().serving


async def test_a_worker_that_is_killed_twice_is_out_of_bounds(workers, release):
    with pytest.raises(Refused, match="SIGKILL") as refused:
        await asyncio.gather(workers.converge(release), kill("device.inference.worker", 2))
    assert refused.value.reason is Reason.BOUNDS


async def test_a_canary_that_is_killed_is_tried_again(tmp_path, release):
    canary = SubprocessCanary(tmp_path / "scratch")
    await asyncio.gather(canary.check(release), kill("device.inference.canary", 1))


async def test_a_canary_that_is_killed_twice_is_out_of_bounds(tmp_path, release):
    canary = SubprocessCanary(tmp_path / "scratch")
    with pytest.raises(Refused, match="SIGKILL") as refused:
        await asyncio.gather(canary.check(release), kill("device.inference.canary", 2))
    assert refused.value.reason is Reason.BOUNDS
