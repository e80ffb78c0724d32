"""A patched update on the real updater with two cuts of the power, the second one on the way on from the first one.

That it ends whole wherever it is cut is shown by `test_fail_points` and `test_crash_states` (the workload `update`).
Here it is what the cuts cost: bytes that travel again, and bytes that a patch saved, which count once.
"""

import contextlib
import shutil

import msgspec
import pytest

from device.state_db import StateDb
from device.update.states import State
from protocol.limits import KIB
from protocol.objects import TransferPlan
from signing.durable import Disk
from tests.fakes.machines import Bench
from tests.fakes.patches import SEGMENT, PlainPatch
from tests.fakes.power import NEVER, Fuse, PowerCut
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(60_000, 1))
# Three groups in two segments; small, for many histories are played.
PATCH = PlainPatch([(0, 50_000, 9000), (5, 40_000, 260_000), (7, 10_000, 3000)], base=OLD.model, is_indexed=True)
NEW = Release("1.1.0", 2, PATCH.result)
WHOLE = next(step for step in NEW.plan.steps if step.artifact == PATCH.step.artifact)
STEP = msgspec.structs.replace(PATCH.step, full_bytes=WHOLE.travels_bytes())
PLAN = TransferPlan(
    steps=tuple(STEP if step is WHOLE else step for step in NEW.plan.steps), full_bytes=NEW.plan.travels_bytes()
)
SAVES = WHOLE.travels_bytes() - STEP.travels_bytes()
CHUNK = 64 * KIB
# What a cut may cost: the open segment, the chunk on the air, and what is kept whole or not at all.
CUT_COSTS = SEGMENT + CHUNK + PLAN.travels_bytes() - STEP.payload.length_bytes + len(NEW.manifest_bytes)


def source():
    found = BlobSource(OLD, NEW, chunk_bytes=CHUNK)
    found.blobs.update(PATCH.blobs)
    return found


@pytest.fixture
async def template(tmp_path):
    """A machine on the old release."""
    folder = tmp_path / "template"
    folder.mkdir()
    bench = Bench(folder, source())
    async with bench.running():
        await bench.install(OLD)
    return folder


async def live(bench, fuse, plan):
    """One life: it ends with the power, or once the update is over. Returns whether it is over."""
    bench.disk = Disk(fuse.before)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(PowerCut):
        for name in ("write_record", "count_all", "put"):
            patch.setattr(StateDb, name, fuse.around(getattr(StateDb, name)))
        async with bench.running() as updater:
            assignment = msgspec.structs.replace(NEW.assignment(), plan=plan)
            await updater.offer(assignment, NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
            await bench.until(lambda: fuse.blown or is_over(bench))
            if fuse.blown:
                raise PowerCut
            return True
    fuse.lose_what_was_not_synced()
    return False


def is_over(bench):
    record = bench.updater.record
    return record.state is State.IDLE and record.committed is not None and record.committed.digest == NEW.digest


async def play(folder, template, cuts, plans=(PLAN, PLAN, PLAN)):
    """Plays lives that end at the given effects, then one that goes on to the end, and looks at how it stands.

    Returns:
        The effects of each life.
    """
    shutil.copytree(template, folder, symlinks=True)
    effects = []
    blobs = source()
    for at, plan in zip((*cuts, NEVER), plans, strict=False):
        fuse = Fuse(at)
        bench = Bench(folder, blobs)
        over = await live(bench, fuse, plan)
        effects.append(fuse.effects)
        if over:
            break
    bench.boot()
    store, counters, transfer = bench.store, bench.db.counters(), bench.updater._treasury.of(NEW.digest)
    bench.db.close()
    assert over
    assert bench.active == NEW.digest
    assert all(store.is_whole(name) for name in (*OLD.artifacts, *NEW.artifacts))
    assert list(store.part("x").parent.iterdir()) == [], "nothing of the download stays"
    shutil.rmtree(folder)
    return effects, blobs, counters.get("saved_bytes", 0), transfer.saved_bytes


def in_fetch(effects):
    """How many effects there are until all is downloaded and applied."""
    return next(number for number, name in enumerate(effects) if name == "before write_record check")


async def check(folder, template, cuts):
    effects, blobs, saved, of_release = await play(folder, template, cuts)
    assert saved == of_release == SAVES, f"{cuts}: what the patch saved counts once"
    lost = blobs.sent - PLAN.travels_bytes() - len(NEW.manifest_bytes)
    assert lost <= (len(effects) - 1) * CUT_COSTS, cuts
    return effects


async def test_two_cuts_of_a_patched_update_cost_no_more_than_they_may_and_savings_count_once(tmp_path, template):
    (whole,) = await check(tmp_path / "whole", template, ())
    count = in_fetch(whole)
    assert count > 100
    # Each eighth, and all while the result is taken in, where what was saved is counted. The second cuts wander through
    # all of what may follow, and often fall soon after the start.
    taken_in = whole.index("before put")
    for first in sorted({*range(0, count, 8), *range(taken_in, taken_in + 9)}):
        second = (first * 7) % 23 if first % 2 else (first * 11) % (count + 4)
        await check(tmp_path / f"{first}-{second}", template, (first, second))


@pytest.mark.parametrize("is_finished", [True, False])
async def test_a_plan_that_flips_while_the_power_is_off_takes_in_what_was_finished(tmp_path, template, is_finished):
    (whole,) = await check(tmp_path / "whole", template, ())
    at = whole.index("after put") + 3 if is_finished else 30
    _, blobs, saved, of_release = await play(tmp_path / "flips", template, (at,), (PLAN, NEW.plan))
    asked = {name for name, _, _ in blobs.asked}
    assert (WHOLE.payload.sha256 in asked) == (not is_finished)
    assert saved == of_release == (SAVES if is_finished else 0)
