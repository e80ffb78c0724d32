"""O2: a patch that reads outside of its base, or is applied to another one, gives nothing and touches nothing."""

import io

import pytest

from device.transfer import PatchFailedError
from device.transfer.applier import in_process
from device.transfer.child_applier import ChildApplier
from protocol.delta.patch import read_group_header
from protocol.errors import LinkError, Reason
from server.delta.encode import encode
from tests.fakes.patches import PlainPatch, Rig
from tests.fakes.updates import BlobSource, noise

BASE = noise(200_000, 1)
LONGER = BASE + noise(200_000, 2)
OTHER = noise(200_000, 3)


def made(folder, old, new):
    """The payload of a real patch from `old` to `new`."""
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    payload = io.BytesIO()
    encode(folder / "old", folder / "new", payload)
    return payload.getvalue()


class SignedPatch(PlainPatch):
    """Whatever bytes, signed as a patch from `base` to `result`."""

    def __init__(self, base, payload, result):
        self.base, self.full_bytes, self.is_indexed, self.groups = base, 0, False, []
        self.pack([payload], result)


def machine(folder, patch, appliers):
    source = BlobSource()
    source.blobs.update(patch.blobs)
    rig = Rig(folder, source, patch)
    rig.transfer._appliers = appliers
    return rig, source


async def refused(rig):
    """The attempt gives nothing, is remembered, and the base is what it was."""
    base = rig.store.path(rig.patch.step.base).read_bytes()
    with pytest.raises(PatchFailedError) as failed:
        await rig.fetch()
    assert rig.store.digests() == (rig.patch.step.base,)
    assert rig.store.path(rig.patch.step.base).read_bytes() == base
    assert rig.parts() == []
    [told] = rig.book.untold()
    assert told.payload == rig.patch.step.payload.sha256
    return failed.value.reason


@pytest.mark.parametrize("appliers", [in_process(), ChildApplier], ids=["thread", "child"])
async def test_attack_o2_a_copy_from_behind_the_bases_end_is_refused(tmp_path, appliers):
    new = LONGER[150_000:390_000]
    patch = SignedPatch(BASE, made(tmp_path, LONGER, new), new)
    rig, _ = machine(tmp_path / "machine", patch, appliers)
    assert await refused(rig) is Reason.LIMIT


async def test_attack_o2_a_patch_for_another_base_gives_a_result_that_nobody_sees(tmp_path):
    new = OTHER[50_000:190_000] + OTHER[:50_000]
    patch = SignedPatch(BASE, made(tmp_path, OTHER, new), new)
    rig, _ = machine(tmp_path / "machine", patch, ChildApplier)
    assert await refused(rig) is Reason.HASH


async def test_attack_o2_a_base_that_was_swapped_on_the_disk_is_noticed_before_a_byte_travels(tmp_path):
    new = BASE[10_000:] + b"end"
    patch = SignedPatch(BASE, made(tmp_path, BASE, new), new)
    rig, source = machine(tmp_path / "machine", patch, ChildApplier)
    path = rig.store.path(patch.step.base)
    path.chmod(0o600)
    path.write_bytes(OTHER)
    with pytest.raises(LinkError, match="not here whole"):
        await rig.fetch()
    assert source.sent == 0
    assert rig.store.digests() == (), "the next plan does without it"
    assert rig.book.failed() == (), "and the patch is not to blame"


async def test_attack_o2_no_single_changed_byte_of_heads_and_operations_gives_another_result(tmp_path):
    new = BASE[100_000:150_000] + b"between" + BASE[:90_000] + BASE[160_000:]
    payload = made(tmp_path, BASE, new)
    header = read_group_header(payload)
    control = range(header.header_bytes + header.control_bytes)
    assert 10 < len(control) < 200
    for at in control:
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(payload)
            changed[at] ^= change
            patch = SignedPatch(BASE, bytes(changed), new)
            rig, _ = machine(tmp_path / f"{at}-{change}", patch, in_process())
            # Some bits of the last operations decode to the same: then the result is the signed one.
            try:
                await rig.fetch()
            except PatchFailedError:
                assert rig.store.digests() == (patch.step.base,)
            else:
                assert rig.store.path(patch.artifact.sha256).read_bytes() == new
            rig.db.close()
