"""What serves follows the record, also when it could not at first: whatever else the update machine has to do."""

import asyncio
import dataclasses

import msgspec
import pytest

from device.update.states import State
from protocol.objects import Conditions
from tests.fakes.machines import Bench
from tests.fakes.updates import MACHINE, BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(3000, 2))
CORAL = Release("1.2.0", 3, noise(900, 3), accelerator="edgetpu")
LISTED = terms(OLD, NEW, CORAL)
WITH_CORAL = dataclasses.replace(
    MACHINE, inventory=msgspec.structs.replace(MACHINE.inventory, accelerators=("edgetpu", "cpu"))
)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW, CORAL))


@pytest.mark.parametrize("state", [State.FETCH, State.CHECK, State.WAIT])
async def test_a_committed_release_that_did_not_come_up_is_mended_whatever_offer_stands(bench, state):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await bench.install(OLD)
        if state is State.FETCH:
            bench.source.up = False
        elif state is State.CHECK:
            bench.canary.gate = asyncio.Event()
        await updater.offer(NEW.assignment(conditions=conditions), NEW.manifest_bytes, LISTED, may_install=True)
        await bench.until(lambda: updater.record.state is state)
    bench.workers.dead = {OLD.digest}
    async with bench.running() as updater:
        assert bench.workers.serving is None
        bench.workers.dead = set()
        await bench.until(lambda: bench.workers.serving == OLD.digest)
        await bench.until(lambda: updater.report().manifest == OLD.digest)
        assert updater.record.state is state


async def test_a_bug_does_not_end_the_mending(bench):
    async with bench.running():
        await bench.install(OLD)
    bench.workers.dead = {OLD.digest}
    plain, bugs = bench.workers.converge, [ValueError("a bug"), ValueError("another")]

    async def broken(release, *, trial=False):
        if bugs:
            raise bugs.pop()
        await plain(release)

    async with bench.running():
        bench.workers.dead = set()
        bench.workers.converge = broken
        await bench.until(lambda: bench.workers.serving == OLD.digest)
        assert bugs == []


async def test_nothing_is_mended_behind_a_trial(bench):
    """An old release that comes up at last must not take workers or link back from the one on trial."""
    async with bench.running():
        await bench.install(OLD)
    bench.workers.dead = {OLD.digest}
    plain = bench.workers.converge
    tried, comes_up, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(release, *, trial=False):
        if release is not None and release.digest == OLD.digest:
            tried.set()
            try:
                await comes_up.wait()
                await plain(release)
            finally:
                over.set()
        else:
            await plain(release)

    async with bench.running() as updater:
        bench.workers.dead = set()
        bench.workers.converge = slowly
        await tried.wait()
        await bench.install(NEW, OLD)
        comes_up.set()
        await over.wait()
        assert bench.workers.serving == bench.active == updater.record.committed.digest == NEW.digest


@pytest.mark.parametrize("withdrawn", ["delisted", "below the floor"])
async def test_what_the_managers_withdrew_is_not_fallen_back_to(bench, withdrawn):
    async with bench.running() as updater:
        await bench.install(OLD, NEW)
        await bench.install(NEW, OLD)
    bench.workers.dead = {NEW.digest}
    async with bench.running():
        assert bench.workers.serving == bench.active == OLD.digest
    async with bench.running() as updater:
        known = terms(NEW, role_version=2) if withdrawn == "delisted" else terms(OLD, NEW, role_version=2, floor=2)
        await updater.learn(known)
        await bench.until(lambda: bench.workers.serving is None and bench.active is None)
    async with bench.running():
        assert bench.workers.serving is None
        bench.workers.dead = set()
        await bench.until(lambda: bench.workers.serving == bench.active == NEW.digest)


async def test_the_committed_release_serves_on_whatever_was_withdrawn(bench):
    async with bench.running() as updater:
        await bench.install(OLD, NEW)
        await updater.learn(terms(NEW, role_version=2, floor=2))
    async with bench.running():
        assert bench.workers.serving == OLD.digest


async def test_an_accelerator_that_is_enumerated_late_is_found(bench):
    bench.machine = WITH_CORAL
    async with bench.running():
        await bench.install(CORAL)
    bench.machine = MACHINE
    async with bench.running() as updater:
        assert bench.workers.serving is None
        assert updater.report().manifest is None
        bench.plugged_in = WITH_CORAL.inventory
        await bench.until(lambda: bench.workers.serving == CORAL.digest)
        assert updater.inventory == WITH_CORAL.inventory
        await bench.until(lambda: updater.report().manifest == CORAL.digest)
