"""Whole updates with containers, from the offer to the clean-up, with real files: whoever is killed at a call to the
engine, or with a write of the record, one of the two sets runs in the end, whole, and `active` names it."""

import asyncio

import pytest

from device.containers.keeper import ContainerKeeper
from device.containers.whole import WholeSet
from device.containers.wishes import Places, make_wish
from device.inference.frames import Frame
from device.update.states import State
from protocol import limits
from protocol.container import HealthCheck, RunSpec, spec_digest
from protocol.errors import StateError
from protocol.release import TrialRules
from tests.fakes.container_sets import pack_container
from tests.fakes.engine import Behaviour
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms
from tests.fakes.whole_sets import FakeModelWorkers, play, until

CHECK = HealthCheck(command=("/check",), interval_s=1.0, retries=2)
GATEWAY = RunSpec(command=("/gateway",), strategy="start-then-stop", health=CHECK)
DRIVER = RunSpec(command=("/driver",))
RULES = TrialRules(healthy_s=2.0, min_healthy_s=1.0, max_failed_starts=3, min_inferences=10, max_retries=2)


def release(version: str, counter: int, app: bytes) -> Release:
    containers = (pack_container("driver", DRIVER, (b"base",)), pack_container("gateway", GATEWAY, (b"base", app)))
    return Release(version, counter, noise(500, counter), trial=RULES, containers=containers)


OLD, NEW = release("1.0.0", 1, b"one"), release("1.1.0", 2, b"two")
SICK = release("1.2.0", 3, b"sick")
SICK_IMAGE = SICK.containers[1].image.config.sha256


class Field(Bench):
    """A bench in time that jumps, with a whole set on it."""

    def __init__(self, folder) -> None:
        super().__init__(folder, BlobSource(OLD, NEW, SICK))
        self.models = FakeModelWorkers()
        self.daemon.clock = asyncio.get_running_loop().time
        self.daemon.behave = lambda wish: Behaviour(unhealthy_after_s=0.6 if wish.image == SICK_IMAGE else None)
        self.writes = 0
        self.cut_at_write = (0, "")

    @property
    def elapsed_s(self) -> float:
        return asyncio.get_running_loop().time()

    @elapsed_s.setter
    def elapsed_s(self, _: float) -> None: ...

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def serving(self) -> WholeSet:
        places = Places(self.folder / "sets", self.folder / "link", self.folder / "data")

        def wish(one):
            config = self.store.read(one.image.config.sha256, limits.IMAGE_CONFIG_BYTES)
            return make_wish(one.container, one.image, config, places)

        self.models = FakeModelWorkers()
        keeper = ContainerKeeper(self.engine, self.stock, self.owner, wish, clock=lambda: self.elapsed_s)
        self.whole = WholeSet(self.models, keeper)
        written, engine = self.db.write_record, self.engine

        def write(record, **rest):
            self.writes += 1
            if (self.writes, "before") == self.cut_at_write:
                engine.cut()
            if engine.was_cut.is_set():
                raise StateError("the power is gone")
            if record.state is State.COMMIT:
                assert self.daemon.running() == specs(record.active), "a verdict on a mixed set"
            written(record, **rest)
            if (self.writes, "after") == self.cut_at_write:
                engine.cut()

        self.db.write_record = write
        return self.whole

    async def update(self, new: Release) -> None:
        """From the offer to its end, in as many lives of the agent as it takes."""
        while not await self._live(new):
            pass

    async def _live(self, new: Release) -> bool:
        """One life of the agent; tells whether the update is over and what it left runs."""
        async with self.running() as updater:
            doing = asyncio.create_task(self._see_through(new))
            killed = asyncio.create_task(self.engine.was_cut.wait())
            await asyncio.wait({doing, killed, self.task}, return_when=asyncio.FIRST_COMPLETED)
            over = doing.done() and not killed.done()
            for task in (doing, killed):
                task.cancel()
            await asyncio.gather(doing, killed, return_exceptions=True)
            self.engine.cut()
            await self.whole.close()
        if over:
            doing.result()
            self.record = updater.record
        return over

    async def _see_through(self, new: Release) -> None:
        updater, power = self.updater, asyncio.create_task(self._keep_engine_up())
        camera = asyncio.create_task(self._see())
        try:
            if updater.record.last is None or updater.record.last.release.digest != new.digest:
                await updater.offer(new.assignment(), new.manifest_bytes, terms(OLD, NEW, SICK), may_install=True)
                await until(lambda: updater.record.state is not State.IDLE)
            await until(lambda: updater.record.state is State.IDLE, 3600)
            await until(lambda: self.runs(updater.record.active))
        finally:
            power.cancel()
            camera.cancel()

    async def _see(self) -> None:
        while True:
            await self.whole.infer(Frame("a", "image/png", b"", 0.0))
            await asyncio.sleep(0.05)

    async def _keep_engine_up(self) -> None:
        while True:
            await asyncio.sleep(1.5)
            if not self.daemon.up:
                self.daemon.restart()

    def runs(self, name: str) -> bool:
        serving = self.models.serving
        return (
            serving is not None
            and serving.digest == self.active == name
            and self.daemon.running() == specs(name)
            and len(self.daemon.made) == len(specs(name))
            and self.whole.health().serving
        )


def specs(name: str) -> dict[str, list[str]]:
    (found,) = (release for release in (OLD, NEW, SICK) if release.digest == name)
    return {
        one.container.name: [spec_digest(one.container.name, one.image.config.sha256, one.container.run)]
        for one in found.containers
    }


def one_update(folder, new, prepare=lambda field: None) -> Field:
    folder.mkdir()
    told = []

    async def story() -> None:
        field = Field(folder)
        await field.update(OLD)
        assert field.record.committed.digest == OLD.digest
        field.daemon.calls.clear()
        field.writes = 0
        prepare(field)
        await field.update(new)
        last = field.record.last
        assert (last.release.digest, last.outcome) == (new.digest, "committed" if new is NEW else "rolled-back"), last
        assert field.record.active == field.record.committed.digest == (NEW if new is NEW else OLD).digest
        told.append(field)

    play(story)
    return told[0]


def chosen(count: int) -> list[int]:
    """Every fifth: `tests/unit/device/containers/test_whole_killed.py` has each, without files."""
    return list(range(1, count + 1, 5))


@pytest.mark.parametrize("new", [NEW, SICK], ids=["good", "sick"])
@pytest.mark.parametrize("who", ["engine", "agent"])
def test_killed_at_a_call_to_the_engine(tmp_path, new, who):
    calls = one_update(tmp_path / "whole", new).daemon.calls
    assert {"view", "load", "start", "stop", "remove", "drop"} <= set(calls)
    for number in chosen(len(calls)):
        moment = ("before", "half", "after")[number % 3]

        def prepare(field, number=number, moment=moment) -> None:
            (field.daemon.dies_at if who == "engine" else field.daemon.cuts_at)[number] = moment

        one_update(tmp_path / str(number), new, prepare)


@pytest.mark.parametrize("new", [NEW, SICK], ids=["good", "sick"])
def test_killed_with_a_write_of_the_record(tmp_path, new):
    for number in range(1, one_update(tmp_path / "whole", new).writes + 1):

        def prepare(field, number=number) -> None:
            field.cut_at_write = (number, ("before", "after")[number % 2])

        one_update(tmp_path / str(number), new, prepare)


def test_of_a_release_that_was_rolled_back_no_image_stays(tmp_path):
    (tmp_path / "machine").mkdir()

    async def story() -> None:
        field = Field(tmp_path / "machine")
        await field.update(OLD)
        async with field.running():
            await field._see_through(SICK)
            assert field.updater.record.last.outcome == "rolled-back"
            await until(lambda: SICK_IMAGE not in field.daemon.marked)
            assert field.daemon.marked == {one.image.config.sha256 for one in OLD.containers}
            await field.whole.close()

    play(story)
