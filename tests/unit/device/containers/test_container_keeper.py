"""What the keeper of containers does by itself, and what of it speaks against a release on trial."""

import asyncio
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from device.containers.conduct import words
from device.containers.engine import EngineAwayError, EngineError
from device.update.ports import HinderedError, ReleaseSet
from protocol.container import DataMount, HealthCheck, Restart, RunSpec
from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest
from tests.fakes.container_sets import make_container_release, pack_container, with_containers
from tests.fakes.engine import Behaviour, FakeEngine
from tests.fakes.release_sets import ModelSpec, make_release
from tests.fakes.whole_sets import Field, make_releases, play, specs_of, until

MODEL, OTHER = digest(b"a model"), digest(b"another model")
SEES = RunSpec(command=("/sees",), sees_model=True, sees_within_s=10.0, restart=Restart(in_trial=1))


@pytest.fixture
def story(tmp_path):
    def run(tell) -> None:
        async def whole_story() -> None:
            releases = make_releases(tmp_path)
            releases["sees"] = sees(tmp_path / "sees", b"a model", "5.0.0")
            releases["sees-other"] = sees(tmp_path / "sees-other", b"another model", "6.0.0")
            field = Field(tmp_path / "state", releases)
            await tell(field)
            await field.machine.end_agent()  # labels follow the last look, and here much changes between two looks

        (tmp_path / "state").mkdir()
        play(whole_story)

    return run


def sees(folder: Path, model: bytes, version: str) -> ReleaseSet:
    bare = make_release(folder, ModelSpec(model), version=version)
    return with_containers(bare, folder, pack_container("sees", SEES))


def faults(field: Field) -> tuple[str, ...]:
    return field.whole.health().faults


def test_what_a_container_says_repaints_no_terminal_and_is_short():
    said = "first\n" + "\n".join(f"line {n}" for n in range(9)) + "\n\x1b[2Jgone\r\n\n"
    assert words(said) == "line 5 / line 6 / line 7 / line 8 / [2Jgone"
    assert len(words("x" * 5000)) == 600


# Data folders


def keeping(user: str, **rest: object) -> RunSpec:
    return RunSpec(command=("/keeps",), user=user, mounts=(DataMount(name="maps", at="/data"),), **rest)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize("strategy", ["stop-then-start", "start-then-stop"])
def test_a_data_folder_is_the_new_users_once_the_old_one_has_ended_and_goes_back_with_its_release(tmp_path, strategy):
    async def story() -> None:
        old = make_container_release(tmp_path / "old", pack_container("app", keeping("65534:65534", strategy=strategy)))
        new = make_container_release(
            tmp_path / "new",
            pack_container("app", keeping("1234:5678", strategy=strategy, health=HealthCheck(command=("/h",)))),
        )
        (tmp_path / "state").mkdir()
        field = Field(tmp_path / "state", {"old": old, "new": new})
        field.behaves("new", "app", Behaviour(unhealthy_after_s=0.5, healthy_after_s=None))
        seen = []
        start, stop = FakeEngine.start, FakeEngine.stop

        def owner() -> int:
            return (tmp_path / "state" / "data" / "maps").stat().st_uid

        async def watched_start(self, wish):
            seen.append((f"start {wish.user}", owner()))
            await start(self, wish)

        async def watched_stop(self, id, limit_s):
            seen.append(("stop", owner()))
            await stop(self, id, limit_s)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeEngine, "start", watched_start)
            patch.setattr(FakeEngine, "stop", watched_stop)
            await field.serve("old")
            kept = tmp_path / "state" / "data" / "maps" / "kept"
            kept.touch()
            with pytest.raises(Refused):
                await field.whole.converge(new, trial=True)
            await field.settled("old")
        assert (owner(), kept.stat().st_uid) == (65534, 0)
        beside = [("start 65534:65534", 65534), ("start 1234:5678", 1234), ("stop", 1234)]
        instead = [beside[0], ("stop", 65534), beside[1], beside[2], beside[0]]
        assert seen == (beside if strategy == "start-then-stop" else instead)
        await field.machine.end_agent()

    play(story)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_an_agent_that_was_killed_before_it_gave_a_folder_back_gives_it_back(tmp_path):
    async def story() -> None:
        old = make_container_release(tmp_path / "old", pack_container("app", keeping("65534:65534")))
        (tmp_path / "state").mkdir()
        field = Field(tmp_path / "state", {"old": old})
        await field.serve("old")
        await field.machine.end_agent()
        os.chown(tmp_path / "state" / "data" / "maps", 1234, 5678)
        field.machine.start_agent()
        await field.serve("old")
        await until(lambda: (tmp_path / "state" / "data" / "maps").stat().st_uid == 65534)
        assert field.daemon.calls.count("start") == 1
        await field.machine.end_agent()

    play(story)


def test_a_container_whose_folder_cannot_be_given_to_it_is_not_started_and_not_blamed(story, monkeypatch):
    async def tell(field):
        def refuse(one):
            if one.container.name == "driver":
                raise StateError("not permitted")

        monkeypatch.setattr(field.machine.keeper, "_give_data", refuse)
        await field.whole.converge(field.releases["old"])
        await until(lambda: "gateway" in field.daemon.running())
        await asyncio.sleep(20)
        assert "driver" not in field.daemon.running()
        assert "not permitted" in field.whole.health().hindered
        assert faults(field) == ()

    story(tell)


# Of a committed release


def test_what_ends_is_started_again_later_and_later_and_soon_once_it_was_steady(story):
    async def tell(field):
        field.behaves("old", "driver", Behaviour(lives_s=0.5))
        await field.whole.converge(field.releases["old"])
        await asyncio.sleep(300)
        starts = field.daemon.calls.count("start") - 1  # the gateway's
        assert 5 <= starts <= 11, "1, 2, 4, 8... 60 s apart"
        field.behaves("old", "driver", Behaviour(lives_s=100.0))
        await asyncio.sleep(70 + 10 * 110)
        again = field.daemon.calls.count("start") - 1 - starts
        assert 8 <= again <= 12, "a second after each steady life"
        status = field.whole.engine_status().containers["driver"]
        assert status.restarts >= starts + again - 2
        assert faults(field) == ()

    story(tell)


def test_one_that_is_sick_is_started_anew(story):
    async def tell(field):
        field.behaves("old", "gateway", Behaviour(unhealthy_after_s=30.0))
        await field.serve("old")
        (first,) = [made.started for made in field.daemon.made.values() if made.wish.name == "gateway"]
        await asyncio.sleep(50)
        (second,) = [made.started for made in field.daemon.made.values() if made.wish.name == "gateway"]
        assert first != second
        assert field.whole.health().serving
        assert faults(field) == ()
        field.check_labels()
        assert None in [manifest for at_s, manifest, _ in field.machine.rows if at_s > 10]

    story(tell)


def test_a_leftover_that_the_engine_cannot_remove_takes_no_label_and_no_update(story):
    """Docker calls such a container dead: its folder is busy. It does not run, so nothing is mixed."""

    async def tell(field):
        await field.serve("old")
        remove, stuck = FakeEngine.remove, {made.id for made in field.daemon.made.values()}

        async def refuse(self, id):
            if id in stuck:
                raise EngineError("driver failed to remove root filesystem: device or resource busy")
            await remove(self, id)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeEngine, "remove", refuse)
            await field.whole.converge(field.releases["new"], trial=True)
            await asyncio.sleep(120)
            assert field.whole.health().serving
            assert field.whole.health().hindered == ""
            assert field.machine.rows[-1][1] == field.releases["new"].digest
            assert stuck <= field.daemon.made.keys()
        await asyncio.sleep(120)
        assert not stuck & field.daemon.made.keys(), "it goes when it can"

    story(tell)


def test_what_somebody_changed_by_hand_is_made_right(story):
    async def tell(field):
        await field.serve("old")
        ids = {made.wish.name: name for name, made in field.daemon.made.items()}
        await field.machine.engine.stop(ids["driver"], 1.0)
        await field.machine.engine.remove(ids["driver"])
        by_hand = replace(field.daemon.wish_of("gateway"), spec=digest(b"by hand"))
        await field.machine.engine.start(by_hand)
        await until(lambda: field.daemon.running() != specs_of(field.releases["old"]))
        await field.settled("old")

    story(tell)


def test_what_runs_is_remembered_again_after_the_database_was_lost(story):
    async def tell(field):
        await field.serve("old")
        field.machine.trace.has_used = False
        for name in ("old", "none"):
            await field.machine.end_agent()
            field.machine.start_agent()
            await field.whole.converge(field.releases[name])
            await field.settled(name)

    story(tell)


def test_after_the_engine_was_started_anew_all_run_again_at_once_and_nobody_counts_it(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        for _ in range(5):
            field.daemon.die()
            field.daemon.restart()  # between two looks: no call of ours fails
            await asyncio.sleep(100)  # longer than a container may take to come up
            assert field.runs("new")
            assert faults(field) == ()

    story(tell)


def test_an_engine_that_is_restarted_around_its_containers_has_them_checked_anew_and_nobody_counts_it(story):
    async def tell(field):
        field.daemon.live_restore = True
        field.behaves("new", "gateway", Behaviour(healthy_after_s=20.0))
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        await asyncio.sleep(100)
        field.daemon.die()
        field.daemon.restart()
        await asyncio.sleep(10)
        assert (faults(field), field.whole.health().serving) == ((), False)
        await asyncio.sleep(15)
        assert (faults(field), field.whole.health().serving) == ((), True)
        assert field.daemon.calls.count("start") == 4

    story(tell)


# Of a release on trial


@pytest.mark.parametrize("says", ["finding", "error"])
def test_a_frame_is_evidence_only_when_the_whole_set_was_there_for_it(story, says):
    """What a model makes beside containers of another release, or without its own, may be those' doing."""

    async def tell(field):
        def counts():
            health = field.whole.health()
            return health.inferences, health.errors

        field.behaves("sees", "sees", Behaviour(says=((0.0, f"headland-sees {MODEL}"),)))
        field.machine.workers.says = says
        await field.serve("old")
        field.daemon.die()
        await field.whole.converge(field.releases["sees"], trial=True)
        assert field.machine.workers.serving is field.releases["sees"], "the workers go ahead"
        await asyncio.sleep(30)
        assert counts() == (0, 0)
        field.daemon.restart()
        await field.settled("sees")
        await asyncio.sleep(5)
        inferences, errors = counts()
        assert inferences > 50
        assert errors == (inferences if says == "error" else 0)
        field.daemon.die()
        await asyncio.sleep(5)
        at_most = counts()[0]
        await asyncio.sleep(30)
        assert counts()[0] == at_most
        await field.whole.converge(field.releases["old"])
        await field.whole.converge(field.releases["sees"], trial=True)
        assert counts() == (0, 0), "since it was brought up"

    story(tell)


def test_ends_are_evidence_once_there_are_more_than_the_release_bears(story):
    async def tell(field):
        await field.serve("old")
        field.behaves("sees", "sees", Behaviour(says=((0.0, f"headland-sees {MODEL}"),)))
        await field.whole.converge(field.releases["sees"], trial=True)
        await field.settled("sees")
        field.daemon.end("sees", "SIGSEGV")
        await asyncio.sleep(2)
        assert faults(field) == ()
        await field.settled("sees")
        field.daemon.end("sees", "out of memory")
        await until(lambda: bool(faults(field)))
        (fault,) = faults(field)
        assert fault.startswith("container sees ended by itself 2 times: out of memory; it said: headland-sees")
        assert "sees" not in field.daemon.running(), "a fault in a trial is told, not mended"

    story(tell)


def test_what_somebody_pauses_or_removes_is_made_anew_and_is_no_end_of_its_own(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        field.daemon.pause("driver")
        await field.settled("new")
        (driver,) = [made for made in field.daemon.made.values() if made.wish.name == "driver"]
        driver.started_s = None  # as an engine shows what it is removing
        await until(lambda: not field.runs("new"))
        await field.settled("new")
        await asyncio.sleep(5)
        assert (faults(field), field.whole.health().serving) == ((), True)

    story(tell)


def test_a_container_that_was_sick_before_says_nothing_of_the_release_that_shares_it_until_it_was_well(story):
    async def tell(field):
        field.behaves("old", "gateway", Behaviour(healthy_after_s=None, unhealthy_after_s=3.0))
        await field.whole.converge(field.releases["old"])
        await until(lambda: field.whole.engine_status().containers["gateway"].trouble.startswith("unhealthy"))
        await field.whole.converge(field.releases["same"], trial=True)
        assert field.machine.workers.serving is field.releases["same"]
        for _ in range(3000):
            await asyncio.sleep(0.1)
            health = field.whole.health()
            assert (health.faults, health.late) == ((), ())
        await until(lambda: field.whole.health().hindered == "container gateway was not well before either: unhealthy")
        field.behaves("old", "gateway", Behaviour())
        await field.settled("same")  # it is started again as ever: the new model may be what it needs
        await asyncio.sleep(100)
        field.behaves("old", "gateway", Behaviour(unhealthy_after_s=0.0))
        await until(lambda: faults(field) == ("container gateway is unhealthy: the check failed",), 5)

    story(tell)


def test_a_container_that_ended_again_and_again_before_is_no_evidence_even_while_it_runs(story):
    async def tell(field):
        field.behaves("old", "driver", Behaviour(lives_s=20.0))
        await field.whole.converge(field.releases["old"])
        await asyncio.sleep(30)
        assert "driver" in field.daemon.running()
        await field.whole.converge(field.releases["same"], trial=True)
        await until(lambda: "driver" not in field.daemon.running())
        await asyncio.sleep(2)
        assert faults(field) == ()
        field.behaves("old", "driver", Behaviour(lives_s=100.0))
        await until(lambda: bool(faults(field)), 300)
        assert faults(field)[0].startswith("container driver ended by itself once")

    story(tell)


@pytest.mark.parametrize(
    ("says", "fault"),
    [
        (((0.0, "hello"),), "told of no model 10 s after the change"),
        (((0.0, f"headland-sees {MODEL}"), (2.0, f"headland-sees {OTHER}")), f"sees model {OTHER[:12]} 10 s after"),
        (((0.0, f"headland-sees {MODEL}"),), ""),
        (((8.0, f"headland-sees {MODEL}"),), ""),
        (((0.0, f"headland-sees {OTHER}"), (8.0, f"headland-sees {MODEL}")), ""),
        (((0.0, f"xheadland-sees {MODEL}"), (0.1, f"headland-sees {MODEL[:-1]}")), "told of no model"),
    ],
    ids=["nothing", "another", "at-once", "in-time", "the-newest-counts", "not-exactly"],
)
def test_a_container_is_to_see_a_model_of_the_release(story, says, fault):
    async def tell(field):
        field.behaves("sees", "sees", Behaviour(says=says))
        await field.serve("old")
        await field.whole.converge(field.releases["sees"], trial=True)
        assert not fault or not field.whole.health().serving or says[0][1].endswith(MODEL)
        await asyncio.sleep(9)
        assert faults(field) == ()
        await asyncio.sleep(5)
        found = (*faults(field), *field.whole.health().late)
        assert [fault in one for one in found] == [True] * bool(fault)
        assert field.whole.health().serving == (not fault)

    story(tell)


def test_of_a_container_that_goes_on_the_sight_of_the_new_model_counts(story):
    """The old one is named by the line before."""

    async def tell(field):
        field.behaves(
            "sees", "sees", Behaviour(says=((0.0, f"headland-sees {MODEL}"), (30.0, f"headland-sees {OTHER}")))
        )
        await field.serve("sees")
        assert specs_of(field.releases["sees"]) == specs_of(field.releases["sees-other"])
        await field.whole.converge(field.releases["sees-other"], trial=True)
        assert not field.whole.health().serving
        await asyncio.sleep(5)
        assert (faults(field), field.whole.health().serving) == ((), False)
        await asyncio.sleep(15)
        assert "sees model" in faults(field)[0]
        await asyncio.sleep(30)
        assert (faults(field), field.whole.health().serving) == ((), True)

    story(tell)


def test_what_comes_up_late_at_a_boot_is_told_apart_from_what_speaks_against_it_and_goes_on_coming_up(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        await field.machine.end_agent()
        field.daemon.die()
        field.daemon.restart()
        field.behaves("new", "gateway", Behaviour(healthy_after_s=200.0, says=((0.0, "reads its card"),)))
        field.machine.start_agent()
        await field.whole.converge(field.releases["new"], trial=True)
        await asyncio.sleep(100)
        health = field.whole.health()
        assert (health.faults, health.serving) == ((), False)
        assert health.late == ("container gateway did not come up within 42 s; it said: reads its card",)
        await field.settled("new")
        assert field.whole.health().late == ()

    story(tell)


def test_a_sight_counts_however_much_is_said_before_anybody_looks_and_before_the_next_agent_does(story):
    async def tell(field):
        much = ["x" * 200] * 2000
        says = [(0.0, f"headland-sees {MODEL}"), *((0.01, line) for line in much), *((60.0, line) for line in much)]
        field.behaves("sees", "sees", Behaviour(says=tuple(says)))
        await field.serve("old")
        for _ in range(2):
            await field.whole.converge(field.releases["sees"], trial=True)
            await asyncio.sleep(70)
            assert (faults(field), field.whole.health().serving) == ((), True)
            await field.machine.end_agent()
            field.machine.start_agent()

    story(tell)


def test_no_row_names_a_release_while_an_engine_shows_nothing(story):
    async def tell(field):
        await field.serve("old")
        view, thaws = field.machine.engine.view, asyncio.Event()

        async def frozen():
            await thaws.wait()
            return await view()

        field.machine.engine.view = frozen
        await asyncio.sleep(40)
        assert field.machine.rows[-1][1] is None
        thaws.set()
        await field.settled("old")
        await asyncio.sleep(1)
        assert field.machine.rows[-1][1] == field.releases["old"].digest

    story(tell)


def test_an_engine_that_does_not_do_it_is_asked_for_a_minute_and_is_no_evidence(story):
    async def tell(field):
        await field.serve("old")
        made = specs_of(field.releases["new"])
        plain = field.machine.engine.load

        async def load(image, files):
            raise EngineError("something of its own")

        field.machine.engine.load = load
        with pytest.raises(HinderedError, match="something of its own"):
            await field.whole.converge(field.releases["new"], trial=True)
        assert field.runs("old")
        assert field.daemon.calls.count("stop") == 0
        field.machine.engine.load = plain
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        assert field.daemon.running() == made

    story(tell)


def test_one_moment_in_which_the_engine_does_not_do_it_ends_no_slow_coming_up(story, tmp_path):
    async def tell(field):
        check = HealthCheck(command=("/check",), start_s=300.0)
        slow = pack_container("slow", RunSpec(command=("/slow",), health=check, restart=Restart(in_trial=1)))
        release = make_container_release(tmp_path / "slow", slow, version="9.0.0")
        field.releases["slow"] = release
        field.machine.files.update(release.files)
        field.behaves("slow", "slow", Behaviour(healthy_after_s=100.0))
        await field.serve("old")
        plain, refused = field.machine.engine.start, []

        async def start(wish):
            if wish.name == "slow" and asyncio.get_running_loop().time() > 60 and not refused:
                refused.append(wish)
                raise EngineError("cannot allocate memory")
            await plain(wish)

        field.machine.engine.start = start
        asyncio.get_running_loop().call_later(90, field.daemon.end, "slow")
        await field.whole.converge(release, trial=True)
        assert refused
        await field.settled("slow")

    story(tell)


def test_an_engine_that_hangs_is_no_word_of_a_set_and_none_against_it(story):
    async def tell(field):
        field.machine.camera.cancel()  # no row is of interest here
        field.behaves("new", "gateway", Behaviour(healthy_after_s=20.0))
        await field.whole.converge(field.releases["new"], trial=True)
        await asyncio.sleep(5)
        plain = field.machine.engine.view

        async def hang(limit_s=170.0):
            await asyncio.sleep(limit_s)
            raise EngineAwayError("the engine does not answer")

        field.machine.engine.view = hang
        await asyncio.sleep(100)
        assert faults(field) == (), "nobody saw that it was not up"
        field.machine.engine.view = plain
        await field.settled("new", 300)
        for limit_s in (170.0, 500.0):
            field.machine.engine.view = partial(hang, limit_s)
            await asyncio.sleep(2)
            await field.whole.converge(field.releases["new"], trial=True)  # the look before a verdict
            assert not field.whole.health().serving
            field.machine.engine.view = plain
            await field.settled("new", 1200)

    story(tell)


def test_an_engine_that_takes_its_time_is_waited_for_before_a_verdict(story):
    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["new"], trial=True)
        await field.settled("new")
        plain = field.machine.engine.view

        async def slow():
            await asyncio.sleep(20)
            return await plain()

        field.machine.engine.view = slow
        for _ in range(3):
            await field.whole.converge(field.releases["new"], trial=True)
            assert field.whole.health().serving

    story(tell)


def test_a_device_that_is_not_there_is_the_machines_fault(story, tmp_path):
    async def tell(field):
        run = RunSpec(command=("/needs",), devices=("/dev/apex_999",))
        release = make_container_release(tmp_path / "needs", pack_container("needs", run), version="9.0.0")
        field.releases["needs"] = release
        field.machine.files.update(release.files)
        await field.serve("old")
        with pytest.raises(Refused) as refused:
            await field.whole.converge(release, trial=True)
        assert refused.value.reason is Reason.WRONG_HARDWARE
        await field.settled("old")
        # Committed, it is waited for, and does not keep the models from serving.
        await field.whole.converge(release)
        await asyncio.sleep(60)
        assert field.machine.workers.serving is release
        assert "apex_999" in field.whole.engine_status().containers["needs"].trouble
        assert not field.whole.health().serving

    story(tell)
