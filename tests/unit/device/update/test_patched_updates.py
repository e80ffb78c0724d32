"""Whole updates that travel as patches: what is told, what waits for a budget, and what never happens in silence."""

import asyncio
import dataclasses

import msgspec
import pytest
from blockbuster import blockbuster_ctx

from device.transfer import ApplierEndedError
from device.transfer.applier import in_process
from device.transfer.patch_book import PatchBook
from device.update.states import State
from protocol.errors import Reason
from protocol.ids import digest
from protocol.messages import TransferBytes
from protocol.objects import Budget, Step, TransferPlan
from tests.fakes.machines import Bench
from tests.fakes.patches import PlainPatch
from tests.fakes.updates import INVENTORY, BlobSource, Release, noise, terms

DAY_S = 86_400
OLD = Release("1.0.0", 1, noise(300_000, 1))
PATCH = PlainPatch([(0, 250_000, 9000), (5, 200_000, 400_000)], base=OLD.model)
NEW = Release("1.1.0", 2, PATCH.result)
FULL_PLAN = NEW.plan
FULL_STEP = next(step for step in FULL_PLAN.steps if step.artifact == PATCH.step.artifact)


def patched_plan(patch=PATCH):
    """The plan for NEW with its model as a patch."""
    step = msgspec.structs.replace(patch.step, artifact=FULL_STEP.artifact, full_bytes=FULL_STEP.travels_bytes())
    steps = tuple(step if one.artifact == step.artifact else one for one in FULL_PLAN.steps)
    return TransferPlan(steps=steps, full_bytes=FULL_PLAN.travels_bytes())


def broken():
    """A patch whose bytes are those that were signed and that gives something else."""
    other = PlainPatch(PATCH.groups, base=OLD.model)
    return other.pack([*other.group_bytes[:-1], other.group_bytes[-1][:-1] + b"x"], PATCH.result)


PLAN = patched_plan()
BROKEN = broken()
OTHERS = PLAN.travels_bytes() - PATCH.step.travels_bytes()


@pytest.fixture
def bench(tmp_path):
    source = BlobSource(OLD, NEW)
    source.blobs.update(PATCH.blobs)
    source.blobs.update(BROKEN.blobs)
    return Bench(tmp_path, source)


async def offer(bench, plan, **more):
    assignment = msgspec.structs.replace(NEW.assignment(), plan=plan, **more)
    await bench.updater.offer(assignment, NEW.manifest_bytes, terms(NEW, OLD), may_install=True)


def statuses(bench):
    return [status for status in bench.db.pending_statuses(1000) if status.manifest == NEW.digest]


async def paused(bench, times=1):
    await bench.until(lambda: bench.updater.record.state is State.FETCH and bench.updater.record.failures >= times)


async def committed(bench):
    await bench.until(lambda: bench.updater.record.committed.digest == NEW.digest)
    await bench.settled()


async def test_an_update_by_a_patch_is_committed_and_its_bytes_are_told(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        before = bench.source.sent
        await offer(bench, PLAN)
        await committed(bench)
        manifest_bytes = len(NEW.manifest_bytes) * [name for name, _, _ in bench.source.asked].count(NEW.digest)
        assert bench.source.sent - before == PLAN.travels_bytes() + manifest_bytes
        took = TransferBytes(
            delta_bytes=PATCH.step.travels_bytes(),
            full_bytes=OTHERS,
            saved_bytes=FULL_STEP.travels_bytes() - PATCH.step.travels_bytes(),
        )
        assert updater.report().transfer == took
        assert statuses(bench)[-1].transfer == took
        counters = bench.db.counters()
        assert counters["delta_bytes"] == took.delta_bytes
        assert counters["full_bytes"] == took.full_bytes + OLD.travels_bytes
        assert counters["saved_bytes"] == took.saved_bytes
    async with bench.running() as updater:
        assert updater.report().transfer == took


async def test_a_patch_that_fails_is_told_and_nothing_travels_until_a_plan_comes_without_it(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        await offer(bench, patched_plan(BROKEN))
        await paused(bench)
        asked = len(bench.source.asked)
        await paused(bench, 3)
        updater.link_is_up()
        await offer(bench, patched_plan(BROKEN))
        await paused(bench, 5)
        assert len(bench.source.asked) == asked
        assert updater.progress().why.startswith("patch: ")
        [failed] = PatchBook(bench.db, INVENTORY.agent).untold()
        assert (failed.payload, failed.reason) == (BROKEN.step.payload.sha256, Reason.HASH)
        assert [(s.outcome, s.reason) for s in statuses(bench)].count(("deferred", Reason.HASH)) == 1
        assert bench.db.refusals() == ()
    async with bench.running():
        await paused(bench, 6)
        assert len(bench.source.asked) == asked, "it is remembered"
        await offer(bench, FULL_PLAN)
        await committed(bench)


async def test_a_machine_that_ends_its_appliers_waits_blames_nothing_and_goes_on_by_a_plan_without_patches(bench):
    def ended(*_):
        raise ApplierEndedError("killed")

    async with bench.running() as updater:
        await bench.install(OLD)
        updater._fetching._fetcher._appliers = in_process(ended)
        await offer(bench, PLAN)
        await paused(bench, 5)
        assert updater.progress().why.startswith("applier: ")
        assert not updater._fetching._fetcher._notes.can_apply, "so the inventory names no codec"
        assert PatchBook(bench.db, INVENTORY.agent).failed() == ()
        assert updater.record.retries == 0
        await offer(bench, FULL_PLAN)
        await committed(bench)


async def test_the_renewed_plan_has_its_price_and_the_budget_decides(bench):
    budget = Budget(release_bytes=BROKEN.step.travels_bytes() + OTHERS + 1000)
    async with bench.running() as updater:
        await bench.install(OLD)
        await offer(bench, patched_plan(BROKEN), budget=budget)
        await paused(bench)
        sent = bench.source.sent
        await offer(bench, FULL_PLAN, budget=budget)
        await bench.until(lambda: updater.progress().needs_bytes > 0)
        assert bench.source.sent == sent
        told = statuses(bench)[-1]
        assert (told.outcome, told.reason, told.state) == ("deferred", Reason.BUDGET, "fetch")
        assert told.needs_bytes == updater.progress().needs_bytes == FULL_PLAN.travels_bytes()
        assert "budget: " in told.detail
        await paused(bench, 4)
        assert [s.reason for s in statuses(bench)].count(Reason.BUDGET) == 1
    async with bench.running() as updater:
        await bench.until(lambda: updater.progress().needs_bytes > 0)
        assert bench.source.sent == sent, "a restart gives no fresh budget"
        larger = Budget(release_bytes=budget.release_bytes + FULL_PLAN.travels_bytes())
        await offer(bench, FULL_PLAN, budget=larger)
        await committed(bench)
        assert updater.record.retries == 0


@pytest.mark.parametrize("what", ["a larger budget", "a cheaper plan"])
async def test_a_larger_budget_or_a_cheaper_plan_ends_the_wait_at_once(bench, what):
    held = []

    async def sleep(seconds):
        held.append(seconds)
        await asyncio.Event().wait()

    budget = Budget(release_bytes=PLAN.travels_bytes())
    async with bench.running() as updater:
        await bench.install(OLD)
        updater._fetching._world = dataclasses.replace(updater._fetching._world, sleep=sleep)
        await offer(bench, FULL_PLAN, budget=budget)
        await bench.until(lambda: bool(held))
        asked = len(bench.source.asked)
        updater.link_is_up()
        await offer(bench, FULL_PLAN, budget=budget)
        await asyncio.sleep(0.05)
        assert len(bench.source.asked) == asked, "contacts do not hurry what they cannot help"
        if what == "a cheaper plan":
            await offer(bench, PLAN, budget=budget)
        else:
            await offer(bench, FULL_PLAN, budget=Budget())
        await bench.until(lambda: len(bench.source.asked) > asked)


async def test_a_day_that_is_spent_waits_for_the_next_one(bench):
    bench.own_budget = Budget(day_bytes={"cellular": OLD.travels_bytes + 5000})
    async with bench.running() as updater:
        await bench.install(OLD)
        day = bench.now_ms // 1000 // DAY_S
        await offer(bench, PLAN)
        await bench.until(lambda: updater.progress().needs_bytes > 0)
        assert updater.progress().needs_bytes == PLAN.travels_bytes()
        # The bench's time passes in the pauses alone.
        bench.own_budget = Budget(day_bytes={"cellular": PLAN.travels_bytes()})
    async with bench.running() as updater:
        await committed(bench)
        assert bench.now_ms // 1000 // DAY_S > day


async def test_an_update_that_fits_into_no_day_never_begins(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        bench.own_budget = Budget(day_bytes={"cellular": PLAN.travels_bytes() - 1})
    async with bench.running() as updater:
        sent = bench.source.sent
        await offer(bench, PLAN)
        await bench.until(lambda: bench.elapsed_s > 3 * DAY_S)
        assert bench.source.sent == sent
        assert updater.record.state is State.FETCH


async def test_another_link_has_a_day_of_its_own(bench):
    bench.own_budget = Budget(day_bytes={"cellular": 0})
    bench.link = "wifi"
    async with bench.running():
        await bench.install(OLD)
        bench.link = "cellular"
    async with bench.running() as updater:
        await offer(bench, PLAN)
        await bench.until(lambda: updater.progress().needs_bytes > 0)
        bench.link = "wifi"
    async with bench.running():
        await committed(bench)


async def test_the_base_of_a_planned_patch_is_not_cleaned_up(bench):
    stray = PlainPatch(PATCH.groups, base=noise(300_000, 77))
    data = stray.pack([*PlainPatch(PATCH.groups, base=stray.base).group_bytes], stray.result)
    release = Release("1.1.0", 2, data.result)
    full = next(step for step in release.plan.steps if step.artifact == data.step.artifact)
    plan = TransferPlan(steps=tuple(data.step if step is full else step for step in release.plan.steps), full_bytes=0)
    bench.source.add([release])
    bench.source.blobs.update(data.blobs)
    async with bench.running() as updater:
        await bench.install(OLD)
        bench.store.put(stray.base)  # of no release that the record names
        assignment = msgspec.structs.replace(release.assignment(), plan=plan)
        await updater.offer(assignment, release.manifest_bytes, terms(release, OLD), may_install=True)
        await bench.until(lambda: updater.record.committed.digest == release.digest)
        await bench.settled()
        assert not bench.store.has(digest(stray.base)), "and goes once the update is over"


async def test_a_cut_in_the_middle_of_a_patch_goes_on_at_the_next_start_without_a_contact(bench):
    payload = PATCH.step.payload
    async with bench.running() as updater:
        await bench.install(OLD)
        before = bench.source.sent
        bench.source.chunk_bytes = 4000
        bench.source.drops_at = set(range(before + 330_000, before + 360_000, 4000))
        await offer(bench, PLAN)
        await bench.until(lambda: updater.record.failures > 0)
        bench.source.up = False
        await bench.until(lambda: updater.record.failures > 3)
        held = updater.parts()[payload.sha256]
        assert 327_000 <= held < payload.length_bytes
    bench.source.up = True
    bench.source.drops_at = set()
    async with bench.running() as updater:
        assert updater.parts() == {payload.sha256: held}
        await committed(bench)
        assert bench.source.sent - before == PLAN.travels_bytes()
        assert updater.parts() == {}


async def test_a_plan_that_is_renewed_while_it_is_fetched_replaces_it(bench):
    async with bench.running():
        await bench.install(OLD)
        held = asyncio.Event()
        plain = bench.source.stream

        async def stream(path, *, first, length):
            if path.endswith(FULL_STEP.payload.sha256):
                held.set()
                await asyncio.Event().wait()
            async for chunk in plain(path, first=first, length=length):
                yield chunk

        bench.source.stream = stream
        await offer(bench, FULL_PLAN)
        async with asyncio.timeout(20):
            await held.wait()
        await offer(bench, PLAN)
        await committed(bench)
        assert PatchBook(bench.db, INVENTORY.agent).untold() == ()


async def test_nothing_of_a_patch_holds_up_the_event_loop(bench):
    """Inference shares the loop: segments, groups and accounts are touched in threads only."""
    async with bench.running():
        with blockbuster_ctx(scanned_modules=["device"]):
            await bench.install(OLD)
            await offer(bench, patched_plan(BROKEN))
            await paused(bench)
            await offer(bench, PLAN)
            await committed(bench)
            assert bench.updater.report().transfer.delta_bytes > 0


async def test_what_has_come_meanwhile_is_no_reason_to_begin_a_fetch_anew(bench):
    """Each contact brings a plan that asks for less: a link of its own for each would cost a handshake every time."""
    async with bench.running():
        await bench.install(OLD)
        held, go_on = asyncio.Event(), asyncio.Event()
        plain = bench.source.stream

        async def stream(path, *, first, length):
            if path.endswith(FULL_STEP.payload.sha256):
                held.set()
                await go_on.wait()
            async for chunk in plain(path, first=first, length=length):
                yield chunk

        bench.source.stream = stream
        await offer(bench, FULL_PLAN)
        async with asyncio.timeout(20):
            await held.wait()
        come = tuple(
            one if one == FULL_STEP else Step(artifact=one.artifact, length_bytes=one.length_bytes, method="have")
            for one in FULL_PLAN.steps
        )
        assert come != FULL_PLAN.steps
        held.clear()
        await offer(bench, TransferPlan(steps=come, full_bytes=FULL_PLAN.full_bytes))
        go_on.set()
        await committed(bench)
        assert not held.is_set(), "the payload was asked for again"
