"""Whole updates on a real state folder: committed, refused, rolled back, put off, repaired."""

import asyncio
import dataclasses

import msgspec
import pytest
from blockbuster import blockbuster_ctx

from device.outbox.box import Outbox
from device.store import KEEP_FREE_BYTES
from device.update.ports import Health
from device.update.rules import Accepted, Later
from device.update.serving import Serving
from device.update.states import DAMAGES_BORNE, State
from protocol.errors import Reason, Refused
from protocol.objects import Conditions
from protocol.release import TrialRules
from tests.fakes.machines import Bench
from tests.fakes.updates import QUICK, BlobSource, Release, noise, terms
from tests.unit.device.outbox.test_outbox import drain

MIB = 1 << 20

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(2 * MIB + 5000, 2))
NEW_MODEL = next(name for name, content in NEW.artifacts.items() if content == NEW.model)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW))


async def test_a_release_is_fetched_checked_tried_and_committed(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        record = updater.record
        assert record.committed.digest == record.active == NEW.digest
        assert record.previous.digest == OLD.digest
        assert bench.workers.history == [OLD.digest, NEW.digest]
        assert bench.canary.checked == [OLD.digest, NEW.digest]
        assert bench.outcomes() == [("committed", None), ("committed", None)]
        assert bench.db.floors("update/") == {"update/era": 0, "update/counter/0": 2}
        assert updater.report().manifest == NEW.digest
        assert bench.db.counters()["bytes_received"] == OLD.travels_bytes + NEW.travels_bytes


async def test_active_shows_models_configs_and_manifest_of_what_serves(bench):
    async with bench.running():
        await bench.install(NEW)
        active = bench.folder / "active"
        assert (active / "models/pests").read_bytes() == NEW.model
        assert (active / "config/camera.toml").read_bytes() == b"version = '1.1.0'\n"
        assert (active / "manifest.json").read_bytes() == NEW.manifest_bytes
        assert bench.active == NEW.digest


async def test_after_a_restart_the_committed_release_serves_without_network_or_trust(bench):
    async with bench.running():
        await bench.install(NEW)
    bench.source.up = False
    (bench.folder / "active").unlink()
    (bench.folder / "sets/active").unlink()
    async with bench.running() as updater:
        assert bench.workers.serving == NEW.digest
        assert bench.active == NEW.digest
        assert updater.report().manifest == NEW.digest


async def test_what_no_release_needs_any_more_is_deleted_and_nothing_else(bench):
    third = Release("1.2.0", 3, noise(1000, 3))
    bench.source.add([third])
    async with bench.running():
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        await bench.install(third, NEW, OLD)
        kept = set(bench.store.digests())
        assert kept == {NEW.digest, third.digest, *NEW.artifacts, *third.artifacts}
        assert {path.name for path in (bench.folder / "sets").iterdir()} == {"active", NEW.digest, third.digest}
        assert list((bench.folder / "store/parts").iterdir()) == []


@pytest.mark.parametrize("end", ["committed", "refused", "rolled-back", "unfinished", "forbidden"])
async def test_however_an_update_ends_cleanup_leaves_nothing_of_it_behind(bench, end):
    third = Release(
        "1.2.0", 3, noise(1000, 3), trial=msgspec.structs.replace(QUICK, max_failed_starts=1, max_retries=0)
    )
    bench.source.add([third])
    listed = terms(OLD, NEW, third)
    conditions = Conditions(signals_clear=("driving",)) if end == "forbidden" else Conditions()
    async with bench.running():
        await bench.install(OLD, NEW, third)
        await bench.install(NEW, OLD, third)
        match end:
            case "refused":
                bench.canary.refuses[third.digest] = Reason.GOLDEN
            case "rolled-back":
                bench.workers.shown[third.digest] = Health(digest=third.digest, serving=True, crashes=("SIGSEGV",))
            case "unfinished":
                bench.workers.shown[third.digest] = Health(digest=third.digest, serving=False)
        await bench.updater.offer(third.assignment(conditions=conditions), third.manifest_bytes, listed, True)
        if end == "unfinished":
            await bench.until(lambda: bench.updater.record.state is State.TRIAL)
        elif end == "forbidden":
            await bench.until(lambda: bench.updater.record.state is State.WAIT)
            await bench.updater.learn(terms(OLD, NEW, role_version=2))
        if end != "unfinished":
            await bench.until(lambda: bench.updater.record.last.release.digest == third.digest)
            await bench.settled()
    async with bench.running():
        await asyncio.sleep(0)
    async with bench.running() as updater:
        await bench.settled()
        assert bench.outcomes()[-1][0] == {"forbidden": "refused"}.get(end, end)
        assert updater.record.offer is None
        named = (NEW, third) if end == "committed" else (OLD, NEW)
        store = bench.folder / "store"
        wanted = {name for release in named for name in (release.digest, *release.artifacts)}
        assert {path.name for path in (store / "sha256").iterdir()} == wanted
        assert list((store / "parts").iterdir()) == []
        assert {path.name for path in (bench.folder / "sets").iterdir()} == {
            "active",
            *(release.digest for release in named),
        }
        assert bench.active == named[1].digest
        assert not list(bench.folder.rglob(".tmp-*"))


async def test_what_keeps_a_state_from_its_work_is_shown_and_ends_nothing(bench, monkeypatch):
    full = [True]
    follow = Serving.follow

    async def cannot(self, record):
        if full[0] and record.state is State.COMMIT:
            raise OSError(28, "No space left on device")
        await follow(self, record)

    monkeypatch.setattr(Serving, "follow", cannot)
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: "No space" in updater.progress().why)
        assert updater.record.state is State.COMMIT
        full[0] = False
        await bench.settled()
        assert updater.progress().why == ""
        assert updater.record.committed.digest == NEW.digest


async def test_evidence_in_check_refuses_before_anything_changes_and_is_remembered(bench):
    bench.canary.refuses[NEW.digest] = Reason.GOLDEN
    async with bench.running() as updater:
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        assert updater.record.active == OLD.digest
        assert bench.workers.history == [OLD.digest]
        assert bench.outcomes()[-1] == ("refused", "golden")
        assert [(r.release, r.reason) for r in bench.db.refusals()] == [("1.1.0", Reason.GOLDEN)]
        again = await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        assert isinstance(again, Refused)
        assert again.reason is Reason.REFUSED_BEFORE
        assert updater.record.state is State.IDLE
        assert bench.outcomes()[-1] == ("refused", "golden")


@pytest.mark.parametrize(
    ("health", "reason"),
    [
        (Health(digest=NEW.digest, serving=False, crashes=("SIGSEGV",)), "trial-crash"),
        (Health(digest=NEW.digest, serving=True, inferences=20, latency_ms={"pests": 900.0}), "trial-latency"),
        (Health(digest=NEW.digest, serving=True, inferences=20, errors=3), "trial-errors"),
    ],
)
async def test_evidence_in_the_trial_rolls_back_and_is_never_tried_again(bench, health, reason):
    bench.workers.shown[NEW.digest] = health
    async with bench.running() as updater:
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        assert updater.record.active == updater.record.committed.digest == OLD.digest
        assert bench.workers.history == [OLD.digest, NEW.digest, OLD.digest]
        assert bench.active == OLD.digest
        assert bench.outcomes()[-1] == ("rolled-back", reason)
        assert bench.outcomes().count(("rolled-back", reason)) == 1
        assert bench.db.floors("update/")["update/counter/0"] == 1
        again = await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        assert isinstance(again, Refused)
    async with bench.running() as updater:
        again = await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        assert isinstance(again, Refused)
        bench.workers.shown.clear()
        assert [r.release for r in bench.db.lift_refusal("1.1.0")] == ["1.1.0"]
        await bench.install(NEW, OLD)
        assert updater.record.committed.digest == NEW.digest


async def test_a_release_whose_workers_do_not_come_up_is_rolled_back(bench):
    bench.workers.dead = {NEW.digest}
    async with bench.running() as updater:
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        assert bench.workers.history == [OLD.digest]
        assert updater.record.active == OLD.digest
        assert bench.outcomes()[-1] == ("rolled-back", "model-load")


async def test_the_first_release_of_a_machine_can_fail_too(bench):
    bench.workers.dead = {NEW.digest}
    async with bench.running() as updater:
        await bench.install(NEW)
        assert updater.record.active is None
        assert bench.active is None
        assert updater.report().manifest is None


@pytest.mark.parametrize("held", [True, False])
async def test_what_was_rolled_back_never_goes_on_serving(bench, held):
    bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, crashes=("exit 1",))
    async with bench.running():
        if held:
            await bench.install(OLD)
            bench.workers.dead = {OLD.digest}
        await bench.install(NEW, OLD)
        assert bench.workers.serving is None
        assert bench.active is None
        assert bool(bench.updater.progress().damaged) is held
        bench.workers.dead = set()
        if held:
            await bench.until(lambda: bench.updater.report().manifest == OLD.digest)
            assert bench.workers.serving == OLD.digest


async def test_a_machine_switched_off_and_on_three_times_in_a_trial_still_commits(bench):
    rules = TrialRules(healthy_s=100.0, min_healthy_s=15.0, min_inferences=10, max_failed_starts=1)
    slow = Release("1.3.0", 3, noise(900, 4), trial=rules)
    bench.source.add([slow])
    bench.workers.shown[slow.digest] = Health(digest=slow.digest, serving=True, inferences=4)
    async with bench.running() as updater:
        await updater.offer(slow.assignment(), slow.manifest_bytes, terms(slow), may_install=True)
        await bench.until(lambda: updater.record.healthy_s >= 20.0)
    for seconds in (40.0, 60.0):
        async with bench.running() as updater:
            assert updater.record.state is State.TRIAL
            await bench.until(lambda updater=updater, seconds=seconds: updater.record.healthy_s >= seconds)
            assert bench.workers.history == [slow.digest] * len(bench.workers.history)
    async with bench.running() as updater:
        await bench.settled()
        assert updater.record.committed.digest == slow.digest
        assert bench.outcomes() == [("committed", None)]


async def test_healthy_seconds_count_only_while_it_serves(bench):
    bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=False, inferences=100)
    async with bench.running() as updater:
        await bench.updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: updater.record.state is State.TRIAL)
        looked = len(bench.slept)
        await bench.until(lambda: len(bench.slept) > looked + 20)
        assert updater.record.state is State.TRIAL
        assert updater.progress().healthy_s == 0.0
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=100)
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest


async def test_a_release_that_takes_the_machine_down_is_given_up_after_its_starts(bench):
    async with bench.running():
        await bench.install(OLD)
        await bench.updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: bench.updater.record.state is State.TRIAL)
    starts = 1
    while True:
        async with bench.running() as updater:
            if bench.workers.serving == OLD.digest or updater.record.state is not State.TRIAL:
                break
            starts += 1
            await bench.until(lambda: bench.workers.serving == NEW.digest)
        assert starts < 10
    assert starts == NEW.trial.max_failed_starts + 1
    async with bench.running() as updater:
        await bench.until(lambda: ("unfinished", "trial-unfinished") in bench.outcomes())
        assert bench.db.refusals() == ()
        # Tried again, after a while.
        await bench.until(lambda: updater.record.committed.digest == NEW.digest)


async def test_a_release_waits_for_its_conditions_and_says_so_once(bench):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(conditions=conditions), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: updater.record.state is State.WAIT and len(bench.slept) > 5)
        assert updater.progress().why == "signals: driving"
        assert bench.outcomes() == [("deferred", None)]
        bench.signals_off.add("driving")
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest


async def test_what_was_delisted_while_it_waited_is_not_activated(bench):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await updater.offer(
            NEW.assignment(conditions=conditions), NEW.manifest_bytes, terms(NEW, OLD), may_install=True
        )
        await bench.until(lambda: updater.record.state is State.WAIT)
        await updater.learn(terms(OLD, role_version=2))
        bench.signals_off.add("driving")
        await bench.settled()
        assert updater.record.active is None
        assert bench.outcomes()[-1] == ("refused", "delisted")
        again = await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(OLD, role_version=2), True)
        assert again.reason is Reason.DELISTED
        assert bench.outcomes().count(("refused", "delisted")) == 1


async def test_a_better_offer_replaces_one_that_is_not_active_yet(bench):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await updater.offer(
            OLD.assignment(conditions=conditions), OLD.manifest_bytes, terms(NEW, OLD), may_install=True
        )
        await bench.until(lambda: updater.record.state is State.WAIT)
        await updater.offer(NEW.assignment("summer"), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: updater.record.committed is not None)
        assert updater.record.committed.digest == NEW.digest
        assert bench.workers.history == [NEW.digest]


async def test_an_update_asks_the_outbox_for_the_room_of_rows_that_the_server_has_before_it_waits_for_space(bench):
    box = await Outbox.opened(
        bench.folder / "outbox.db",
        "tractor-1",
        budget_bytes=64 * MIB,
        now_ms=lambda: 5,
        draw_token=lambda: "a" * 32,
    )
    asked = []

    async def make_room(need_bytes):
        asked.append(need_bytes)
        given = await box.give_back(need_bytes)
        bench.free_bytes += given
        return given

    bench.make_room = make_room
    bench.free_bytes = KEEP_FREE_BYTES + MIB
    try:
        await box.meet_generation("9" * 32)
        await box.enqueue_all([("results", noise(100_000, number)) for number in range(30)])
        async with bench.running() as updater:
            await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
            await bench.until(lambda: "space" in updater.record.paused)
            assert asked[0] > MIB
            assert box.queued() == 30, "what waits is no room for an update"
            await drain(box, 4 * MIB)
            await bench.settled()
            assert updater.record.committed.digest == NEW.digest
        await box.enqueue("results", b"it goes on")
    finally:
        await box.close()


async def test_what_used_up_its_retries_is_not_tried_anew_because_something_else_was_offered_in_between(bench):
    trial = msgspec.structs.replace(QUICK, max_failed_starts=1, max_retries=0)
    bad = Release("1.2.0", 3, noise(1000, 3), trial=trial)
    bench.source.add([bad])
    listed = terms(OLD, NEW, bad)
    bench.workers.shown[bad.digest] = Health(digest=bad.digest, serving=False)
    async with bench.running() as updater:
        await updater.offer(bad.assignment(), bad.manifest_bytes, listed, may_install=True)
        await bench.until(lambda: updater.record.state is State.TRIAL)
    for _ in range(2):
        async with bench.running() as updater:
            await bench.until(lambda: updater.record.state in (State.TRIAL, State.IDLE))
    async with bench.running() as updater:
        await bench.settled()
        await bench.install(OLD, NEW, bad)
        verdict = await updater.offer(bad.assignment(), bad.manifest_bytes, listed, may_install=True)
        assert isinstance(verdict, Later)
        assert "used up its retries" in verdict.why
        verdict = await updater.offer(bad.assignment("by hand"), bad.manifest_bytes, listed, may_install=True)
        assert isinstance(verdict, Accepted), "another rollout of it is the way out"


async def test_a_trial_without_frames_gives_way_to_another_offer(bench):
    third = Release("1.2.0", 3, noise(1000, 3))
    bench.source.add([third])
    bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=0)
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, third), may_install=True)
        await bench.until(lambda: updater.record.healthy_s >= NEW.trial.healthy_s)
        await updater.offer(third.assignment("summer"), third.manifest_bytes, terms(NEW, third), may_install=True)
        await bench.until(lambda: updater.record.committed is not None)
        assert updater.record.committed.digest == third.digest
        assert ("unfinished", "trial-unfinished") in bench.outcomes()


async def test_an_unsure_clock_or_expired_metadata_gates_installing_only(bench):
    async with bench.running() as updater:
        verdict = await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=False)
        assert isinstance(verdict, Later)
        assert updater.record.state is State.IDLE
        verdict = await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        assert isinstance(verdict, Accepted)


async def test_a_repeated_offer_of_what_runs_changes_nothing_and_is_told_once_a_rollout(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        asked = len(bench.source.asked)
        for _ in range(3):
            await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
            await updater.offer(OLD.assignment("autumn"), OLD.manifest_bytes, terms(OLD), may_install=True)
        assert updater.record.state is State.IDLE
        assert len(bench.source.asked) == asked
        assert bench.outcomes() == [("committed", None), ("committed", None)]


async def test_a_committed_release_that_lost_a_file_is_reported_missing_and_repaired(bench):
    async with bench.running():
        await bench.install(OLD)
        await bench.install(NEW, OLD)
    path = bench.folder / "store/sha256" / NEW_MODEL
    path.chmod(0o600)
    path.write_bytes(b"torn")  # in place: its second name under `active` is torn with it
    async with bench.running() as updater:
        assert updater.report().manifest is None
        assert bench.workers.serving == OLD.digest
        assert "lacks" in updater.progress().damaged
        await bench.install(NEW, OLD, rollout="repair")
        assert updater.report().manifest == NEW.digest
        assert bench.workers.serving == NEW.digest
        assert (bench.folder / "active/models/pests").read_bytes() == NEW.model
        assert updater.record.previous.digest == OLD.digest


async def test_a_disk_that_never_gives_back_what_it_took_ends_the_update_and_costs_a_bounded_plan(bench):
    async def damaged_each_time(release):
        bench.store.path(NEW_MODEL).unlink()
        raise Refused(Reason.HASH, "the model is not what it was")

    async with bench.running() as updater:
        await bench.install(OLD)
        before, waits = len(bench.source.asked), len(bench.slept)
        bench.canary.check = damaged_each_time
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: len(bench.outcomes()) > 1 + QUICK.max_retries and updater.record.offer is None)
        tries = (QUICK.max_retries + 1) * (DAMAGES_BORNE + 1)
        assert bench.canary.checked == [OLD.digest]
        assert len(bench.source.asked) - before <= tries * len(NEW.artifacts)
        assert len(bench.slept) - waits == tries - 1, "before each but the first"
        assert set(bench.outcomes()[1:]) == {("unfinished", Reason.HASH)}
        assert bench.workers.serving == OLD.digest


async def test_a_kept_file_that_changed_before_activation_is_fetched_again(bench):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(conditions=conditions), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: updater.record.state is State.WAIT)
        model = next(name for name, content in NEW.artifacts.items() if content == NEW.model)
        path = bench.store.path(model)
        path.chmod(0o600)
        path.write_bytes(bytes(len(NEW.model)))
        bench.signals_off.add("driving")
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
        assert bench.workers.files[model] == NEW.model


async def test_a_lost_link_pauses_and_goes_on_when_the_next_contact_succeeds(bench):
    bench.source.up = False
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: updater.record.failures >= 2)
        assert updater.record.state is State.FETCH
        assert updater.progress().why.startswith("link: ")
        assert bench.outcomes() == [("deferred", None)]
        bench.source.up = True
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        updater.link_is_up()
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
        assert updater.record.retries == 0


async def test_a_renewed_plan_ends_the_wait_for_a_blob_that_the_server_lacks(bench):
    step = NEW.plan.steps[0]
    del bench.source.blobs[step.payload.sha256]
    held = []

    async def sleep(seconds):
        held.append(seconds)
        await asyncio.Event().wait()

    async with bench.running() as updater:
        updater._fetching._world = dataclasses.replace(updater._fetching._world, sleep=sleep)
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: bool(held))
        asked = len(bench.source.asked)
        updater.link_is_up()
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await asyncio.sleep(0.05)
        assert len(bench.source.asked) == asked, "contacts do not hurry what they cannot help"
        other = Release("1.1.0", 2, NEW.model)
        bench.source.add([other])
        renewed = msgspec.structs.replace(
            NEW.assignment(), plan=msgspec.structs.replace(NEW.plan, full_bytes=NEW.plan.full_bytes + 1)
        )
        await updater.offer(renewed, NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: len(bench.source.asked) > asked)


async def test_inferences_of_all_starts_count_also_when_workers_count_from_nothing(bench):
    rules = TrialRules(healthy_s=20.0, min_healthy_s=2.0, min_inferences=30, max_failed_starts=1)
    slow = Release("1.3.0", 3, noise(900, 4), trial=rules)
    bench.source.add([slow])
    bench.workers.shown[slow.digest] = Health(digest=slow.digest, serving=True, inferences=16)
    async with bench.running() as updater:
        await updater.offer(slow.assignment(), slow.manifest_bytes, terms(slow), may_install=True)
        await bench.until(lambda: updater.record.healthy_s >= 20.0)
        assert updater.record.state is State.TRIAL
    async with bench.running() as updater:
        await bench.settled()
        assert updater.record.committed.digest == slow.digest


@pytest.mark.parametrize("where", ["check", "trial"])
async def test_a_file_that_the_disk_changed_is_no_evidence_against_the_release(bench, where):
    """Canary and workers read the bytes: when those are not the signed ones, they are fetched again."""
    model = next(name for name, content in NEW.artifacts.items() if content == NEW.model)
    spoilt = []

    def spoil():
        if not spoilt:
            spoilt.append(True)
            path = bench.store.path(model)
            path.chmod(0o600)
            path.write_bytes(bytes(len(NEW.model)))
        if bench.store.path(model).read_bytes() != NEW.model:
            raise Refused(Reason.HASH, "other bytes than those signed")

    async with bench.running() as updater:
        await bench.install(OLD)
        owner, name = (bench.canary, "check") if where == "check" else (bench.workers, "converge")
        plain = getattr(owner, name)

        async def look(release, **rest):
            if release is not None and release.digest == NEW.digest:
                spoil()
            await plain(release, **rest)

        setattr(owner, name, look)
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: updater.record.committed.digest == NEW.digest)
        assert spoilt
        assert bench.db.refusals() == ()
        assert ("refused", "hash") not in bench.outcomes()


async def test_nothing_of_an_update_holds_up_the_event_loop(bench):
    """Inference shares the loop: disk and database are touched in threads only."""
    async with bench.running():
        with blockbuster_ctx(scanned_modules=["device"]):
            await bench.install(OLD)
            await bench.install(NEW, OLD)
        assert bench.outcomes() == [("committed", None), ("committed", None)]
