"""A worker that died comes back, whatever the machine lacks at the time and whatever bug is in the way.

No process is made here: what starts them and what they are is replaced, the keeping is the product's.
"""

import asyncio
import errno
import logging
from collections.abc import Mapping, Sequence

import pytest

from device.inference import folder_source, worker_process
from device.inference.dialogue import Order
from device.inference.evidence import Evidence
from device.inference.folder_source import FolderSource
from device.inference.frames import Frame, Mark
from device.inference.keeper import Backoff, Keeper
from device.inference.workers import ProcessWorkers
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, grey_png, make_release


class Life:
    """One worker."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.stopping = False
        self.bugs = 0

    async def last_words(self) -> str:
        if self.bugs:
            self.bugs -= 1
            raise RuntimeError("a bug")
        return ""

    async def stop(self) -> None:
        self.stopping = True


class Machine:
    """Starts workers, after what stands in `in_the_way`; its clock goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.in_the_way: list[Exception] = []
        self.slept: list[float] = []

    async def start(self, order: Order) -> Life:
        if self.in_the_way:
            raise self.in_the_way.pop(0)
        self.lives.append(Life())
        return self.lives[-1]

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class NoMarks:
    """No frame was done before."""

    done_frames: Mapping[str, str] = {}

    def is_done(self, frame: Mark) -> bool:
        return False

    async def forget_frames(self, frames: Sequence[Mark]) -> None:
        pass


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
async def keeper(machine, tmp_path):
    release = make_release(tmp_path / "release", ModelSpec(tiny.brightness()))
    (model,) = release.manifest.models
    order = Order(model=model, variant="cpu", files={}, threads=1, goldens="all", limit_memory=False)
    made = Keeper(
        order,
        start=machine.start,
        evidence=Evidence([model.name]),
        backoff=Backoff(),
        clock=lambda: sum(machine.slept),
        sleep=machine.sleep,
    )
    await made.start()
    yield made
    await made.stop()


async def comes_back(keeper: Keeper) -> None:
    async with asyncio.timeout(10):
        while keeper.process is None:  # noqa: ASYNC110  (each turn of the loop is one step of what runs beside)
            await asyncio.sleep(0)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN, errno.EMFILE])
async def test_a_process_that_could_not_be_made_is_tried_again_ever_later_and_is_no_evidence(keeper, machine, number):
    machine.in_the_way = [OSError(number, "no memory, no process, no descriptor") for _ in range(4)]
    machine.lives[0].ended.set_result("SIGKILL")
    await asyncio.sleep(0)
    await comes_back(keeper)
    assert keeper.process is machine.lives[1]
    assert machine.slept == [2.0, 4.0, 8.0, 16.0, 32.0]
    assert keeper._evidence.crashes == ("SIGKILL",)


async def test_a_bug_on_the_way_is_told_and_the_worker_comes_back_all_the_same(keeper, machine, caplog):
    caplog.set_level(logging.ERROR)
    machine.lives[0].bugs = 2
    machine.in_the_way = [RuntimeError("another bug")]
    machine.lives[0].ended.set_result("exit 1")
    await asyncio.sleep(0)
    await comes_back(keeper)
    assert "keeping the worker of model light failed" in caplog.text
    assert keeper._evidence.crashes == ("exit 1",)


async def test_a_worker_that_a_bug_keeps_from_being_heard_is_ended_and_the_next_one_infers(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.CRITICAL)
    workers = ProcessWorkers(clock=asyncio.get_running_loop().time, backoff=Backoff(first_s=0.01))
    heard = worker_process._receive
    bugs = [RuntimeError("a bug")]

    async def receive(reader):
        message = await heard(reader)
        if bugs:
            raise bugs.pop()
        return message

    try:
        await workers.converge(make_release(tmp_path / "release", ModelSpec(tiny.brightness())))
        monkeypatch.setattr(worker_process, "_receive", receive)
        frame = Frame("a.png", "image/png", grey_png(51), 0.0)
        for _ in range(2):
            reply = await asyncio.wait_for(workers.infer(frame), 20)
            assert reply.replies[0].kind == "finding"
        assert not bugs
    finally:
        await workers.close()


async def test_the_frame_folder_is_read_on_after_a_bug(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)

    def no_watch():
        raise OSError(errno.ENOSPC, "no watch left")

    source = FolderSource(tmp_path, NoMarks(), clock=asyncio.get_running_loop().time, rescan_s=0.01)
    monkeypatch.setattr(folder_source.Observer, "start", lambda self: no_watch())
    await source.start()
    read = folder_source._whole_files
    bugs = [RuntimeError("a bug")]

    def whole_files(folder, known):
        if bugs:
            raise bugs.pop()
        return read(folder, known)

    try:
        monkeypatch.setattr(folder_source, "_whole_files", whole_files)
        async with asyncio.timeout(10):
            while bugs:  # noqa: ASYNC110  (the reading is on a timer)
                await asyncio.sleep(0.01)
        (tmp_path / "a.png").write_bytes(grey_png(51))
        assert (await asyncio.wait_for(source.take(), 10)).name == "a.png"
    finally:
        await source.close()
