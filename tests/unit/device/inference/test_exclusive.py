"""An accelerator with one owner changes hands: frames wait, the gap is measured, and a failed swap gives it back.

No Edge TPU is here: the spawning is replaced, everything above it is the product's.
"""

import asyncio
import time

import pytest

from device.inference.dialogue import Answer, Order, Ready
from device.inference.finding import Finding
from device.inference.frames import Frame
from device.inference.workers import ProcessWorkers
from protocol.errors import Reason, Refused
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, make_release


class Tpu:
    """Counts its owners; the processes below stand in for workers."""

    def __init__(self) -> None:
        self.owners = 0
        self.most = 0
        self.broken: set[str] = set()
        self.log: list[str] = []

    async def start(self, order: Order) -> "Owner":
        variant = order.model.variants[0]
        exclusive = variant.accelerator == "edgetpu"
        self.log.append(f"start {order.model.name} {variant.accelerator}")
        await asyncio.sleep(0.05)
        if variant.artifact.sha256 in self.broken:
            raise Refused(Reason.MODEL_LOAD, "broken")
        return Owner(self, variant, exclusive=exclusive)


class Owner:
    def __init__(self, tpu: Tpu, variant, *, exclusive: bool) -> None:
        self.tpu, self.exclusive, self.stopping, self.pid = tpu, exclusive, False, 1
        self.ready = Ready(
            model_digest=variant.artifact.sha256, accelerator=variant.accelerator, fallback="", load_ms=1.0
        )
        self.ended = asyncio.get_running_loop().create_future()
        if exclusive:
            tpu.owners += 1
            tpu.most = max(tpu.most, tpu.owners)

    async def infer(self, frame: Frame) -> Answer:
        assert not self.stopping, "a worker that let go is asked"
        await asyncio.sleep(0.01)
        return Answer(id=0, kind="finding", latency_ms=1.0, finding=Finding())

    async def stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self.tpu.owners -= self.exclusive
            if not self.ended.done():
                self.ended.set_result("exit 0")

    async def last_words(self) -> str:
        return ""


@pytest.fixture
async def bench(monkeypatch):
    tpu = Tpu()
    workers = ProcessWorkers(clock=time.monotonic)
    monkeypatch.setattr(workers, "_start", tpu.start)
    yield tpu, workers
    await workers.close()
    assert tpu.owners == 0


def release(folder, name, *accelerators):
    specs = [
        ModelSpec(
            tiny.brightness_tflite(0.5 + 0.1 * number + len(name) / 1000),
            name=f"m{number}",
            runtime="litert",
            accelerator=accelerator,
        )
        for number, accelerator in enumerate(accelerators)
    ]
    return make_release(folder / name, *specs, version=f"1.0.{len(name)}")


async def test_frames_wait_while_it_changes_hands_and_none_is_lost(bench, tmp_path):
    tpu, workers = bench
    old, new = release(tmp_path, "old", "edgetpu", "cpu"), release(tmp_path, "newer", "edgetpu", "cpu")
    await workers.converge(old)
    seen = []
    stop = asyncio.Event()

    async def camera():
        while not stop.is_set():
            seen.append((await workers.infer(Frame("f", "image/png", b"", 0.0))).manifest)

    cameras = [asyncio.create_task(camera()) for _ in range(2)]
    await asyncio.sleep(0.1)
    await workers.converge(new)
    await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*cameras)
    assert tpu.most == 1
    assert seen == sorted(seen, key=[old.digest, new.digest].index)
    assert set(seen) == {old.digest, new.digest}
    gap_ms = workers.status().swap.gap_ms
    assert 50 <= gap_ms < 2000
    # What can overlap is warm before the accelerator is let go.
    assert tpu.log[2:] == ["start m1 cpu", "start m0 edgetpu"]


async def test_a_failed_swap_gives_the_accelerator_back(bench, tmp_path):
    tpu, workers = bench
    old, new = release(tmp_path, "old", "edgetpu"), release(tmp_path, "newer", "edgetpu")
    await workers.converge(old)
    tpu.broken.add(new.variants["m0"].artifact.sha256)
    with pytest.raises(Refused):
        await workers.converge(new)
    assert (workers.health().digest, workers.health().serving) == (old.digest, True)
    assert (await workers.infer(Frame("f", "image/png", b"", 0.0))).manifest == old.digest
    assert tpu.most == 1


async def test_from_the_cpu_to_the_accelerator_there_is_no_gap(bench, tmp_path):
    _, workers = bench
    await workers.converge(release(tmp_path, "old", "cpu"))
    await workers.converge(release(tmp_path, "newer", "edgetpu"))
    assert workers.status().swap.gap_ms == 0.0


async def test_an_accelerator_that_nobody_gets_back_is_asked_for_anew_and_no_frame_is_lost(bench, tmp_path):
    """The new release does not come up, nor does the old one: the machine has no process left for a moment."""
    tpu, workers = bench
    old, new = release(tmp_path, "old", "edgetpu"), release(tmp_path, "newer", "edgetpu")
    await workers.converge(old)
    tpu.broken |= {one.variants["m0"].artifact.sha256 for one in (old, new)}
    with pytest.raises(Refused):
        await workers.converge(new)
    waiting = asyncio.create_task(workers.infer(Frame("f", "image/png", b"", 0.0)))
    await asyncio.sleep(0)
    tpu.broken.clear()
    await asyncio.wait_for(workers.converge(old), 10)
    assert (await asyncio.wait_for(waiting, 10)).manifest == old.digest


async def test_a_failed_swap_while_another_worker_is_being_started_again_holds_up_no_frame(bench, tmp_path):
    tpu, workers = bench
    goes_on = asyncio.Event()

    async def until_then(_: float) -> None:
        await goes_on.wait()

    workers._sleep = until_then
    old, new = release(tmp_path, "old", "edgetpu", "cpu"), release(tmp_path, "newer", "edgetpu", "cpu")
    await workers.converge(old)
    workers._crew.keepers["m1"].process.ended.set_result("SIGSEGV")
    await asyncio.sleep(0)
    tpu.broken.add(new.variants["m0"].artifact.sha256)
    with pytest.raises(Refused):
        await workers.converge(new)
    waiting = asyncio.create_task(workers.infer(Frame("f", "image/png", b"", 0.0)))
    goes_on.set()
    assert (await asyncio.wait_for(waiting, 10)).manifest == old.digest
    assert workers.health().serving
