"""What the disk does not read any more, of a download: it comes again, for nothing else would lead out of that."""

import errno
from pathlib import Path

import pytest

from device.store import Store
from device.transfer import Transfer, TransferSettings, patching
from device.transfer.patching import result_path
from protocol.errors import LinkError
from protocol.limits import MIB
from signing.durable import Part
from tests.fakes.patches import BIG as PATCH
from tests.fakes.patches import SMALL as SMALL_PATCH
from tests.fakes.patches import Rig, source_of
from tests.fakes.updates import BlobSource, Release, noise

MODEL = Release("1.0.0", 1, noise(3 * MIB, 7))


class BadFile:
    """A file with a bad block: from there on nothing is read."""

    def __init__(self, file, good_bytes):
        self.file = file
        self.left = good_bytes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, length=-1):
        if not 0 <= length <= self.left:
            raise OSError(errno.EIO, "Input/output error")
        self.left -= length
        return self.file.read(length)


@pytest.fixture
def spoil(monkeypatch, tmp_path):
    """Gives a file that is there a bad block; the block is gone when the file is, or is cut before it."""
    bad = {}
    plain_open, plain_truncate = Path.open, Part.truncate

    def opened(path, *arguments, **more):
        file = plain_open(path, *arguments, **more)
        inode = path.stat().st_ino
        return BadFile(file, bad[inode]) if inode in bad else file

    def truncated(part, length_bytes):
        inode = part.path.stat().st_ino
        if length_bytes <= bad.get(inode, 0):
            bad.pop(inode, None)
        plain_truncate(part, length_bytes)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Part, "truncate", truncated)

    def spoil(path, good_bytes=0):
        kept = tmp_path / f"bad-{len(bad)}"
        if path.stat().st_ino not in bad:
            kept.hardlink_to(path)  # a new file gets another inode
        bad[path.stat().st_ino] = good_bytes

    return spoil


@pytest.mark.parametrize("what", ["part", "index", "rest"])
async def test_an_unfinished_download_goes_on_from_what_can_be_read(tmp_path, spoil, what):
    source = BlobSource(MODEL, chunk_bytes=4096)
    source.drops_at = {2 * MIB + MIB // 2}
    store = Store(tmp_path)
    transfer = Transfer(source, store, TransferSettings(attempts=1), count=lambda _: None)
    with pytest.raises(LinkError):
        await transfer.fetch(MODEL.plan, MODEL.manifest.artifacts())
    [step] = [step for step in MODEL.plan.steps if step.index is not None]
    match what:
        case "part":
            spoil(store.part(step.artifact), MIB)
        case "index":
            spoil(store.part(f"{step.index.sha256}.index"))
        case "rest":
            spoil(store.part(f"{step.payload.sha256}.rest"))
    await transfer.fetch(MODEL.plan, MODEL.manifest.artifacts())
    assert all(store.is_whole(name) for name in MODEL.artifacts)
    assert source.sent < MODEL.travels_bytes + 1.6 * MIB, "what can be read does not travel again"


async def test_a_patched_result_that_cannot_be_read_is_made_anew(tmp_path, spoil):
    rig = Rig(tmp_path, source_of(PATCH), PATCH)
    rig.on_apply = lambda: spoil(result_path(rig.store, PATCH.step.payload))
    with pytest.raises(OSError, match="Input/output"):
        await rig.fetch()
    rig.on_apply = lambda: None
    await rig.fetch()
    assert rig.is_complete()
    assert rig.book.failed() == ()


@pytest.mark.parametrize("is_bad", [True, False])
async def test_a_base_that_cannot_be_read_any_more_is_told_to_be_gone(tmp_path, spoil, is_bad):
    rig = Rig(tmp_path, source_of(SMALL_PATCH), SMALL_PATCH)

    def fail():
        if is_bad:
            spoil(rig.store.path(SMALL_PATCH.step.base))
        raise OSError("the child that applies met an error")

    rig.on_apply = fail
    with pytest.raises(LinkError if is_bad else OSError, match="not here whole" if is_bad else "met an error"):
        await rig.fetch()
    assert rig.store.digests() == (() if is_bad else (SMALL_PATCH.step.base,)), "the next plan does without it"
    assert rig.book.failed() == ()


async def test_a_segment_that_is_dropped_while_it_is_looked_at_is_not_counted(tmp_path, monkeypatch):
    """A contact asks what is held while the patch is applied."""
    source = source_of(PATCH)
    source.drops_at = {900_000}
    rig = Rig(tmp_path, source, PATCH)
    with pytest.raises(LinkError):
        await rig.fetch()
    here = patching.held_bytes(rig.store, PATCH.step.payload)
    gone = rig.store.part(f"{PATCH.step.payload.sha256}.000099")
    found = patching.held_pieces
    monkeypatch.setattr(patching, "held_pieces", lambda *of: [*found(*of), gone])
    assert patching.held_bytes(rig.store, PATCH.step.payload) == here > 0
