"""Patches whose base does not lie in the store: got before the step that needs it, given up after the last one."""

import msgspec
import pytest

from device.containers.engine import EngineAwayError
from device.store import NoSpaceError
from device.transfer import begun_bases
from device.transfer.holding import peak_bytes
from protocol.errors import LinkError
from protocol.ids import digest
from protocol.objects import TransferPlan
from tests.fakes.patches import BIG, SMALL, PlainPatch, Purse, Rig, group, source_of
from tests.fakes.updates import noise

PLENTY = 1 << 40
BASE = digest(SMALL.base)
SECOND = PlainPatch([], base=SMALL.base)
SECOND.pack([group(SECOND.base, 7, 3000, noise(50, 9))[0]], SECOND.base[7:3007] + noise(50, 9))
OTHER = PlainPatch([(0, 100, 50)], base=noise(4000, 5))


class Engine:
    """Holds bases, as `device.transfer.elsewhere.Elsewhere`."""

    def __init__(self, rig, *bases):
        self.rig = rig
        self.held = {digest(base): base for base in bases}
        self.said = []
        self.error = None

    def length_bytes(self, name):
        return len(self.held[name]) if name in self.held else None

    async def get(self, names):
        self.said.append(" ".join(["get", *sorted(name[:8] for name in names)]))
        if self.error is not None:
            raise self.error
        for name in names:
            if name in self.held and not self.rig.store.can_count_on(name):
                self.rig.store.put(self.held[name])

    async def give_up(self, name):
        self.said.append(f"give up {name[:8]}")
        if name in self.held:
            self.rig.store.discard(name)


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path, source_of(SMALL, SECOND, OTHER), SMALL)
    rig.store.discard(BASE)
    rig.engine = rig.transfer._elsewhere = Engine(rig, SMALL.base, OTHER.base)
    return rig


async def fetch(rig, *patches):
    plan = TransferPlan(steps=tuple(patch.step for patch in patches), full_bytes=0)
    await rig.transfer.fetch(plan, [patch.artifact for patch in patches], purse=Purse(PLENTY))


async def test_bases_are_got_all_at_once_and_each_is_here_for_its_steps_and_not_longer(rig):
    await fetch(rig, SMALL, OTHER, SECOND)
    assert set(rig.store.digests()) == {patch.artifact.sha256 for patch in (SMALL, OTHER, SECOND)}
    base, other = BASE[:8], digest(OTHER.base)[:8]
    both = " ".join(sorted((base, other)))
    assert rig.engine.said == [
        f"get {both}", f"get {both}", f"give up {other}", f"get {base}", f"give up {base}",
    ]  # fmt: skip


async def test_where_there_is_no_room_for_all_bases_they_are_got_one_by_one(rig):
    steps = [patch.step for patch in (OTHER, SMALL)]
    lengths = {BASE: len(SMALL.base), digest(OTHER.base): len(OTHER.base)}
    rig.store._keep_free_bytes = 0
    rig.store._free = lambda _: peak_bytes(rig.store, steps, lengths)
    assert peak_bytes(rig.store, steps, lengths) < peak_bytes(rig.store, steps, lengths, at_once=True)
    await fetch(rig, OTHER, SMALL)
    base, other = BASE[:8], digest(OTHER.base)[:8]
    assert rig.engine.said == [f"get {other}", f"give up {other}", f"get {base}", f"give up {base}"]


async def test_a_pause_keeps_the_base_so_that_the_patch_goes_on_from_it(tmp_path):
    source = source_of(BIG)
    rig = Rig(tmp_path, source, BIG)
    rig.store.discard(digest(BIG.base))
    rig.engine = rig.transfer._elsewhere = Engine(rig, BIG.base)
    source.drops_at = {1_000_000}
    assert begun_bases(rig.store, BIG.plan) == frozenset()
    with pytest.raises(LinkError):
        await fetch(rig, BIG)
    assert rig.store.has(digest(BIG.base))
    assert begun_bases(rig.store, BIG.plan) == {digest(BIG.base)}
    applied = len(rig.applied)
    assert applied
    await fetch(rig, BIG)
    assert rig.is_complete()
    assert len(rig.applied) == len(BIG.group_bytes), "no group is applied twice"
    assert not rig.store.has(digest(BIG.base))


async def test_a_base_that_nobody_holds_is_asked_for_otherwise(rig):
    rig.engine.held.clear()
    with pytest.raises(LinkError) as caught:
        await fetch(rig, SMALL)
    assert not caught.value.retryable, "the next plan is made for what is here"


async def test_who_holds_a_base_and_is_away_says_so(rig):
    rig.engine.error = EngineAwayError("nobody answers")
    with pytest.raises(EngineAwayError):
        await fetch(rig, SMALL)
    assert rig.transfer._source.asked == []


async def test_bases_that_are_got_count_in_the_peak_while_they_are_here(rig):
    patches = (SMALL, OTHER, SECOND)
    steps = [patch.step for patch in patches]
    first, other, last = (peak_bytes(rig.store, [patch.step]) - patch.length for patch in patches)
    results = sum(patch.length for patch in patches)
    assert peak_bytes(rig.store, steps) == results + max(first, other, last)
    assert peak_bytes(rig.store, [SMALL.step], {BASE: 1000}) == SMALL.length + first + 1000
    lengths = {BASE: 1000, digest(OTHER.base): 1_000_000}
    assert peak_bytes(rig.store, steps, lengths) == results + other + 1_001_000, "the first is kept for the last"
    first_two = (SMALL, SECOND, OTHER)
    steps = [patch.step for patch in first_two]
    assert peak_bytes(rig.store, steps, lengths) == results + other + 1_000_000
    assert peak_bytes(rig.store, steps, lengths, at_once=True) == results + max(first, other, last) + 1_001_000


async def test_a_disk_without_room_for_the_base_is_found_out_before_anything_travels(rig):
    need = peak_bytes(rig.store, [SMALL.step])
    rig.store._keep_free_bytes = 0
    rig.store._free = lambda _: need + len(SMALL.base) - 1
    with pytest.raises(NoSpaceError) as caught:
        await fetch(rig, SMALL)
    assert caught.value.lacks_bytes == 1
    assert rig.transfer._source.asked == []
    rig.store._free = lambda _: need + len(SMALL.base)
    await fetch(rig, SMALL)


async def test_a_base_that_lies_here_as_well_takes_no_more_room(rig):
    rig.store.put(SMALL.base)
    need = peak_bytes(rig.store, [SMALL.step])
    rig.store._keep_free_bytes = 0
    rig.store._free = lambda _: need
    await fetch(rig, SMALL)


def test_a_plan_of_whole_blobs_has_no_base(rig):
    full = msgspec.structs.replace(SMALL.step, method="full", base=None, codec=None)
    assert begun_bases(rig.store, TransferPlan(steps=(full,), full_bytes=0)) == frozenset()
