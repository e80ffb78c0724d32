"""Patches over links that break, on machines that lose power: what a cut costs, what is refused, what is remembered."""

import asyncio
import contextlib
import itertools
import threading
import time

import pytest

from device.store import NoSpaceError
from device.transfer import OverBudgetError, PatchFailedError, held_bytes
from device.transfer.patching import AHEAD_BYTES, HEADER_BYTES, result_path
from device.transfer.pieces import held_pieces
from device.transfer.purse import Unlimited
from protocol.delta.patch import CODEC, varint, write_group
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.limits import MIB
from signing.durable import Disk
from tests.fakes.patches import SEGMENT, PlainPatch, Rig, apply_plainly, group
from tests.fakes.updates import BlobSource, noise

# 1.3 MiB of payload in six segments, and groups that begin and end anywhere in them; one has no new bytes at all.
BIG = PlainPatch([(0, 1000, 300_000), (5, 400_000, 0), (7, 10, 500_000), (0, 0, 10), (100, 300_000, 600_000)])
SMALL = PlainPatch([(0, 400_000, 20), (1000, 0, 300_000), (9, 400_000, 100)])
BRIEF = PlainPatch([(0, 400_000, 20), (1000, 0, 700_000), (9, 400_000, 100)], is_indexed=True)


class PowerCut(BaseException):
    """No code of ours may catch it."""


class Fuse:
    """Cuts the power at the n-th effect on the disk and leaves it off."""

    def __init__(self, at):
        self.count = 0
        self.at = at
        self.blown = False
        self.lock = threading.Lock()
        self.synced = {}

    def before(self, effect, path):
        with self.lock:
            if self.blown or self.count >= self.at:
                self.blown = True
                raise PowerCut
            self.count += 1
            if path.suffix == ".result":
                if effect == "fsync" and path.exists():
                    self.synced[path] = path.stat().st_size
                elif effect == "append":
                    self.synced.setdefault(path, path.stat().st_size)

    def lose_what_was_not_synced(self):
        """Appended bytes that nobody synced come back as something else after a cut."""
        for path, length in self.synced.items():
            if path.exists() and (unsynced := path.stat().st_size - length) > 0:
                with path.open("r+b") as file:
                    file.seek(length)
                    file.write(b"?" * unsynced)


@pytest.fixture
def killed(monkeypatch):
    """Lives end without a moment to keep anything."""
    monkeypatch.setattr("device.transfer.pieces.keep_rest", lambda *_: None)


def source_of(*patches, chunk_bytes=4096):
    source = BlobSource(chunk_bytes=chunk_bytes)
    for patch in patches:
        source.blobs.update(patch.blobs)
    return source


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
        effects = effects or fuse.count
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


def sum_of_outputs(patch, groups):
    return sum(length + new for _, length, new in patch.groups[:groups])


def dying_at(patch, number):
    def apply(data, base, output_offset, write):
        if output_offset == sum_of_outputs(patch, number):
            write(base.read(7, 10))
            raise PowerCut
        return apply_plainly(data, base, output_offset, write)

    return apply


# Bytes that are not what was signed


async def test_no_decoder_sees_a_byte_before_its_hash_held(tmp_path):
    for patch in (BIG, SMALL):
        for at in (0, 100, len(patch.payload) // 2, len(patch.payload) - 1):
            source = source_of(patch)
            bad = bytearray(patch.payload)
            bad[at] ^= 1
            source.blobs[patch.step.payload.sha256] = bytes(bad)
            rig = Rig(tmp_path / f"{len(patch.payload)}-{at}", source, patch)
            with pytest.raises(Refused) as refused:
                await rig.fetch()
            assert refused.value.reason is Reason.HASH
            seen = sum(end <= at // SEGMENT * SEGMENT for end in patch.group_ends) if patch is BIG else 0
            assert len(rig.applied) <= seen
            assert rig.book.untold() == (), "the source is bad, not the patch"
            source.blobs[patch.step.payload.sha256] = patch.payload
            await rig.fetch()
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


# Patches that give no result


def renamed(patch, groups, result=None, length=None):
    """A copy of the patch with other groups, signed as they are."""
    other = PlainPatch(patch.groups, base=patch.base, seed=patch.seed)
    return other.pack(groups, patch.result if result is None else result, length)


def hostile():
    one, two, *rest = BIG.group_bytes
    extra, _ = group(BIG.base, 0, 10, b"more")
    longer = BIG.result + bytes(10)
    head = bytes([CODEC])
    yield "another result", renamed(BIG, [one, two, *rest[:-1], rest[-1][:-1] + b"x"]), Reason.HASH
    yield "extra bytes after the last group", renamed(BIG, [*BIG.group_bytes, extra]), Reason.LENGTH
    yield "one byte after the last group", renamed(BIG, [*BIG.group_bytes, head]), Reason.LENGTH
    yield "a group that is missing", renamed(BIG, BIG.group_bytes[:-1]), Reason.LENGTH
    yield "a group that is cut off", renamed(BIG, [*BIG.group_bytes[:-1], rest[-1][:-1]]), Reason.LENGTH
    yield "a head that is cut off", renamed(BIG, [*BIG.group_bytes, head + b"\xff"]), Reason.LENGTH
    yield "a result that is too short", renamed(BIG, BIG.group_bytes, longer), Reason.LENGTH
    yield "a result that is too long", renamed(BIG, BIG.group_bytes, BIG.result[:-1]), Reason.LENGTH
    yield "another codec", renamed(BIG, [b"\x63" + one[1:], two, *rest]), Reason.METADATA
    yield "a number without end", renamed(BIG, [head + b"\xff" * 9 + one[10:], two, *rest]), Reason.LIMIT
    huge = head + varint(1 << 40) + one[4:]
    yield "a group of a terabyte", renamed(BIG, [huge, two, *rest]), Reason.LIMIT
    outside = write_group(20, b"\xff" * 16, [(0, 10, bytes(10))])
    yield "a copy from outside of the base", renamed(BIG, [outside, *BIG.group_bytes]), Reason.LIMIT
    liar = write_group(50, one[-16:], [])
    yield "nonsense for operations", renamed(BIG, [liar, *BIG.group_bytes]), Reason.LIMIT


@pytest.mark.parametrize(("patch", "reason"), [pytest.param(p, r, id=name) for name, p, r in hostile()])
async def test_a_patch_that_gives_no_result_is_dropped_remembered_and_not_tried_again(tmp_path, patch, reason):
    source = source_of(patch)
    rig = Rig(tmp_path, source, patch)
    with pytest.raises(PatchFailedError) as failed:
        await rig.fetch()
    assert failed.value.reason is reason
    assert not rig.store.has(patch.artifact.sha256)
    assert rig.parts() == ([f"{patch.step.index.sha256}.index"] if patch.step.index else []), "collected with the plan"
    [told] = rig.book.untold()
    assert (told.artifact, told.base, told.payload, told.reason) == (
        patch.step.artifact,
        patch.step.base,
        patch.step.payload.sha256,
        reason,
    )
    sent = source.sent
    rig.db.close()
    again = Rig(tmp_path, source, patch)
    with pytest.raises(PatchFailedError):
        await again.fetch()
    assert source.sent == sent, "the same bytes do not travel again, and nothing else does in their place"
    assert again.applied == []


async def test_an_output_that_differs_from_its_head_is_refused_wherever_it_ends(tmp_path):
    for number, change in enumerate((-1, 1)):

        def lying(data, base, output_offset, write, change=change):
            write(bytes(len(BIG.base) + change) if output_offset else bytes(301_000 + change))

        rig = Rig(tmp_path / str(number), source_of(BIG), BIG, apply=lying)
        with pytest.raises(PatchFailedError) as failed:
            await rig.fetch()
        assert failed.value.reason is Reason.LENGTH
        assert not result_path(rig.store, BIG.step.payload).exists()


async def test_a_group_without_end_fills_no_disk(tmp_path):
    written = []

    def endless(data, base, output_offset, write):
        while True:
            write(bytes(100_000))
            written.append(100_000)

    with pytest.raises(PatchFailedError):
        await Rig(tmp_path, source_of(BIG), BIG, apply=endless).fetch()
    assert sum(written) <= 301_000


async def test_a_group_that_goes_on_behind_the_result_is_not_even_begun(tmp_path):
    patch = renamed(BIG, BIG.group_bytes, BIG.result[:-1])
    rig = Rig(tmp_path, source_of(patch), patch)
    with pytest.raises(PatchFailedError):
        await rig.fetch()
    assert len(rig.applied) == len(BIG.groups) - 1


async def test_what_no_decoder_foresaw_is_a_failed_patch_and_a_full_disk_is_not(tmp_path):
    def crash(*_):
        raise ZeroDivisionError

    def no_space(*_):
        raise OSError(28, "No space left on device")

    rig = Rig(tmp_path / "one", source_of(BIG), BIG, apply=crash)
    with pytest.raises(PatchFailedError):
        await rig.fetch()
    rig = Rig(tmp_path / "two", source_of(BIG), BIG, apply=no_space)
    with pytest.raises(OSError, match="No space"):
        await rig.fetch()

    def no_memory(*_):
        raise MemoryError

    rig = Rig(tmp_path / "three", source_of(BIG), BIG, apply=no_memory)
    with pytest.raises(OSError, match="no memory"):
        await rig.fetch()
    assert rig.book.untold() == ()
    assert any(name.endswith(".note") for name in rig.parts()), "what is here stays"


async def test_a_base_that_is_missing_or_damaged_is_no_fault_of_the_patch_and_not_told_to_be_here(tmp_path):
    for damage in ("gone", "changed", "shorter", "unreadable"):
        source = source_of(SMALL)
        rig = Rig(tmp_path / damage, source, SMALL)
        path = rig.store.path(SMALL.step.base)
        path.chmod(0o600)
        match damage:
            case "gone":
                path.unlink()
            case "changed":
                path.write_bytes(bytes([SMALL.base[0] ^ 1]) + SMALL.base[1:])
            case "shorter":
                path.write_bytes(SMALL.base[:-1])
            case "unreadable":
                path.unlink()
                path.mkdir()  # root reads every file
        with pytest.raises(LinkError, match="not here whole") as failed:
            await rig.fetch()
        assert not failed.value.retryable, "it waits for another plan"
        assert source.sent == 0, "before a byte travels"
        assert rig.book.failed() == ()
        assert rig.store.digests() == (), "so the next plan does without this base"
        assert path.exists() == (damage != "gone"), "what runs may need it"


async def test_a_base_that_is_damaged_while_its_patch_is_applied_is_no_fault_of_the_patch(tmp_path):
    source = source_of(SMALL)
    rig = Rig(tmp_path, source, SMALL)
    path = rig.store.path(SMALL.step.base)
    path.chmod(0o600)
    rig.on_apply = lambda: path.write_bytes(bytes(len(SMALL.base)))
    with pytest.raises(LinkError, match="not here whole"):
        await rig.fetch()
    assert rig.book.failed() == ()
    assert rig.store.digests() == ()
    path.write_bytes(SMALL.base)
    rig.db.close()
    again = Rig(tmp_path, source, SMALL)
    assert again.store.digests() == (SMALL.step.base,), "it is looked at anew after a start"
    await again.fetch()
    assert again.is_complete()


async def test_a_base_that_changed_between_two_lives_is_hashed_again_and_one_that_did_not_is_not(tmp_path):
    source = source_of(BIG)
    source.drops_at = {800_000}
    rig = Rig(tmp_path, source, BIG)
    with pytest.raises(LinkError):
        await rig.fetch()
    hashed = []
    again = Rig(tmp_path, source, BIG)
    is_whole = again.store.is_whole
    again.store.is_whole = lambda name, go_on: hashed.append(name) or is_whole(name, go_on)
    source.drops_at = {source.sent + 100_000}
    with pytest.raises(LinkError):
        await again.fetch()
    assert hashed == []
    path = again.store.path(BIG.step.base)
    path.chmod(0o600)
    path.write_bytes(bytes(len(BIG.base)))
    with pytest.raises(LinkError):
        await again.fetch()
    assert hashed == [BIG.step.base]


async def test_a_server_that_offers_it_again_is_told_again(tmp_path):
    patch = renamed(BIG, BIG.group_bytes[:-1])
    rig = Rig(tmp_path, source_of(patch), patch)
    with pytest.raises(PatchFailedError):
        await rig.fetch()
    told = rig.book.untold()
    rig.book.mark_told(told)
    assert rig.book.untold() == ()
    with pytest.raises(PatchFailedError):
        await rig.fetch()
    assert rig.book.untold() == told


# Plans


async def test_a_plan_that_is_renewed_in_the_middle_goes_on_from_what_both_name(tmp_path):
    source = source_of(BIG)
    source.drops_at = {700_000}
    rig = Rig(tmp_path, source, BIG)
    with pytest.raises(LinkError):
        await rig.fetch()
    other = PlainPatch([(0, 500_000, 900), (0, 0, len(BIG.result) - 500_900)], base=BIG.base)
    other.pack(*whole_as_one_patch(BIG))
    source.blobs.update(other.blobs)
    renewed = Rig(tmp_path, source, other)
    await renewed.fetch()
    assert renewed.is_complete()
    left = renewed.parts()
    assert left, "what the old plan brought stays until it is collected"
    renewed.store.collect({other.artifact.sha256}, ())
    assert renewed.parts() == []


def whole_as_one_patch(patch):
    """The same result by other groups."""
    data, _ = group(patch.base, 0, 0, patch.result)
    return [data], patch.result


async def test_a_step_for_another_codec_waits_for_another_plan(tmp_path):
    rig = Rig(tmp_path, source_of(SMALL), SMALL)
    for change in ({"codec": CODEC + 1}, {"codec": None}, {"base": None}):
        fields = {name: getattr(SMALL.step, name) for name in SMALL.step.__struct_fields__} | change
        plan = type(SMALL.plan)(steps=(type(SMALL.step)(**fields),), full_bytes=0)
        with pytest.raises(LinkError) as failed:
            await rig.transfer.fetch(plan, [SMALL.artifact])
        assert not failed.value.retryable


# Room, rate, budget


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


async def test_a_cancelled_fetch_stops_applying_and_goes_on_later(tmp_path):
    source = source_of(BIG)
    rig = Rig(tmp_path, source, BIG)
    begun = threading.Event()
    rig.on_apply = begun.set
    task = asyncio.create_task(rig.fetch())
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(thread.name.startswith("patch-") for thread in threading.enumerate())
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
    assert not any(thread.name.startswith("patch-") for thread in threading.enumerate())
    assert rig.book.untold() == ()
    assert rig.parts() == [f"{BIG.step.index.sha256}.index"]
    rig.store.is_whole = is_whole
    await rig.fetch()
    assert rig.is_complete()


class Purse(Unlimited):
    def __init__(self, allowed):
        super().__init__(lambda _: None)
        self.allowed = allowed
        self.spent = []
        self.saved = 0
        self.promised = None

    def check(self, needs_bytes):
        left = self.allowed - sum(count for count, _ in self.spent)
        if needs_bytes > left:
            raise OverBudgetError("too much", needs_bytes)

    def spend(self, count, way):
        self.spent.append((count, way))

    def promise(self, artifact, length_bytes, saves_bytes):
        self.promised = artifact, length_bytes, saves_bytes

    def settle(self, is_here):
        if self.promised is not None and is_here(*self.promised[:2]):
            self.saved += self.promised[2]
        self.promised = None


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


def test_headers_are_shorter_than_what_is_read_for_them():
    longest = write_group(1, b"", [(1 << 62, 0, b"")] * 32)
    assert len(longest) + 35 * 9 < HEADER_BYTES
    assert digest(noise(3, 3)) != digest(noise(3, 4))
