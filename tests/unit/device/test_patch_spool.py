"""Patches over links that break, on machines that lose power: what a cut costs, and what is gone on from."""

import contextlib
import itertools

import pytest

from device.transfer import OverBudgetError, held_bytes
from protocol.errors import LinkError
from signing.durable import Disk
from tests.fakes.patches import (
    BIG,
    SEGMENT,
    SMALL,
    PlainPatch,
    Purse,
    Rig,
    source_of,
)
from tests.fakes.power import Fuse, PowerCut

BRIEF = PlainPatch([(0, 400_000, 20), (1000, 0, 700_000), (9, 400_000, 100)], is_indexed=True)


@pytest.fixture
def killed(monkeypatch):
    """Lives end without a moment to keep anything."""
    monkeypatch.setattr("device.transfer.pieces.keep_rest", lambda *_: None)


@pytest.mark.parametrize("patch", [BIG, SMALL], ids=["indexed", "unindexed"])
async def test_a_patch_brings_the_artifact_and_leaves_nothing_behind(tmp_path, patch):
    source = source_of(patch)
    rig = Rig(tmp_path, source, patch)
    await rig.fetch()
    assert rig.is_complete()
    assert rig.store.path(patch.artifact.sha256).read_bytes() == patch.result
    assert source.sent == rig.counted == patch.travels_bytes
    assert len(rig.applied) == len(patch.groups)
    assert rig.parts() == []
    await rig.fetch()
    assert source.sent == patch.travels_bytes, "what is here does not travel again"


async def test_an_empty_result_needs_no_group(tmp_path):
    patch = PlainPatch([])
    await Rig(tmp_path, source_of(patch), patch).fetch()


def interesting_offsets(patch):
    borders = {*range(0, len(patch.payload) + 1, SEGMENT), *patch.group_ends, 0}
    headers = {begin + delta for begin in (0, *patch.group_ends[:-1]) for delta in (2, 5, 20)}
    around = {border + delta for border in borders for delta in (-1, 0, 1)}
    return sorted(at for at in around | headers | {17, 70_000} if 0 < at < len(patch.payload))


@pytest.mark.parametrize(
    ("patch", "at"),
    [
        pytest.param(patch, at, id=f"{name}-{at}")
        for name, patch in (("indexed", BIG), ("unindexed", SMALL))
        for at in interesting_offsets(patch)
    ],
)
async def test_after_a_cut_of_the_link_and_a_kill_at_most_one_segment_is_fetched_again(tmp_path, patch, at, killed):
    source = source_of(patch)
    index_bytes = patch.step.index.length_bytes if patch.step.index else 0
    first = Rig(tmp_path, source, patch)
    source.drops_at = {index_bytes + at}
    with pytest.raises(LinkError):
        await first.fetch()
    second = Rig(tmp_path, source, patch)
    told = sum(held_bytes(second.store, patch.step).values())
    before = source.sent
    await second.fetch()
    assert second.is_complete()
    assert second.parts() == []
    assert 0 <= source.sent - patch.travels_bytes <= SEGMENT
    assert source.sent - before == patch.travels_bytes - told, "what was told to be here did not travel again"
    assert len(first.applied) + len(second.applied) <= len(patch.groups) + 1


async def test_a_pause_costs_nothing(tmp_path):
    for patch in (BIG, SMALL):
        source = source_of(patch)
        source.drops_at = {5000, 70_000, SEGMENT, SEGMENT + 5000, len(patch.payload) - 1}
        for _ in range(len(source.drops_at)):
            with pytest.raises(LinkError):
                await Rig(tmp_path / f"{len(patch.payload)}", source, patch).fetch()
        rig = Rig(tmp_path / f"{len(patch.payload)}", source, patch)
        await rig.fetch()
        assert rig.parts() == []
        assert source.sent == patch.travels_bytes


@pytest.mark.parametrize("patch", [BIG, SMALL], ids=["indexed", "unindexed"])
@pytest.mark.parametrize(
    "damage",
    [lambda kept: kept[:-1] + bytes([kept[-1] ^ 1]), lambda kept: kept[:5], lambda kept: kept + bytes(SEGMENT)],
    ids=["changed", "torn", "longer"],
)
async def test_a_rest_that_a_disk_changed_is_fetched_again(tmp_path, patch, damage):
    source = source_of(patch)
    source.drops_at = {SEGMENT + 20_000}
    rig = Rig(tmp_path, source, patch)
    with pytest.raises(LinkError):
        await rig.fetch()
    path = rig.store.part(f"{patch.step.payload.sha256}.rest")
    path.write_bytes(damage(path.read_bytes()))
    await Rig(tmp_path, source, patch).fetch()
    assert rig.is_complete()


async def test_two_cuts_in_a_row_cost_two_segments(tmp_path, killed):
    offsets = interesting_offsets(BIG)
    pairs = [(one, two) for one in offsets[::11] for two in offsets[4::11] if one + two < len(BIG.payload)]
    for number, (one, two) in enumerate(pairs):
        source = source_of(BIG)
        applied = 0
        source.drops_at = {one, one + two}
        cuts = 0
        while True:
            rig = Rig(tmp_path / str(number), source, BIG)
            with contextlib.suppress(LinkError):
                await rig.fetch()
            rig.db.close()
            applied += len(rig.applied)
            if rig.is_complete():
                break
            cuts += 1
        assert cuts == 2
        assert source.sent - BIG.travels_bytes <= cuts * SEGMENT
        assert applied <= len(BIG.groups) + cuts


async def test_a_dropped_link_costs_nothing_while_the_process_lives(tmp_path):
    source = source_of(BIG)
    source.drops_at = {1, 300, 70_000, SEGMENT, SEGMENT + 1, 2 * SEGMENT - 1, len(BIG.payload) - 1}
    rig = Rig(tmp_path, source, BIG, attempts=9)
    await rig.fetch()
    assert rig.is_complete()
    assert source.sent == rig.counted == BIG.travels_bytes
    assert len(rig.applied) == len(BIG.groups), "and no group is applied twice"


async def sweep(folder, patch, cuts):
    """Plays lives that end at the given effects, then one that goes on to the end.

    Returns:
        Effects of the first life, bytes that travelled, groups that were begun, and the last rig.
    """
    source = source_of(patch, chunk_bytes=50_000)
    applied = 0
    effects = 0
    for at in cuts:
        fuse = Fuse(at)
        rig = Rig(folder, source, patch, disk=Disk(fuse.before))
        with contextlib.suppress(PowerCut):
            await rig.fetch()
        rig.db.close()
        fuse.lose_what_was_not_synced()
        applied += len(rig.applied)
        effects = effects or len(fuse.effects)
    rig = Rig(folder, source, patch)
    rig.store.disk.sweep(rig.store.part("x").parent)  # as a start of the agent does
    await rig.fetch()
    rig.db.close()
    return effects, source.sent, applied + len(rig.applied), rig


@pytest.mark.parametrize("patch", [BRIEF, SMALL], ids=["indexed", "unindexed"])
async def test_the_power_may_go_before_any_effect_on_the_disk(tmp_path, patch):
    effects, sent, _, _ = await sweep(tmp_path / "whole", patch, [1 << 30])
    assert sent == patch.travels_bytes
    assert effects > 25
    index_bytes = patch.step.index.length_bytes if patch.step.index else 0
    for at in range(effects):
        _, sent, applied, rig = await sweep(tmp_path / str(at), patch, [at])
        assert rig.is_complete(), at
        rig.store.collect({patch.artifact.sha256}, ())
        assert rig.parts() == [], "what a cut behind the last rename leaves is collected"
        # What was on the air when the power went is lost as well: a chunk, and the index that was not kept yet.
        assert sent - patch.travels_bytes <= SEGMENT + 50_000 + index_bytes, at
        assert applied <= len(patch.groups) + 1, at


async def test_the_power_may_go_again_while_it_goes_on(tmp_path):
    effects, *_ = await sweep(tmp_path / "whole", BRIEF, [1 << 30])
    for number, (one, two) in enumerate(itertools.product(range(3, effects, 7), range(1, 22, 5))):
        _, sent, applied, rig = await sweep(tmp_path / str(number), BRIEF, [one, two])
        assert rig.is_complete()
        assert sent - BRIEF.travels_bytes <= 2 * (SEGMENT + 50_000 + BRIEF.step.index.length_bytes)
        assert applied <= len(BRIEF.groups) + 2


@pytest.mark.parametrize("patch", [BIG, SMALL], ids=["indexed", "unindexed"])
async def test_kept_segments_that_a_disk_changed_are_fetched_again(tmp_path, patch):
    source = source_of(patch)
    index_bytes = patch.step.index.length_bytes if patch.step.index else 0
    # Nothing of the third group is applied before the cut.
    source.drops_at = {index_bytes + SEGMENT + 30_000}
    rig = Rig(tmp_path, source, patch)
    with pytest.raises(LinkError):
        await rig.fetch()
    for name in rig.parts():
        if name.split(".")[1].isdigit():
            path = rig.store.part(name)
            path.write_bytes(bytes(path.stat().st_size))
    await Rig(tmp_path, source, patch).fetch()
    assert rig.is_complete()


async def test_bytes_of_two_minds_are_looked_at_once_more_in_one_piece(tmp_path):
    source = source_of(SMALL)
    source.blobs[SMALL.step.payload.sha256] = bytes(1000) + SMALL.payload[1000:]
    source.drops_at = {SEGMENT + 5000}
    rig = Rig(tmp_path, source, SMALL, attempts=3)

    async def mend(_):
        source.blobs[SMALL.step.payload.sha256] = SMALL.payload

    rig.transfer._sleep = mend
    await rig.fetch()
    assert rig.is_complete()


async def test_bytes_that_come_twice_can_break_a_budget_while_it_runs(tmp_path, killed):
    source = source_of(BIG)
    source.drops_at = {len(BIG.index) + 3 * SEGMENT - 1}
    purse = Purse(BIG.travels_bytes)
    with pytest.raises(LinkError):
        await Rig(tmp_path, source, BIG).fetch(purse)
    sent = source.sent
    with pytest.raises(OverBudgetError) as over:
        await Rig(tmp_path, source, BIG).fetch(purse)
    assert source.sent == sent
    assert over.value.needs_bytes == len(BIG.payload) - 2 * SEGMENT
    purse.allowed += SEGMENT
    await Rig(tmp_path, source, BIG).fetch(purse)
