"""When the agent is killed, nothing that it started goes on: the next agent needs the accelerator and the memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

AGENT = """
import asyncio, sys, time
from pathlib import Path
from device.inference.canary_client import SubprocessCanary
from device.inference.workers import ProcessWorkers
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, grey_png, make_release
import numpy as np

async def main():
    folder = Path(sys.argv[2])
    if sys.argv[1] == "worker":
        workers = ProcessWorkers(clock=time.monotonic)
        await workers.converge(make_release(folder, ModelSpec(tiny.brightness())))
        print(workers.status().models["light"].pid, flush=True)
    else:
        white = [(grey_png(255), "image/png", {"scores": np.array([[1, 0]], np.float32)})]
        spec = ModelSpec(tiny.spins_on_white(10**12), goldens=white)
        task = asyncio.create_task(SubprocessCanary(folder / "s").check(make_release(folder / "r", spec)))
        await asyncio.sleep(2.0)
        print("canary", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG and /proc are Linux's")
@pytest.mark.parametrize("what", ["worker", "canary"])
def test_what_an_agent_started_ends_with_it(tmp_path, what):
    root = Path(__file__).resolve().parents[4]
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, what, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    with agent:
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline()
            started = children(agent.pid)
            assert started
            assert all(runs(pid) for pid in started)
        finally:
            agent.send_signal(signal.SIGKILL)
            agent.wait()
        deadline = time.monotonic() + 10
        while any(runs(pid) for pid in started) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(runs(pid) for pid in started)
