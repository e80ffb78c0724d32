"""Made patches that nobody wants any more are forgotten, with their blobs, once nothing names them."""

from protocol.ids import digest
from server.patching import DAY_MS
from server.storage.records import Pair
from tests.fakes.patch_bench import PatchBench


def test_a_withdrawn_patch_stays_while_an_assignment_names_it(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.holds("b", b"old")
    bench.encoder.payload = lambda attempt: f"patch {attempt}".encode()
    bench.work()
    until_ms = bench.now_ms + 14 * DAY_MS
    with bench.catalog.write() as session:
        session.patches.name([Pair(digest(b"old"), digest(b"new"), 1).id], until_ms)
    bench.failed("a", b"patch 1")
    bench.failed("b", b"patch 1")
    bench.work()
    for days, there in ((13, True), (2, False)):
        bench.now_ms += days * DAY_MS
        bench.another().work()
        assert bench.has_blob(b"patch 1") is there
    assert bench.has_blob(b"patch 2")


def test_a_patch_that_nobody_wants_is_forgotten_after_a_month_with_its_blobs(bench: PatchBench) -> None:
    bench.two_releases()
    bench.encoder.index = True
    bench.holds("a", b"old")
    bench.work()
    bench.holds("a", b"new")
    bench.now_ms += 29 * DAY_MS
    bench.maker = bench.another()
    bench.work()
    assert bench.has_blob(b"patch")
    bench.now_ms += 2 * DAY_MS
    bench.work()
    assert bench.kept(b"old", b"new") is None
    assert not bench.has_blob(b"patch") and not bench.has_blob(b"index of patch")
    with bench.catalog.read() as session:
        assert session.payloads.blob_bytes(digest(b"patch")) is None
    # And made again for one who comes out of a barn.
    bench.holds("late", b"old")
    assert bench.work() == 1
    assert bench.has_blob(b"patch")


def test_a_patch_that_is_still_wanted_is_kept_for_years(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.work()
    for _ in range(24):
        bench.now_ms += 30 * DAY_MS
        bench.work()
    assert len(bench.encoder.made) == 1
    assert bench.has_blob(b"patch")


def test_a_forgotten_patch_stays_while_an_assignment_names_it(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.work()
    with bench.catalog.write() as session:
        session.patches.name([Pair(digest(b"old"), digest(b"new"), 1).id], bench.now_ms + 60 * DAY_MS)
    bench.holds("a", b"new")
    for days, there in ((59, True), (2, False)):
        bench.now_ms += days * DAY_MS
        bench.work()
        assert bench.has_blob(b"patch") is there


def test_blobs_that_something_else_names_too_are_spared(bench: PatchBench) -> None:
    bench.release(1, {"model/m/cpu": b"old"})
    bench.release(2, {"model/m/cpu": b"new", "config/c": b"patch"})  # a config file with the bytes of the patch
    bench.holds("a", b"old")
    bench.work()
    bench.holds("a", b"new")
    bench.now_ms += 31 * DAY_MS
    bench.work()
    assert bench.kept(b"old", b"new") is None
    assert bench.has_blob(b"patch")
