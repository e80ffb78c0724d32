"""Patches while they are applied: room, speed, budgets, and fetches that are called off in the middle."""

import asyncio
import itertools
import logging
import threading
import time

import pytest

from device.store import NoSpaceError
from device.transfer import OverBudgetError
from device.transfer.patching import AHEAD_BYTES
from device.transfer.pieces import held_pieces
from protocol.errors import LinkError
from protocol.limits import MIB
from tests.fakes.patches import (
    BIG,
    SEGMENT,
    SMALL,
    PlainPatch,
    Purse,
    Rig,
    apply_plainly,
    source_of,
    sum_of_outputs,
)
from tests.fakes.power import PowerCut


async def test_a_group_that_was_cut_off_in_the_middle_is_applied_again_and_nothing_else(tmp_path):
    source = source_of(BIG)
    rig = Rig(tmp_path, source, BIG, apply=dying_at(BIG, 2))
    with pytest.raises(PowerCut):
        await rig.fetch()
    assert rig.store.part(f"{BIG.step.payload.sha256}.result").stat().st_size > sum_of_outputs(BIG, 2)
    again = Rig(tmp_path, source, BIG)
    await again.fetch()
    assert again.is_complete()
    assert again.applied[0] == sum_of_outputs(BIG, 2)


async def test_the_log_tells_where_each_request_begins_and_each_group_that_is_applied(tmp_path, caplog):
    """So what a cut cost can be counted from outside: the demo does."""
    caplog.set_level(logging.INFO, "headland.transfer")
    source, payload = source_of(BIG), BIG.step.payload
    name = payload.sha256[:12]
    with pytest.raises(PowerCut):
        await Rig(tmp_path, source, BIG, apply=dying_at(BIG, 2)).fetch()
    first = caplog.messages
    caplog.clear()
    await Rig(tmp_path, source, BIG).fetch()
    starts = list(itertools.accumulate(map(len, BIG.group_bytes), initial=0))[:-1]
    told = [f"patch {name}: applying the group at byte {start}" for start in starts]
    assert f"payload {name}: from byte 0 of {payload.length_bytes}" in first
    assert [line for line in first if line.startswith("patch")] == told[:3]
    assert [line for line in caplog.messages if line.startswith("patch")] == told[2:]


def dying_at(patch, number):
    def apply(data, base, output_offset, write):
        if output_offset == sum_of_outputs(patch, number):
            write(base.read(7, 10))
            raise PowerCut
        return apply_plainly(data, base, output_offset, write)

    return apply


async def test_the_disk_must_have_room_for_result_segments_and_index(tmp_path):
    source = source_of(BIG)
    rig = Rig(tmp_path, source, BIG)
    peak = len(BIG.result) + len(BIG.payload) + len(BIG.index) + 2 * SEGMENT
    rig.store._free = lambda _: rig.store._keep_free_bytes + peak - 1
    with pytest.raises(NoSpaceError):
        await rig.fetch()
    assert source.sent == 0
    rig.store._free = lambda _: rig.store._keep_free_bytes + peak
    source.drops_at = {700_000}
    with pytest.raises(LinkError):
        await rig.fetch()
    here = sum(rig.store.part(name).stat().st_size for name in rig.parts() if not name.endswith((".note", ".rest")))
    # What was applied needs no room for its segments any more, and the result has its own already.
    rig.store._free = lambda _: rig.store._keep_free_bytes + peak - here
    await rig.fetch()
    assert rig.is_complete()


async def test_the_download_is_never_more_than_a_group_ahead_of_the_applier(tmp_path):
    patch = PlainPatch([(0, 10, 2 * MIB)] * 11)
    source = source_of(patch, chunk_bytes=MIB // 2)
    rig = Rig(tmp_path, source, patch)
    go_on = threading.Event()
    spooled = [0]

    def on_apply():
        spooled.append(sum(path.stat().st_size for path in held_pieces(rig.store, patch.step.payload)))
        go_on.wait(20)

    rig.on_apply = on_apply
    task = asyncio.create_task(rig.fetch())
    ahead = 0
    async with asyncio.timeout(20):
        while ahead < AHEAD_BYTES:
            await asyncio.sleep(0.02)
            ahead = source.sent
    await asyncio.sleep(0.3)
    assert source.sent <= AHEAD_BYTES + 2 * MIB
    go_on.set()
    await task
    assert rig.is_complete()
    assert len(patch.payload) > AHEAD_BYTES + 2 * SEGMENT >= max(spooled), "what was applied is dropped"


def appliers(since=frozenset()):
    """Threads that apply patches, but for those that a simulated power cut in another test left in this process."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("patch-")} - since


async def test_a_cancelled_fetch_stops_applying_and_goes_on_later(tmp_path):
    before = appliers()
    source = source_of(BIG)
    rig = Rig(tmp_path, source, BIG)
    begun = threading.Event()
    rig.on_apply = begun.set
    task = asyncio.create_task(rig.fetch())
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not appliers(since=before)
    sent = source.sent
    await rig.fetch()
    assert rig.is_complete()
    assert source.sent - BIG.travels_bytes <= SEGMENT + source.chunk_bytes
    assert sent <= source.sent


async def test_a_cancelled_fetch_does_not_wait_for_the_end_of_a_group(tmp_path):
    begun = threading.Event()

    def slowly(data, base, output_offset, write):
        for _ in range(400):
            write(bytes(10))
            begun.set()
            time.sleep(0.05)

    rig = Rig(tmp_path, source_of(BIG), BIG, apply=slowly)
    task = asyncio.create_task(rig.fetch())
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    cancelled_s = time.monotonic()
    await asyncio.wait({task})
    assert task.cancelled()
    assert time.monotonic() - cancelled_s < 10, "a group of twenty seconds"
    assert rig.book.untold() == ()


async def test_a_fetch_that_is_cancelled_while_it_hashes_the_base_leaves_nobody_behind(tmp_path):
    before = appliers()
    source = source_of(BIG)
    rig = Rig(tmp_path, source, BIG)
    hashing, asked = threading.Event(), []
    is_whole = rig.store.is_whole

    def slowly(name, go_on):
        hashing.set()
        for _ in range(200):
            asked.append(go_on())
            if not asked[-1]:
                return False
            time.sleep(0.05)
        return is_whole(name)

    rig.store.is_whole = slowly
    task = asyncio.create_task(rig.fetch())
    await asyncio.to_thread(hashing.wait, 20)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert asked[-1] is False
    assert not appliers(since=before)
    assert rig.book.untold() == ()
    assert rig.parts() == [f"{BIG.step.index.sha256}.index"]
    rig.store.is_whole = is_whole
    await rig.fetch()
    assert rig.is_complete()


async def test_a_purse_is_asked_before_the_first_byte_and_pays_for_what_comes(tmp_path):
    patch = PlainPatch(BIG.groups, full_bytes=9_000_000)
    source = source_of(patch)
    rig = Rig(tmp_path, source, patch)
    poor = Purse(patch.travels_bytes - 1)
    with pytest.raises(OverBudgetError) as over:
        await rig.fetch(poor)
    assert over.value.needs_bytes == patch.travels_bytes
    assert source.sent == 0
    purse = Purse(patch.travels_bytes)
    await rig.fetch(purse)
    assert {way for _, way in purse.spent} == {"delta"}
    assert sum(count for count, _ in purse.spent) == patch.travels_bytes
    assert purse.saved == 9_000_000 - patch.travels_bytes


async def test_a_budget_that_is_spent_by_others_meanwhile_stops_what_runs(tmp_path):
    source = source_of(BIG)
    rig = Rig(tmp_path, source, BIG)
    purse = Purse(BIG.travels_bytes)
    spend = purse.spend

    def spend_and_more(count, way):
        spend(count, way)
        if len(purse.spent) == 3:
            spend(1000, "full")

    purse.spend = spend_and_more
    with pytest.raises(OverBudgetError):
        await rig.fetch(purse)
    assert source.sent < BIG.travels_bytes


async def test_the_rate_cap_holds_for_patches(tmp_path):
    source = source_of(SMALL)
    rig = Rig(tmp_path, source, SMALL, rate_cap_bytes_s=100_000)
    now, slept = [0.0], []

    async def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    rig.transfer._cap._sleep = sleep
    rig.transfer._cap._monotonic = lambda: now[0]
    rig.transfer._cap._paid_until = 0.0
    await rig.fetch()
    assert now[0] == pytest.approx(len(SMALL.payload) / 100_000)


async def test_a_patch_that_only_trickles_is_given_up(tmp_path):
    source = source_of(SMALL, chunk_bytes=10)
    rig = Rig(tmp_path, source, SMALL, min_rate_bytes_s=1000, min_rate_over_s=5)
    ticks = itertools.count()
    rig.transfer._monotonic = lambda: float(next(ticks))
    with pytest.raises(LinkError, match="slower"):
        await rig.fetch()
    assert source.sent < 1000
