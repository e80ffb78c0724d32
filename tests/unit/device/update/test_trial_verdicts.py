"""How a trial ends when not the release but the managers or the machine itself come into it."""

import contextlib
import dataclasses
import errno

import msgspec
import pytest

from device.accounts import Accounts
from device.update.ports import Health
from device.update.states import State
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
