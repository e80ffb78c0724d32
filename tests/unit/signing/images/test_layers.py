"""Layers on their way in: bombs, streams that lie, links that break, and the memory that it takes."""

import gzip
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from signing.images import bounds
from signing.images.content import Blob, Chunks
from signing.images.layers import take_layer
from tests.fakes.image_files import layer, make_image, sha256, write_layout
from tests.fakes.intake import Taking

LAYER = layer({"app": b"program" * 50_000})


class Given:
    """A `Content` of one blob; `breaks` are offsets behind which the link fails, once each."""

    def __init__(self, data: bytes, *breaks: int) -> None:
        self.data = data
        self.breaks = list(breaks)
        self.asked: list[int] = []
        self.given = 0

    def has(self, blob: Blob) -> bool:
        return True

    @contextmanager
    def open(self, blob: Blob, at: int = 0) -> Iterator[Chunks]:
        self.asked.append(at)
        yield self._chunks(at)

    def _chunks(self, at: int) -> Chunks:
        end = self.breaks.pop(0) if self.breaks else None
        for start in range(at, len(self.data) if end is None else end, 1000):
            self.given = start
            yield self.data[start : min(start + 1000, end or len(self.data))]
        if end is not None:
            raise LinkError("the link broke")


def take(taking: Taking, data: bytes, diff_id: str, *breaks: int) -> int:
    blob = Blob(sha256(data), len(data), sha256(data))
    return take_layer(taking.workspace, Given(data, *breaks), blob, diff_id, taking.said.append)


def refused(taking: Taking, data: bytes, reason: Reason, diff_id: str = "0" * 64) -> str:
    with pytest.raises(Refused) as caught:
        take(taking, data, diff_id)
    assert caught.value.reason is reason, caught.value.message
    assert taking.left_over() == []
    assert taking.kept() == set()
    return caught.value.message


def test_gzip_of_several_streams_is_one_layer(taking: Taking) -> None:
    folded = b"".join(gzip.compress(LAYER[at : at + 9000]) for at in range(0, len(LAYER), 9000)) + gzip.compress(b"")
    assert take(taking, folded, sha256(LAYER)) == len(LAYER)
    assert taking.workspace.blob(sha256(LAYER)).read_bytes() == LAYER


def test_zstd_of_several_frames_is_one_layer(taking: Taking) -> None:
    compress = zstandard.ZstdCompressor().compress
    folded = compress(LAYER[:70_000]) + b"\x50\x2a\x4d\x18\x04\0\0\0skip" + compress(LAYER[70_000:])
    assert take(taking, folded, sha256(LAYER)) == len(LAYER)


def test_every_flipped_byte_of_a_compressed_layer_is_refused(taking: Taking) -> None:
    for fold in (gzip.compress, zstandard.ZstdCompressor(write_checksum=False).compress):
        folded = fold(LAYER)
        for at in range(0, len(folded), max(1, len(folded) // 40)):
            broken = folded[:at] + bytes([folded[at] ^ 0xFF]) + folded[at + 1 :]
            with pytest.raises(Refused):
                take(taking, broken, sha256(LAYER))
            assert taking.kept() == set()


def test_a_stream_that_ends_early_or_goes_on_is_refused(taking: Taking) -> None:
    folded = gzip.compress(LAYER)
    refused(taking, folded[:-9], Reason.LENGTH, sha256(LAYER))
    refused(taking, folded + b"more", Reason.HASH, sha256(LAYER))
    refused(taking, zstandard.ZstdCompressor().compress(LAYER)[:-50], Reason.HASH, sha256(LAYER))


def test_a_layer_that_no_engine_would_load_is_refused_though_it_is_genuine(taking: Taking) -> None:
    twice = gzip.compress(LAYER)
    for data in (twice, b"no tar", LAYER[1:]):
        assert "no tar archive" in refused(taking, gzip.compress(data), Reason.IMAGE, sha256(data))
    for data in (b"", bytes(1024)):
        assert take(taking, gzip.compress(data), sha256(data)) == len(data), "nothing, or the end of an archive"


@pytest.mark.parametrize("fold", ["gzip", "zstd", "gzips"])
def test_a_bomb_is_stopped_at_its_bound(taking: Taking, fold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LAYER_FREE_BYTES", 2 * limits.MIB)
    data = {
        "gzip": lambda: gzip.compress(bytes(64 * limits.MIB)),
        "zstd": lambda: zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * limits.MIB)),
        "gzips": lambda: b"".join([gzip.compress(bytes(limits.MIB))] * 64),
    }[fold]()
    assert len(data) * bounds.LAYER_RATIO + 2 * limits.MIB < 64 * limits.MIB
    assert "unfolds" in refused(taking, data, Reason.LIMIT)


@pytest.mark.parametrize("window_log", [24, 31])
def test_zstd_with_a_window_beyond_bounds_is_refused_before_it_is_made(
    taking: Taking, window_log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "ZSTD_WINDOW_BYTES", 8 * limits.MIB)
    # Magic, a descriptor with a window and no content size, one raw block of one byte.
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, (window_log - 10) << 3]) + b"\x09\0\0" + b"x"
    refused(taking, frame, Reason.LIMIT, sha256(b"x"))


def test_a_blob_that_is_not_the_named_one_is_not_unfolded_though_the_layer_would_be(taking: Taking) -> None:
    named, came = gzip.compress(LAYER, mtime=1), gzip.compress(LAYER, mtime=2)
    blob = Blob(sha256(named), len(named), sha256(named))
    with pytest.raises(Refused, match="other bytes than its name says") as caught:
        take_layer(taking.workspace, Given(came), blob, sha256(LAYER), taking.said.append)
    assert caught.value.reason is Reason.HASH
    assert taking.kept() == set()


def test_an_uncompressed_layer_is_taken_as_it_is(taking: Taking) -> None:
    assert take(taking, LAYER, sha256(LAYER)) == len(LAYER)
    assert taking.left_over() == []


def test_what_a_broken_link_brought_is_kept_and_gone_on_with(taking: Taking) -> None:
    whole = layer({"noise": random.Random(1).randbytes(5000)})
    folded = gzip.compress(whole, mtime=0)
    given = Given(folded, 500, 900)
    blob = Blob(sha256(folded), len(folded), sha256(folded))
    for _ in range(2):
        with pytest.raises(LinkError):
            take_layer(taking.workspace, given, blob, sha256(whole), taking.said.append)
        assert len(taking.left_over()) == 1
    take_layer(taking.workspace, given, blob, sha256(whole), taking.said.append)
    assert given.asked == [0, 500, 900]
    assert taking.left_over() == []
    assert taking.workspace.blob(sha256(whole)).read_bytes() == whole


def test_a_layer_that_comes_slowly_is_heard_of(taking: Taking) -> None:
    noise = layer({"noise": random.Random(1).randbytes(30 * limits.MIB)})
    take(taking, noise, sha256(noise))
    told = [line for line in taking.said if " of 30 MiB" in line]
    assert 15 <= len(told) <= 20 and told[0] == "    1 of 30 MiB"
    taking.said.clear()
    take(taking, LAYER, sha256(LAYER))
    assert taking.said == [], "of small ones nobody wants to hear more"


def test_what_a_power_cut_tore_is_taken_anew(taking: Taking) -> None:
    folded = gzip.compress(LAYER, mtime=0)
    blob = Blob(sha256(folded), len(folded), sha256(folded))
    taking.workspace.spool(f"layer {sha256(LAYER)} {blob.place}").write_bytes(bytes(300))
    given = Given(folded)
    take_layer(taking.workspace, given, blob, sha256(LAYER), taking.said.append)
    assert given.asked == [300, 0]


def test_more_bytes_than_were_named_are_refused_at_the_first(taking: Taking) -> None:
    given = Given(LAYER)
    blob = Blob(sha256(LAYER), 2500, "x")
    with pytest.raises(Refused) as caught:
        take_layer(taking.workspace, given, blob, sha256(LAYER), taking.said.append)
    assert caught.value.reason is Reason.LENGTH
    assert given.given == 2000, "what never ends would be stopped too"
    assert taking.left_over() == []


def test_a_disk_that_is_full_leaves_nothing(taking: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("signing.durable.Part.sync", full)
    with pytest.raises(OSError, match="No space"):
        take(taking, gzip.compress(LAYER), sha256(LAYER))
    assert taking.left_over() == []


MEASURE = """
import resource, sys
from pathlib import Path
from signing.images.intake import Intake
from signing.workspace import Workspace
folder = Path(sys.argv[1])
workspace = Workspace.create(folder / "workspace")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
intake = Intake(workspace, folder, {}, lambda line: None)
with intake.find("oci:layout", ()) as (image,):
    intake.take("oci:layout", image, ())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_bounded_whatever_the_layer(tmp_path: Path) -> None:
    noise = zlib.compress(bytes(range(256)) * 64)
    image = make_image([layer({"big": (noise + bytes(100_000)) * 900})])
    write_layout(tmp_path / "layout", {"": [image]}, "+zstd")
    assert len(image.layers[0]) > 80 * limits.MIB
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(said.stdout) < 32
