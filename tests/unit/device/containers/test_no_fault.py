"""What looks like the fault of a container, or of its release, and is none."""

import asyncio

import pytest

from device.containers.engine import EngineAwayError, EngineError
from protocol.container import Restart, RunSpec
from protocol.ids import digest
from tests.fakes.container_sets import make_container_release, pack_container, with_containers
from tests.fakes.engine import Behaviour
from tests.fakes.release_sets import ModelSpec, make_release
from tests.fakes.whole_sets import RULES, Field, make_releases, play, until

MODEL = digest(b"a model")
SEES = RunSpec(command=("/sees",), sees_model=True, sees_within_s=10.0)
SHAKY = RunSpec(command=("/shaky",), restart=Restart(in_trial=20))


@pytest.fixture
def story(tmp_path):
    def run(tell) -> None:
        async def whole_story() -> None:
            bare = make_release(tmp_path / "sees", ModelSpec(b"a model"), version="5.0.0")
            releases = make_releases(tmp_path)
            releases["sees"] = with_containers(bare, tmp_path / "sees", pack_container("sees", SEES))
            shaky = pack_container("shaky", SHAKY)
            releases["shaky"] = make_container_release(tmp_path / "shaky", shaky, version="6.0.0", trial=RULES)
            field = Field(tmp_path / "state", releases)
            field.behaves("sees", "sees", Behaviour(says=((0.0, f"headland-sees {MODEL}"),)))
            try:
                await tell(field)
            finally:
                await field.machine.end_agent()

        (tmp_path / "state").mkdir()
        play(whole_story)

    return run


def test_one_that_waits_for_its_next_start_is_not_late_meanwhile(story):
    """It ended less often than the release bears; the waits become longer than it may take to come up."""

    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["shaky"], trial=True)
        field.behaves("shaky", "shaky", Behaviour(lives_s=0.5))
        for _ in range(1500):
            await asyncio.sleep(0.2)
            health = field.whole.health()
            assert (health.faults, health.late) == ((), ())
        assert field.whole.engine_status().containers["shaky"].restarts > 5

    story(tell)


def test_one_kill_from_outside_is_none_and_another_one_is(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        field.daemon.end("driver", "SIGKILL")
        await until(lambda: not field.runs("new"))
        await field.settled("new")
        assert (field.whole.health().faults, field.whole.health().late) == ((), ())
        field.daemon.end("driver", "SIGKILL")
        await until(lambda: field.whole.health().faults == ("container driver ended by itself once: SIGKILL",))

    story(tell)


def test_an_engine_that_answered_the_last_look_is_not_away_while_the_next_one_begins(story, monkeypatch):
    async def at_once(awaitable, limit_s):
        async with asyncio.timeout(limit_s):
            return await awaitable  # as from Python 3.12 on: what is there already yields to nobody

    monkeypatch.setattr("device.containers.keeper.asyncio.wait_for", at_once)

    async def tell(field):
        field.behaves("new", "gateway", Behaviour(healthy_after_s=5.0))
        await field.serve("old")
        plain = field.machine.engine.view

        async def view():
            await asyncio.sleep(0.1)
            found = await plain()
            field.machine.keeper._wake.set()  # an image that came
            return found

        field.machine.engine.view = view
        began_s = field.daemon.clock()
        await field.whole.converge(field.releases["new"], trial=True)
        assert field.daemon.clock() - began_s >= 5, "the workers waited for their containers"
        field.machine.engine.view = plain
        await field.settled("new")

    story(tell)


def test_no_row_names_a_release_while_an_engine_tells_no_log(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["sees"], trial=True)
        await field.settled("sees")
        plain, thaws = field.machine.engine.log, asyncio.Event()

        async def frozen(*arguments):
            await thaws.wait()
            raise EngineAwayError("it ended")

        field.machine.engine.log = frozen
        await asyncio.sleep(40)
        assert (field.machine.rows[-1][1], field.whole.health().serving) == (None, False)
        field.machine.engine.log = plain
        thaws.set()
        await field.settled("sees")
        await until(lambda: field.machine.rows[-1][1] == field.releases["sees"].digest)

    story(tell)


def test_a_log_that_the_engine_cannot_read_is_no_word_against_a_release_and_keeps_nobody_from_being_started(story):
    async def tell(field):
        await field.serve("old")
        plain = field.machine.engine.log

        async def log(*arguments):
            raise EngineError("invalid character in the log")

        field.machine.engine.log = log
        await field.whole.converge(field.releases["sees"], trial=True)
        await asyncio.sleep(100)
        health = field.whole.health()
        assert (health.faults, health.late, health.serving) == ((), (), False)
        assert health.hindered == "engine: invalid character in the log"
        field.daemon.end("sees", "SIGKILL")
        await until(lambda: "sees" not in field.daemon.running(), 2)
        await until(lambda: "sees" in field.daemon.running(), 10)
        field.machine.engine.log = plain
        await field.settled("sees")
        assert field.whole.health().hindered == ""
        field.machine.engine.log = log
        field.daemon.end("sees")
        await until(lambda: field.whole.health().faults == ("container sees ended by itself once: exit 1",))

    story(tell)


def test_last_words_that_cannot_be_read_are_done_without(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")

        async def log(*arguments):
            raise EngineError("invalid character in the log")

        field.machine.engine.log = log
        field.daemon.end("driver")
        await until(lambda: field.whole.health().faults == ("container driver ended by itself once: exit 1",))
        await asyncio.sleep(2)
        assert field.whole.health().hindered == ""

    story(tell)
