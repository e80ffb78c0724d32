"""Plans that change while an artifact is on its way: what is reused, what is deleted, what waits."""

import asyncio
import threading
import time

import msgspec
import pytest

from device.transfer import part_names
from protocol.artifact import Artifact
from protocol.delta.patch import CODEC
from protocol.errors import LinkError
from protocol.objects import TransferPlan
from tests.fakes.patches import BIG, SMALL, PlainPatch, Purse, Rig, group, source_of
from tests.fakes.power import PowerCut
from tests.fakes.updates import Release, noise

SAVES = PlainPatch(SMALL.groups, base=SMALL.base, full_bytes=9_000_000)
PLENTY = 1 << 40


def another_way(patch):
    """A patch to the same result by other bytes."""
    data, _ = group(patch.base, 0, 0, patch.result)
    return PlainPatch(patch.groups, base=patch.base).pack([data], patch.result)


def in_full(content):
    """The plan that brings the content as the whole, its artifact, and what travels for it."""
    release = Release("1.1.0", 2, content)
    artifact = next(a for a in release.manifest.artifacts() if a.length_bytes == len(content))
    (step,) = [step for step in release.plan.steps if step.artifact == artifact.sha256]
    return TransferPlan(steps=(step,), full_bytes=step.travels_bytes()), artifact, release.blobs


async def dies_before_it_is_taken_in(rig, plan, artifact, purse):
    """Everything came, and the power goes at the last moment."""

    def cut(*_):
        raise PowerCut

    adopt, rig.store.adopt = rig.store.adopt, cut
    with pytest.raises(PowerCut):
        await rig.transfer.fetch(plan, [artifact], purse=purse)
    rig.store.adopt = adopt
    rig.db.close()


@pytest.mark.parametrize("flips_to", ["the whole", "another patch", "the same"])
async def test_a_result_that_was_finished_is_taken_in_whatever_the_plan_says_now(tmp_path, flips_to):
    source, purse = source_of(SAVES), Purse(PLENTY)
    await dies_before_it_is_taken_in(Rig(tmp_path, source, SAVES), SAVES.plan, SAVES.artifact, purse)
    sent = source.sent
    rig = Rig(tmp_path, source, SAVES)
    plan = {"the whole": in_full(SAVES.result)[0], "another patch": another_way(SAVES).plan, "the same": SAVES.plan}
    await rig.transfer.fetch(plan[flips_to], [SAVES.artifact], purse=purse)
    assert rig.is_complete()
    assert source.sent == sent, "nothing travels again"
    assert rig.parts() == [], "and nothing of the old way stays"
    assert purse.saved == 9_000_000 - SAVES.travels_bytes, "what the patch saved counts, once"


async def test_a_fetch_that_is_called_off_while_a_result_is_taken_in_ends_with_the_result_in_its_place(tmp_path):
    purse = Purse(PLENTY)
    rig = Rig(tmp_path, source_of(SAVES), SAVES)
    adopt, begun = rig.store.adopt, threading.Event()

    def slowly(*arguments):
        begun.set()
        time.sleep(0.3)
        adopt(*arguments)

    rig.store.adopt = slowly
    task = asyncio.create_task(rig.fetch(purse))
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert rig.is_complete(), "no thread is left behind that another plan could meet"
    assert purse.saved == 9_000_000 - SAVES.travels_bytes


@pytest.mark.parametrize("length_bytes", [5000, 2_500_000], ids=["unindexed", "indexed"])
async def test_a_whole_that_was_finished_is_taken_in_when_the_plan_flips_to_a_patch(tmp_path, length_bytes):
    content = noise(length_bytes, 5)
    plan, artifact, blobs = in_full(content)
    patch = PlainPatch([], base=noise(1000, 1))
    patch.pack([group(patch.base, 0, 0, content)[0]], content)
    source, purse = source_of(patch), Purse(PLENTY)
    source.blobs.update(blobs)
    await dies_before_it_is_taken_in(Rig(tmp_path, source, patch), plan, artifact, purse)
    sent = source.sent
    rig = Rig(tmp_path, source, patch)
    await rig.transfer.fetch(patch.plan, [artifact], purse=purse)
    assert rig.is_complete()
    assert (source.sent, purse.saved) == (sent, 0)


@pytest.mark.parametrize("damage", ["changed", "longer", "a note that nobody reads"])
async def test_what_only_looks_finished_is_not_taken_in(tmp_path, damage):
    source, purse = source_of(SAVES), Purse(PLENTY)
    first = Rig(tmp_path, source, SAVES)
    await dies_before_it_is_taken_in(first, SAVES.plan, SAVES.artifact, purse)
    result = first.store.part(f"{SAVES.step.payload.sha256}.result")
    match damage:
        case "changed":
            result.write_bytes(bytes(len(SAVES.result)))
        case "longer":
            result.write_bytes(SAVES.result + b"x")
        case _:
            result.with_suffix(".note").write_bytes(b"{")
    plan, artifact, blobs = in_full(SAVES.result)
    source.blobs.update(blobs)
    sent = source.sent
    rig = Rig(tmp_path, source, SAVES)
    await rig.transfer.fetch(plan, [artifact], purse=purse)
    assert rig.is_complete()
    assert source.sent == sent + plan.travels_bytes()
    assert purse.saved == 0
    rig.store.collect({artifact.sha256}, part_names(plan))
    assert rig.parts() == []


async def test_what_an_unfinished_way_left_is_no_part_of_the_new_plan(tmp_path):
    plan, artifact, blobs = in_full(BIG.result)
    source = source_of(BIG)
    source.blobs.update(blobs)
    for number, (old, new) in enumerate([(BIG.plan, plan), (plan, BIG.plan)]):
        rig = Rig(tmp_path / str(number), source, BIG)
        source.drops_at = {source.sent + 1_200_000}
        with pytest.raises(LinkError):
            await rig.transfer.fetch(old, [artifact])
        rig.store.collect({BIG.step.base}, part_names(old))
        assert rig.parts(), "it is gone on from as long as the plan names it"
        rig.store.collect({BIG.step.base}, part_names(new))
        assert rig.parts() == []
        await rig.transfer.fetch(new, [artifact])
        assert rig.is_complete()


async def test_a_plan_that_is_renewed_in_the_middle_goes_on_from_what_both_name(tmp_path):
    source = source_of(BIG)
    source.drops_at = {700_000}
    rig = Rig(tmp_path, source, BIG)
    with pytest.raises(LinkError):
        await rig.fetch()
    held = rig.parts()
    renewed = TransferPlan(steps=(msgspec.structs.replace(BIG.step, full_bytes=1),), full_bytes=1)
    rig.store.collect({BIG.step.base}, part_names(renewed))
    assert rig.parts() == held
    await rig.transfer.fetch(renewed, [BIG.artifact])
    assert source.sent == BIG.travels_bytes


async def test_a_step_for_another_codec_waits_for_another_plan(tmp_path):
    rig = Rig(tmp_path, source_of(SMALL), SMALL)
    for change in ({"codec": CODEC + 1}, {"codec": None}, {"base": None}):
        plan = TransferPlan(steps=(msgspec.structs.replace(SMALL.step, **change),), full_bytes=0)
        with pytest.raises(LinkError) as failed:
            await rig.transfer.fetch(plan, [SMALL.artifact])
        assert not failed.value.retryable


async def test_two_artifacts_with_one_content_by_length_are_not_mixed_up(tmp_path):
    source, purse = source_of(SAVES), Purse(PLENTY)
    await dies_before_it_is_taken_in(Rig(tmp_path, source, SAVES), SAVES.plan, SAVES.artifact, purse)
    rig = Rig(tmp_path, source, SAVES)
    other = Artifact(sha256="a" * 64, length_bytes=SAVES.length, media_type="application/onnx")
    with pytest.raises(LinkError, match="brings nothing"):
        await rig.transfer.fetch(SAVES.plan, [other], purse=purse)
    assert not rig.store.has("a" * 64)
