"""Models and containers of a release change together or not at all; a result names it only while it is whole."""

import asyncio

import pytest

from device.inference.frames import Frame
from protocol.container import RunSpec
from protocol.errors import Reason, Refused
from tests.fakes.container_sets import make_container_release, pack_container
from tests.fakes.engine import Behaviour
from tests.fakes.whole_sets import Field, make_releases, play
from tests.fakes.whole_updates import Updates


@pytest.fixture
def story(tmp_path):
    def run(tell) -> None:
        async def whole_story() -> None:
            field = Field(tmp_path / "state", make_releases(tmp_path))
            await tell(field)
            await field.end()

        (tmp_path / "state").mkdir()
        play(whole_story)

    return run


@pytest.mark.timeout(20)
@pytest.mark.parametrize("turns", (0, 1))
def test_a_story_that_fails_leaves_no_agent_that_looks_without_end(tmp_path, turns):
    async def fails() -> None:
        field = Field(tmp_path, make_releases(tmp_path))
        await field.serve("old")
        field.machine.keeper.switched()  # it wakes while it is cancelled
        for _ in range(turns):
            await asyncio.sleep(0)
        raise ValueError("as it must be told")

    with pytest.raises(ValueError, match="as it must be told"):
        play(fails)


def test_models_and_containers_change_together(story):
    async def tell(field):
        field.behaves("new", "gateway", Behaviour(healthy_after_s=2.0))
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        assert field.machine.workers.serving is field.releases["new"]
        await field.settled("new")
        await asyncio.sleep(1)
        assert {manifest for _, manifest, _ in field.machine.rows} == {
            field.releases["old"].digest,
            None,
            field.releases["new"].digest,
        }

    story(tell)


def test_what_two_releases_share_goes_on_untouched_and_every_row_keeps_its_label(story):
    async def tell(field):
        await field.serve("old")
        ids, first = set(field.daemon.made), len(field.machine.rows)
        await field.whole.converge(field.releases["same"], trial=True)
        await field.settled("same")
        await asyncio.sleep(1)
        assert set(field.daemon.made) == ids
        assert None not in [manifest for _, manifest, _ in field.machine.rows[first:]]
        assert field.daemon.calls.count("stop") == 0

    story(tell)


def test_a_hand_over_leaves_no_moment_without_a_gateway(story):
    async def tell(field):
        field.behaves("new", "gateway", Behaviour(healthy_after_s=5.0))
        await field.serve("old")
        gaps = []

        async def watch():
            while True:
                gaps.append("gateway" not in field.daemon.running())
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        await field.whole.converge(field.releases["new"], trial=True)
        assert len(field.daemon.running()["gateway"]) == 2
        await field.settled("new")
        watching.cancel()
        assert not any(gaps)

    story(tell)


@pytest.mark.parametrize("paused", [False, True])
def test_what_has_one_owner_is_stopped_before_the_new_one_is_started(story, paused):
    """Also where somebody paused it: so it keeps its port and its camera."""

    async def tell(field):
        await field.serve("old")
        if paused:
            field.daemon.pause("driver")
        seen = []

        async def watch():
            while True:
                seen.append(len(field.daemon.alive("driver")))
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        watching.cancel()
        assert max(seen) == 1
        if paused:
            field.machine.rows = field.machine.rows[-1:]  # what is done by hand is missed only by the next look

    story(tell)


def test_all_that_has_to_end_ends_at_once_so_that_the_gap_is_one_containers(story):
    async def tell(field):
        for name in ("driver", "gateway"):
            field.behaves("old", name, Behaviour(ends_on_term=False))
        await field.serve("old")
        began_s = field.daemon.clock()
        await field.whole.converge(field.releases["none"], trial=True)
        await field.settled("none")
        assert 10 <= field.daemon.clock() - began_s < 12

    story(tell)


def test_a_container_has_as_long_to_end_as_its_own_release_granted_it_also_after_a_new_start_of_the_agent(tmp_path):
    async def tell():
        slow = pack_container("slow", RunSpec(command=("/slow",), stop_s=90.0))
        releases = {"slow": make_container_release(tmp_path / "slow", slow, version="9.0.0")}
        field = Field(tmp_path / "state", make_releases(tmp_path) | releases)
        field.behaves("slow", "slow", Behaviour(ends_on_term=False))
        await field.serve("slow")
        await field.machine.end_agent()
        field.machine.start_agent()
        began_s = field.daemon.clock()
        await field.whole.converge(field.releases["none"])
        await field.settled("none")
        assert 90 <= field.daemon.clock() - began_s < 92
        await field.end()

    (tmp_path / "state").mkdir()
    play(tell)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (Behaviour(refuses="no such program"), "no such program"),
        (Behaviour(lives_s=0.02, says=((0.01, "cannot open /data"),)), "ended by itself once: exit 1; it said: cannot"),
        (Behaviour(unhealthy_after_s=1.0, healthy_after_s=None), "unhealthy: the check failed"),
        (Behaviour(healthy_after_s=None), "did not come up within 42 s"),
    ],
    ids=["refused", "ends", "unhealthy", "never-healthy"],
)
def test_a_container_that_does_not_come_up_takes_its_model_back_with_it(story, behaviour, says):
    async def tell(field):
        field.behaves("new", "gateway", behaviour)
        await field.serve("old")
        before = set(field.daemon.made)
        with pytest.raises(Refused, match=says) as refused:
            await field.whole.converge(field.releases["new"], trial=True)
        assert refused.value.reason is Reason.TRIAL_CONTAINER
        assert "gateway" in refused.value.message
        assert field.machine.workers.switches == [field.releases["old"].digest]
        await field.settled("old")
        assert set(field.daemon.made) == before

    story(tell)


def test_a_model_that_does_not_come_up_leaves_the_containers_alone(story):
    async def tell(field):
        await field.serve("old")
        field.machine.workers.dead = frozenset({field.releases["new"].digest})
        calls = [call for call in field.daemon.calls if call in ("start", "stop")]
        with pytest.raises(Refused):
            await field.whole.converge(field.releases["new"], trial=True)
        assert [call for call in field.daemon.calls if call in ("start", "stop")] == calls
        await field.settled("old")

    story(tell)


def test_containers_that_a_release_has_no_more_are_gone_and_the_engine_is_left_alone_then(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["none"], trial=True)
        await field.settled("none")
        await asyncio.sleep(1)
        calls = len(field.daemon.calls)
        await asyncio.sleep(1000)
        assert len(field.daemon.calls) == calls

    story(tell)


def test_a_machine_without_containers_never_asks_an_engine(story):
    async def tell(field):
        await field.serve("none")
        await field.whole.converge(None)
        await field.whole.converge(field.releases["none"], trial=True)
        await asyncio.sleep(100)
        assert field.daemon.calls == []
        assert field.whole.engine_status() is None

    story(tell)


def test_what_a_release_before_the_last_restart_left_running_is_found_and_stopped(story):
    async def tell(field):
        await field.serve("old")
        await field.machine.end_agent()
        field.machine.start_agent()
        await field.whole.converge(field.releases["none"])
        assert not field.whole.health().serving
        await field.settled("none")

    story(tell)


def test_an_engine_that_is_away_holds_up_no_inference_and_gives_no_label(story):
    async def tell(field):
        field.daemon.die()
        began_s = field.daemon.clock()
        await field.whole.converge(field.releases["old"])
        assert field.daemon.clock() - began_s < 1
        await asyncio.sleep(60)
        assert {manifest for _, manifest, _ in field.machine.rows} == {None}
        health = field.whole.health()
        assert (health.digest, health.serving, health.faults) == (field.releases["old"].digest, False, ())
        assert "engine" in health.hindered
        field.daemon.restart()
        await field.settled("old")

    story(tell)


def test_an_engine_that_is_gone_for_good_takes_no_release_without_containers_from_the_models(story):
    """Since the machine was started anew nothing of ours was started, so nothing of it runs."""

    async def tell(field):
        await field.serve("old")
        await field.machine.end_agent()
        field.daemon.die()
        field.machine.trace.may_run = False
        field.machine.start_agent()
        await field.whole.converge(field.releases["old"])
        await asyncio.sleep(60)
        assert (field.machine.rows[-1][1], field.whole.health().serving) == (None, False)
        await field.whole.converge(field.releases["none"], trial=True)
        first = len(field.machine.rows)
        for _ in range(5):
            await asyncio.sleep(40)
            await field.whole.converge(field.releases["none"], trial=True)  # the look before a verdict
            assert field.whole.health().serving
        assert {manifest for _, manifest, _ in field.machine.rows[first:]} == {field.releases["none"].digest}
        assert field.whole.engine_status().trouble
        field.daemon.restart()
        await field.settled("none")  # what is left of the old release goes then

    story(tell)


def test_of_an_engine_that_ended_since_its_containers_were_started_nothing_is_believed(story):
    async def tell(field):
        field.daemon.live_restore = True
        await field.serve("old")
        field.daemon.die()
        for _ in range(2):
            await field.whole.converge(field.releases["none"], trial=True)
            await asyncio.sleep(60)
            assert (field.machine.rows[-1][1], field.whole.health().serving) == (None, False)
            await field.machine.end_agent()
            field.machine.start_agent()
        field.daemon.restart()
        await field.whole.converge(field.releases["none"], trial=True)
        await field.settled("none")
        field.daemon.die()  # it was seen that nothing runs
        await asyncio.sleep(60)
        assert field.whole.health().serving

    story(tell)


def test_a_frame_over_which_the_set_was_not_whole_names_no_release(story):
    async def tell(field):
        await field.serve("old")
        field.machine.workers.takes_s = 20.0
        frame = asyncio.create_task(field.whole.infer(Frame("a", "image/png", b"", 0.0)))
        await asyncio.sleep(1)
        field.daemon.end("driver")
        await asyncio.sleep(15)
        assert field.runs("old")
        reply = await frame
        assert reply.manifest is None
        field.machine.workers.takes_s = 0.01
        await asyncio.sleep(21)
        field.machine.rows = field.machine.rows[-1:]  # what died by itself is missed only by the next look

    story(tell)


def test_a_release_without_models_is_kept_although_no_frame_ever_comes(story):
    async def tell(field):
        updates = Updates(field, "old")
        await updates.serve()
        assert field.releases["new"].manifest.trial.min_inferences > 0
        assert await updates.update("new") == "new"

    story(tell)
