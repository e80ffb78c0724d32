"""Making patches: what fails here or on machines is made again, and given up in the end; an outage is no failure."""

import pytest

from protocol.errors import LinkError
from protocol.ids import digest
from server.delta.process import EncoderFailedError
from server.patching import DAY_MS, OUTAGE_MS, TIDY_MS
from server.storage.jobs import PATCH
from tests.fakes.patch_bench import PatchBench


def test_a_pair_that_fails_again_and_again_is_given_up_and_tried_another_day(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.encoder.error = EncoderFailedError("the encoder fell")
    for _ in range(5):
        bench.work()
        bench.now_ms += 60_000
    assert len(bench.encoder.made) == 3
    assert bench.events("patch-given-up") == ["given up: the encoder fell"]
    bench.encoder.error = None
    bench.now_ms += DAY_MS + TIDY_MS
    bench.work()
    bench.work()
    assert len(bench.ready(b"new")) == 1


@pytest.mark.parametrize("error", [LinkError("the blob store does not answer"), OSError(28, "No space left on device")])
def test_an_outage_is_waited_out_however_long(bench: PatchBench, error: Exception) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.encoder.error = error
    for _ in range(10):
        assert bench.work() == 1
        bench.now_ms += OUTAGE_MS
    bench.encoder.error = None
    assert bench.work() == 1
    assert len(bench.ready(b"new")) == 1
    assert bench.events("patch-given-up") == []


def test_a_pair_that_kills_the_server_each_time_is_given_up(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.maker._survey()
    for _ in range(3):
        with bench.catalog.write() as session:
            assert session.jobs.claim(PATCH, bench.now_ms, 60_000) is not None
        bench.now_ms += 60_000
    bench.maker = bench.another()
    bench.work()
    assert bench.encoder.made == []
    assert len(bench.events("patch-given-up")) == 1


def test_an_artifact_that_is_damaged_in_the_store_gives_no_patch(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    sha256 = digest(b"old")
    (bench.folder / "blobs" / "sha256" / sha256[:2] / sha256).write_bytes(b"odd")
    bench.work()
    assert bench.ready(b"new") == {}


def test_a_patch_that_fails_on_several_machines_is_withdrawn_made_once_more_and_then_given_up(
    bench: PatchBench,
) -> None:
    bench.two_releases()
    for name in ("a", "b", "c", "d"):
        bench.holds(name, b"old")
    bench.encoder.payload = lambda attempt: f"patch {attempt}".encode()
    bench.work()
    assert bench.failed("a", b"patch 1") == 1
    assert bench.failed("a", b"patch 1") == 0  # told twice
    assert len(bench.ready(b"new")) == 1
    assert bench.failed("b", b"patch 1") == 1
    assert bench.ready(b"new") == {}
    assert bench.work() == 1
    assert bench.ready(b"new")[digest(b"old")].payload == digest(b"patch 2")
    assert bench.failed("c", b"patch 1") == 1  # a late word about the first one
    assert len(bench.ready(b"new")) == 1
    bench.failed("a", b"patch 2")
    bench.failed("b", b"patch 2")
    assert (bench.ready(b"new"), bench.work()) == ({}, 0)
    assert bench.events("patch-withdrawn") == [
        "withdrawn: it failed on 2 machines; made once more",
        "withdrawn: it failed on 2 machines; given up",
    ]


def test_the_same_bytes_again_are_given_up_unoffered(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.holds("b", b"old")
    bench.work()
    bench.failed("a", b"patch")
    bench.failed("b", b"patch")
    assert bench.work() == 1
    assert bench.ready(b"new") == {}
    kept = bench.kept(b"old", b"new")
    assert kept is not None and kept.why.startswith("given up: made again")


def test_failures_of_patches_that_never_were_are_not_kept(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.work()
    assert bench.failed("a", b"never ours") == 0
    assert bench.failed("a", b"patch", base=b"unknown") == 0
    with bench.catalog.read() as session:
        assert session.patches.failed_on("a") == {}
