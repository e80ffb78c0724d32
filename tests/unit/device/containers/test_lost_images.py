"""Images that the engine lost come back beside all else, for as long as somebody wants them."""

import asyncio
from pathlib import Path

import pytest

from device.containers.engine import EngineError
from device.update.ports import ReleaseSet
from tests.fakes.container_sets import make_container_release, pack_container
from tests.fakes.whole_sets import GATEWAY, OWNER, RULES, Field, play, until


@pytest.fixture
def story(tmp_path):
    def run(tell) -> None:
        async def whole_story() -> None:
            field = Field(tmp_path / "state", {"old": release(tmp_path, "1.0.0"), "new": release(tmp_path, "2.0.0")})
            try:
                await tell(field)
            finally:
                await field.machine.end_agent()

        (tmp_path / "state").mkdir()
        play(whole_story)

    return run


def release(folder: Path, version: str) -> ReleaseSet:
    """Each of its containers has an image of its own."""
    containers = [
        pack_container(name, run, layers=(b"base", f"{name} {version}".encode()))
        for name, run in (("driver", OWNER), ("gateway", GATEWAY))
    ]
    return make_container_release(folder / version, *containers, version=version, trial=RULES)


def lose(field: Field, name: str) -> None:
    """The container's image, and the container, by somebody's hand."""
    for made in list(field.daemon.made.values()):
        if made.wish.name == name:
            field.daemon.lose(made.wish.image)
            del field.daemon.made[made.id]


def loads_take(field: Field, seconds: float, brought: list[str]) -> None:
    plain = field.machine.engine.load

    async def load(image, files):
        brought.append(image.config.sha256)
        await asyncio.sleep(seconds)
        await plain(image, files)
        brought.append("done")

    field.machine.engine.load = load


def test_an_image_that_the_engine_lost_is_brought_back(story):
    async def tell(field):
        await field.serve("old")
        lose(field, "driver")
        await field.settled("old")

    story(tell)


def test_what_has_its_image_is_looked_after_while_that_of_another_one_comes(story):
    async def tell(field):
        await field.serve("old")
        brought = []
        loads_take(field, 3000.0, brought)
        lose(field, "driver")
        await until(lambda: bool(brought))
        assert "on its way" in field.whole.health().hindered
        for _ in range(3):
            field.daemon.end("gateway")
            await until(lambda: "gateway" not in field.daemon.running(), 1)
            await until(lambda: "gateway" in field.daemon.running(), 20)
        assert field.whole.engine_status().containers["driver"].trouble.endswith("is on its way into the engine")
        await field.settled("old", 3600)
        assert brought[1:] == ["done"]

    story(tell)


def test_what_is_not_wanted_any_longer_is_brought_no_further_and_nobody_waits_for_it(story):
    async def tell(field):
        await field.serve("old")
        await field.machine.end_agent()
        field.machine.start_agent()
        brought = []
        loads_take(field, 3000.0, brought)
        await field.whole.converge(field.releases["new"], trial=True)  # as after a cut in its trial
        await asyncio.sleep(100)
        assert (field.whole.health().faults, field.whole.health().late) == ((), ())
        await field.whole.converge(field.releases["old"])
        await field.settled("old", 5)
        await asyncio.sleep(5000)
        assert len(brought) == 1, "nor is the other one begun"

    story(tell)


def test_an_image_of_a_release_on_trial_is_waited_for_before_anything_of_the_old_one_is_touched(story):
    async def tell(field):
        await field.serve("old")
        stops = field.daemon.calls.count("stop")
        brought = []
        loads_take(field, 300.0, brought)
        change = asyncio.create_task(field.whole.converge(field.releases["new"], trial=True))
        await asyncio.sleep(500)
        assert len(brought) == 3, "one after the other"
        assert field.runs("old")
        assert field.daemon.calls.count("stop") == stops
        await change
        await field.settled("new")

    story(tell)


def test_nobody_is_late_who_waits_for_the_image_of_another_one(story):
    """An engine that refuses is asked for a minute; a container has half of that to come up."""

    async def tell(field):
        await field.serve("old")
        plain, lacking = field.machine.engine.load, field.releases["new"].images["gateway"]
        began_s = field.daemon.clock()

        async def load(image, files):
            if image == lacking and field.daemon.clock() - began_s < 20:  # then it is asked again at 31
                raise EngineError("something of its own")
            await plain(image, files)

        field.machine.engine.load = load
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")

    story(tell)


def test_an_image_that_does_not_come_is_tried_again(story):
    async def tell(field):
        await field.serve("old")
        plain, times = field.machine.engine.load, []

        async def load(image, files):
            times.append(field.daemon.clock())
            if len(times) < 4:
                raise EngineError("something of its own")
            await plain(image, files)

        field.machine.engine.load = load
        lose(field, "driver")
        await until(lambda: "something of its own" in field.whole.health().hindered)
        await field.settled("old")
        assert len(times) == 4
        assert times[3] - times[2] > 3, "later and later"

    story(tell)
