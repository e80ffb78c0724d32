"""How a trial ends when not the release but the managers or the machine itself come into it."""

import contextlib
import dataclasses
import errno

import msgspec
import pytest

from device.accounts import Accounts
from device.update.ports import Health, HinderedError
from device.update.states import State
from device.update.watching import HINDERED_S
from protocol.errors import Reason, Refused
from protocol.release import TrialRules
from tests.fakes.machines import Bench
from tests.fakes.updates import MACHINE, BlobSource, Release, noise, terms

RULES = TrialRules(healthy_s=100.0, min_healthy_s=15.0, min_inferences=10)
OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(900, 2), trial=RULES)
CORAL = Release("1.2.0", 3, noise(900, 3), accelerator="edgetpu", trial=RULES)
LISTED = terms(OLD, NEW, CORAL)
WITH_CORAL = dataclasses.replace(
    MACHINE, inventory=msgspec.structs.replace(MACHINE.inventory, accelerators=("edgetpu", "cpu"))
)


@pytest.fixture
def bench(tmp_path):
    """Releases on trial serve without frames, so that no trial ends by itself."""
    bench = Bench(tmp_path, BlobSource(OLD, NEW, CORAL))
    for release in (NEW, CORAL):
        bench.workers.shown[release.digest] = Health(digest=release.digest, serving=True, inferences=0)
    return bench


async def begin(bench, release):
    """Has `release` on trial, with OLD committed."""
    await bench.install(OLD, NEW, CORAL)
    await bench.updater.offer(release.assignment(), release.manifest_bytes, LISTED, may_install=True)
    await bench.until(lambda: bench.updater.record.state is State.TRIAL and bench.workers.serving == release.digest)


@pytest.mark.parametrize("before_a_cut", [False, True])
async def test_a_release_that_is_delisted_in_its_trial_is_rolled_back_and_not_held_against_it(bench, before_a_cut):
    proves_itself = Health(digest=NEW.digest, serving=True, inferences=100)
    async with bench.running() as updater:
        await begin(bench, NEW)
        if before_a_cut:
            updater._memory.learn(terms(OLD, CORAL, role_version=2))  # the cut comes before the trial hears of it
        else:
            await updater.learn(terms(OLD, CORAL, role_version=2))
            bench.workers.shown[NEW.digest] = proves_itself
            await bench.settled()
    bench.workers.shown[NEW.digest] = proves_itself
    async with bench.running() as updater:
        await bench.settled()
        assert updater.record.active == updater.record.committed.digest == OLD.digest
        assert bench.workers.serving == bench.active == OLD.digest
        assert bench.outcomes()[-1] == ("rolled-back", "delisted")
        assert bench.db.refusals() == ()


async def test_other_releases_are_delisted_without_harm_to_the_trial(bench):
    async with bench.running() as updater:
        await begin(bench, NEW)
        await updater.learn(terms(OLD, NEW, role_version=2))
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=100)
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest


async def test_an_accelerator_that_is_not_there_at_a_boot_is_no_evidence_against_the_release(bench):
    bench.machine = WITH_CORAL
    async with bench.running():
        await begin(bench, CORAL)
    bench.machine = MACHINE
    async with bench.running() as updater:
        await bench.until(lambda: bench.workers.serving == OLD.digest)
        await bench.until(lambda: ("unfinished", "wrong-hardware") in bench.outcomes())
        assert bench.db.refusals() == ()
        assert updater.record.committed.digest == OLD.digest


async def test_an_accelerator_that_is_enumerated_late_is_waited_for(bench):
    bench.machine = WITH_CORAL
    async with bench.running():
        await begin(bench, CORAL)
    bench.machine, bench.plugged_in = MACHINE, WITH_CORAL.inventory
    async with bench.running() as updater:
        await bench.until(lambda: bench.workers.serving == CORAL.digest)
        assert updater.record.state is State.TRIAL
        assert bench.outcomes() == [("committed", None)]


@pytest.mark.parametrize("served", [True, False])
async def test_not_to_come_up_at_a_boot_counts_only_against_a_release_that_never_served(bench, served):
    """At a boot everything is read at once: loading may take longer than it may, and did not when it was tried."""
    async with bench.running() as updater:
        if not served:
            bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=False)
        await begin(bench, NEW)
        if served:
            await bench.until(lambda: updater.record.healthy_s > 0)
    bench.workers.dead = {NEW.digest}
    async with bench.running():
        await bench.until(lambda: bench.workers.serving == OLD.digest)
        ends = ("unfinished", "model-load") if served else ("rolled-back", "model-load")
        await bench.until(lambda: ends in bench.outcomes())
        assert bool(bench.db.refusals()) is not served


@pytest.mark.parametrize("served", [True, False])
async def test_a_container_that_comes_up_slowly_counts_only_against_a_release_that_never_served(bench, served):
    late = Health(digest=NEW.digest, serving=False, late=("container a did not come up within 30 s",))
    async with bench.running() as updater:
        await begin(bench, NEW)
        if served:
            await bench.until(lambda: updater.record.healthy_s > 0)
    bench.workers.shown[NEW.digest] = late
    async with bench.running() as updater:
        if not served:
            await bench.settled()
            assert bench.outcomes()[-1] == ("rolled-back", "trial-container")
            return
        await bench.until(lambda: "did not come up" in updater.progress().why)
        began_s = bench.elapsed_s
        await bench.until(lambda: bench.elapsed_s - began_s > HINDERED_S / 2)
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=0)
        await bench.until(lambda: not updater.progress().why)
        assert updater.record.state is State.TRIAL
        bench.workers.shown[NEW.digest] = late
        await bench.until(lambda: ("unfinished", "trial-unfinished") in bench.outcomes())
        assert bench.db.refusals() == ()


async def test_a_container_that_does_not_come_up_again_after_the_release_gave_way_for_a_moment_is_no_evidence(bench):
    """A full disk takes no record: the committed release serves until it does, and may be what is in the way."""
    async with bench.running() as updater:
        await begin(bench, NEW)
        await bench.until(lambda: updater.record.healthy_s > 0)
    plain = bench.workers.converge

    async def full(release, *, trial=False):
        if trial:
            raise Refused(Reason.TRIAL_CONTAINER, "container a ended by itself once: exit 1")
        await plain(release)

    bench.workers.converge = full
    async with bench.running():
        await bench.until(lambda: ("unfinished", "trial-container") in bench.outcomes())
        assert bench.db.refusals() == ()


async def test_a_container_at_fault_rolls_its_release_back_and_is_remembered(bench):
    async with bench.running() as updater:
        await begin(bench, NEW)
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=False, faults=("container a ended",))
        await bench.settled()
        assert bench.workers.serving == bench.active == updater.record.active == OLD.digest
        assert bench.outcomes()[-1] == ("rolled-back", "trial-container")
        assert [refusal.detail for refusal in bench.db.refusals()] == ["container a ended"]


async def test_an_engine_that_stays_away_leaves_a_trial_without_a_verdict(bench):
    async with bench.running() as updater:
        await begin(bench, NEW)
        began_s = bench.elapsed_s
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=False, hindered="engine: away")
        await bench.until(lambda: updater.progress().why == "engine: away")
        await bench.until(lambda: bench.workers.serving == OLD.digest)
        assert bench.elapsed_s - began_s > HINDERED_S
        await bench.until(lambda: ("unfinished", "trial-unfinished") in bench.outcomes())
        assert bench.db.refusals() == ()


async def test_a_release_is_committed_only_while_it_is_whole(bench):
    """It had been for long enough; at the look that decides it was, and a moment later it is not."""
    whole = Health(digest=NEW.digest, serving=True, inferences=1000)
    async with bench.running() as updater:
        await begin(bench, NEW)
        plain, looks = bench.workers.converge, []

        async def look_again(release, *, trial=False):
            await plain(release, trial=trial)
            if release is not None and release.digest == NEW.digest:
                looks.append(trial)
                gone = len(looks) < 3
                bench.workers.shown[NEW.digest] = dataclasses.replace(whole, serving=not gone)

        bench.workers.converge = look_again
        bench.on_sleep = lambda _: bench.workers.shown.update({NEW.digest: whole})
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
        assert looks == [True, True, True, False], "the last one is the commit's own"


async def test_an_engine_that_does_not_do_it_ends_the_try_and_not_the_release(bench):
    async with bench.running() as updater:
        await bench.install(OLD, NEW, CORAL)
        plain = bench.workers.converge

        async def hindered(release, *, trial=False):
            if trial:
                raise HinderedError("engine: something of its own")
            await plain(release)

        bench.workers.converge = hindered
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, LISTED, may_install=True)
        await bench.until(lambda: ("unfinished", "trial-unfinished") in bench.outcomes())
        assert bench.workers.serving == OLD.digest
        assert bench.db.refusals() == ()


async def test_a_start_that_has_to_begin_anew_within_one_process_counts_once(bench, monkeypatch):
    async with bench.running():
        await begin(bench, NEW)
    updater = bench.boot()
    failures, settle = [OSError(errno.ENOSPC, "No space left on device")] * 4, Accounts.settle

    def on_a_full_disk(self, is_here):
        if failures:
            raise failures.pop()
        settle(self, is_here)

    monkeypatch.setattr(Accounts, "settle", on_a_full_disk)
    with contextlib.closing(bench.db):
        for _ in range(4):
            with pytest.raises(OSError, match="No space"):
                await updater.start()
        await updater.start()
        assert updater.record.starts == 1
        assert bench.db.record().starts == 1
