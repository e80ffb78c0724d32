"""Patches that give no result: what is refused before a decoder sees it, whose fault it is, what is remembered."""

import msgspec
import pytest

from device.transfer import PatchFailedError
from device.transfer.applier import ApplierEndedError
from device.transfer.patching import HEADER_BYTES, result_path
from protocol.delta.patch import CODEC, varint, write_group
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.objects import TransferPlan
from tests.fakes.patches import (
    BIG,
    SEGMENT,
    SMALL,
    Rig,
    group,
    renamed,
    source_of,
)
from tests.fakes.updates import noise


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


def test_headers_are_shorter_than_what_is_read_for_them():
    longest = write_group(1, b"", [(1 << 62, 0, b"")] * 31)
    assert len(longest) + 35 * 9 < HEADER_BYTES
    assert digest(noise(3, 3)) != digest(noise(3, 4))


async def test_another_agent_tries_once_what_failed_under_the_old_one(tmp_path):
    source = source_of(SMALL)

    def faulty(*_):
        raise ZeroDivisionError

    old = Rig(tmp_path, source, SMALL, apply=faulty)
    with pytest.raises(PatchFailedError):
        await old.fetch()
    old.db.close()
    still_faulty = Rig(tmp_path, source, SMALL, apply=faulty, agent="0.1.1")
    with pytest.raises(PatchFailedError):
        await still_faulty.fetch()
    sent = source.sent
    with pytest.raises(PatchFailedError):
        await still_faulty.fetch()
    assert (source.sent, len(still_faulty.applied)) == (sent, 1), "once"
    still_faulty.db.close()
    mended = Rig(tmp_path, source, SMALL, agent="0.1.2")
    await mended.fetch()
    assert mended.is_complete()


async def test_what_a_person_lifted_is_tried_once_more(tmp_path):
    source = source_of(SMALL)

    def faulty(*_):
        raise ZeroDivisionError

    rig = Rig(tmp_path, source, SMALL, apply=faulty)
    for lifted_ms, tries in ((0, 1), (0, 1), (1000, 2), (1000, 2), (999, 2)):
        plan = TransferPlan(steps=(msgspec.structs.replace(SMALL.step, lifted_ms=lifted_ms),), full_bytes=0)
        with pytest.raises(PatchFailedError):
            await rig.transfer.fetch(plan, [SMALL.artifact])
        assert len(rig.applied) == tries
    assert [told.lifted_ms for told in rig.book.untold()] == [1000], "so the server knows which word this is"


async def test_an_applier_that_is_ended_from_outside_condemns_nothing_and_is_counted(tmp_path):
    source = source_of(SMALL)

    def ended(*_):
        raise ApplierEndedError("killed")

    rig = Rig(tmp_path, source, SMALL, apply=ended)
    for number in range(5):
        assert rig.book.can_apply, number
        with pytest.raises(ApplierEndedError):
            await rig.fetch()
    assert not rig.book.can_apply
    assert rig.book.failed() == ()
    assert source.sent == SMALL.travels_bytes, "what came stays here"
    rig.db.close()
    again = Rig(tmp_path, source, SMALL)
    await again.fetch()
    assert source.sent == SMALL.travels_bytes
