"""The example of an application: as an ordinary process, on the real sets and the real local socket."""

import asyncio
import json
import shutil
from contextlib import asynccontextmanager

import pytest

from device.layout import Layout
from device.local.link import LocalLink
from device.update.ports import ReleaseSet
from device.update.sets import Sets
from protocol.ids import digest
from tests.fakes.demo_app import SPRAYER, DemoApp
from tests.fakes.updates import Release, noise

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(1000, 2))


class Machine:
    """What of a machine an application sees."""

    def __init__(self, state) -> None:
        self.state = state
        self.store = state / "store"
        self.store.mkdir(parents=True)
        self.sets = Sets(state)

    @asynccontextmanager
    async def running(self):
        self.link = LocalLink(Layout(self.state).link)
        self.sets = Sets(self.state, tell=self.link.board.show)
        task = asyncio.create_task(self.link.run(lambda: 0))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def serve(self, release: Release) -> None:
        manifest = release.manifest
        files = {digest(data): self.store / digest(data) for data in release.artifacts.values()}
        for data in (*release.artifacts.values(), release.manifest_bytes):
            (self.store / digest(data)).write_bytes(data)
        variants = {model.name: model.variants[0] for model in manifest.models}
        shown = ReleaseSet(digest=release.digest, manifest=manifest, variants=variants, files=files)
        await asyncio.to_thread(self.sets.show, shown, self.store / release.digest)

    def alarm(self, release: Release) -> None:
        row = json.dumps({"model": digest(release.model), "alarm": True}).encode()
        self.link.readers.show([("alarms", row), ("results", b'{"model":"x"}')])


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "state")


@pytest.fixture
def app(machine, tmp_path):
    Layout(machine.state).link.mkdir(parents=True)
    made = DemoApp(machine.state, tmp_path / "app")
    yield made
    if made.child is not None:
        made.child.kill()
        made.child.wait(5)


async def until(condition):
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  (of another process)
            await asyncio.sleep(0.03)


async def test_it_says_which_model_it_sees_after_each_change_and_lives_on_without_the_agent(machine, app):
    async with machine.running():
        await asyncio.to_thread(app.start)
        await machine.serve(OLD)
        await until(lambda: app.sees() == [digest(OLD.model)])
        await machine.serve(NEW)
        await until(lambda: app.sees() == [digest(OLD.model), digest(NEW.model)])
        await until(lambda: len(machine.link.readers) == 1)
        machine.alarm(NEW)
        await until(lambda: app.health()["sprayed"] == {digest(NEW.model): 1})
        assert await asyncio.to_thread(app.check) == 0
    async with machine.running():
        await machine.serve(OLD)
        await until(lambda: app.sees()[2:] == [digest(OLD.model)])
        await until(lambda: len(machine.link.readers) == 1)
        machine.alarm(OLD)
        await until(lambda: app.health()["sprayed"] == {digest(NEW.model): 1, digest(OLD.model): 1})
        assert await asyncio.to_thread(app.stop) == 0
        await asyncio.to_thread(app.start)
        assert len((await asyncio.to_thread(app.health))["sprayed"]) == 2, "its data outlives it"


async def test_a_model_that_is_not_what_the_agent_says_is_not_seen(machine, app):
    path = machine.sets._sets / OLD.digest / "models/pests"
    async with machine.running():
        await machine.serve(OLD)
        path.unlink()
        path.write_bytes(b"another")
        await asyncio.to_thread(app.start)
        await until(lambda: "is not what the agent says it is" in app.said())
        assert app.sees() == []


async def test_a_count_that_cannot_be_written_stops_no_nozzle(machine, app):
    in_the_way = app.log.parent / "sprayed.new"
    in_the_way.mkdir()
    async with machine.running():
        await machine.serve(OLD)
        await asyncio.to_thread(app.start)
        await until(lambda: len(machine.link.readers) == 1)
        machine.alarm(OLD)
        await until(lambda: "the counts cannot be kept" in app.said())
        in_the_way.rmdir()
        machine.alarm(OLD)
        await until(lambda: app.health()["sprayed"] == {digest(OLD.model): 2})
        await until((app.log.parent / "sprayed.json").exists)


async def test_its_health_check_is_red_when_it_hears_no_results(machine, app, tmp_path, monkeypatch):
    monkeypatch.setattr("device.local.readers.STREAMS", 0)
    text = SPRAYER.read_text().replace("PATIENCE_S = 60.0", "PATIENCE_S = 1.0")
    (tmp_path / "sprayer.py").write_text(text.replace("WAIT_S = 50.0", "WAIT_S = 0.2"))
    (tmp_path / "sprayer.json").write_text('{"version": "1.0.0", "nozzles": 6}')
    app._command[-1] = str(tmp_path / "sprayer.py")
    async with machine.running():
        await machine.serve(OLD)
        await asyncio.to_thread(app.start)
        await until(lambda: app.sees() == [digest(OLD.model)])
        await asyncio.sleep(1.5)
        assert await asyncio.to_thread(app.check) == 1
        assert app.health()["why"].startswith("no results were heard")


async def test_its_health_check_is_red_when_it_cannot_spray(machine, app, tmp_path):
    shutil.copy(SPRAYER, tmp_path / "sprayer.py")
    (tmp_path / "sprayer.json").write_text('{"version": "1.2.0", "nozzles": 0}')
    app._command[-1] = str(tmp_path / "sprayer.py")
    assert await asyncio.to_thread(app.check) == 1, "it does not run yet"
    await asyncio.to_thread(app.start)
    assert await asyncio.to_thread(app.check) == 1
    assert app.health()["why"] == "no nozzle is there to be opened"
