"""Making patches: for whom, in which order, and what is not worth one."""

import pytest

from protocol.ids import digest
from protocol.wire import encode
from server.patching import LEAST_BYTES
from server.settings import Patches
from server.storage.records import Compressed, Release
from tests.fakes.patch_bench import FULL_BYTES, PRODUCT, PatchBench
from tests.fakes.server_house import make_manifest


def test_a_patch_is_made_for_a_base_that_a_machine_reports(bench: PatchBench) -> None:
    bench.two_releases()
    assert bench.work() == 0  # nobody holds anything
    bench.holds("a", b"old")
    assert bench.work() == 1
    patch = bench.ready(b"new")[digest(b"old")]
    assert (patch.payload, patch.payload_bytes, patch.index) == (digest(b"patch"), 5, None)
    assert bench.has_blob(b"patch")
    assert bench.work() == 0
    assert bench.encoder.made == [(b"old", b"new")]


def test_the_base_that_most_machines_hold_comes_first(bench: PatchBench) -> None:
    bench.release(1, {"model/m/cpu": b"oldest"})
    bench.release(2, {"model/m/cpu": b"older"})
    bench.release(3, {"model/m/cpu": b"old"})
    bench.release(4, {"model/m/cpu": b"new"})
    for name, held in (("a", b"oldest"), ("b", b"older"), ("c", b"older"), ("d", b"old"), ("e", b"old"), ("f", b"old")):
        bench.holds(name, held)
    assert bench.work() == 3
    assert bench.encoder.made == [(b"old", b"new"), (b"older", b"new"), (b"oldest", b"new")]


def test_more_machines_move_a_waiting_job_ahead(bench: PatchBench) -> None:
    bench.release(1, {"model/m/cpu": b"older"})
    bench.release(2, {"model/m/cpu": b"old"})
    bench.release(3, {"model/m/cpu": b"new"})
    bench.holds("a", b"old")
    bench.holds("b", b"old")
    bench.holds("c", b"older")
    bench.maker._survey()
    for name in ("d", "e"):
        bench.holds(name, b"older")
    bench.work()
    assert bench.encoder.made[0] == (b"older", b"new")


def test_bases_beyond_the_bound_are_those_that_fewest_hold(bench: PatchBench) -> None:
    bench.settings = Patches(bases=1)
    bench.maker = bench.another()
    bench.release(1, {"model/m/cpu": b"older"})
    bench.release(2, {"model/m/cpu": b"old"})
    bench.release(3, {"model/m/cpu": b"new"})
    bench.holds("a", b"older")
    bench.holds("b", b"old")
    bench.holds("c", b"old")
    assert bench.work() == 1
    assert bench.encoder.made == [(b"old", b"new")]


def test_only_the_same_part_of_the_same_product_is_a_base(bench: PatchBench) -> None:
    bench.release(1, {"model/m/cpu": b"old", "model/m/edgetpu": b"tpu old", "config/c": b"same"})
    bench.release(2, {"model/m/cpu": b"new", "model/m/edgetpu": b"tpu new", "config/c": b"same"})
    bench.release(1, {"model/m/cpu": b"foreign"}, product="weed-detector")
    bench.holds("a", b"old", b"same")
    bench.holds("b", b"foreign", product="weed-detector")
    bench.work()
    assert bench.encoder.made == [(b"old", b"new")]


def test_who_has_the_result_or_is_revoked_needs_no_patch(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old", b"new")
    bench.holds("b", b"old")
    with bench.catalog.write() as session:
        session.devices.revoke("b", 1)
    assert bench.work() == 0


def test_a_result_that_travels_in_a_few_bytes_is_not_worth_a_patch(bench: PatchBench) -> None:
    bench.release(1, {"config/c": b"old"})
    bench.release(2, {"config/c": b"new"}, full=LEAST_BYTES - 1)
    bench.holds("a", b"old")
    assert bench.work() == 0
    bench.release(3, {"config/c": b"newer"}, full=LEAST_BYTES)
    assert bench.work() == 1


def three_releases(bench: PatchBench) -> None:
    bench.release(1, {"model/m/cpu": b"old"})
    bench.release(2, {"model/m/cpu": b"middle"})
    bench.release(3, {"model/m/cpu": b"new"})
    bench.holds("a", b"old")


def test_of_each_product_the_newest_release_is_what_machines_will_want(bench: PatchBench) -> None:
    three_releases(bench)
    bench.work()
    assert bench.encoder.made == [(b"old", b"new")]


@pytest.mark.parametrize(("state", "made"), [("active", True), ("paused", True), ("halted", False)])
def test_an_older_release_is_wanted_too_while_a_rollout_brings_it(bench: PatchBench, state: str, made: bool) -> None:
    three_releases(bench)
    bench.rollout(2, state)
    bench.work()
    assert ((b"old", b"middle") in bench.encoder.made) is made
    assert (b"old", b"new") in bench.encoder.made


def test_no_patch_leads_to_a_release_that_the_managers_took_back(bench: PatchBench) -> None:
    three_releases(bench)
    bench.rollout(3, "active")
    bench.delist(3)
    bench.work()
    assert bench.encoder.made == [(b"old", b"middle")]


def test_a_patch_that_is_no_cheaper_leaves_its_number_and_is_not_made_again(bench: PatchBench) -> None:
    bench.two_releases()
    bench.encoder.payload = lambda attempt: bytes(FULL_BYTES)
    bench.holds("a", b"old")
    assert bench.work() == 1
    assert bench.ready(b"new") == {}
    kept = bench.kept(b"old", b"new")
    assert kept is not None
    assert (kept.payload, kept.payload_bytes, kept.why) == (None, FULL_BYTES, f"in full it takes {FULL_BYTES}")
    assert not bench.has_blob(bytes(FULL_BYTES))
    bench.holds("b", b"old")
    bench.maker = bench.another()
    assert bench.work() == 0


def test_a_large_patch_keeps_its_index_and_pays_for_it(bench: PatchBench) -> None:
    bench.two_releases()
    bench.encoder.index = True
    bench.holds("a", b"old")
    bench.work()
    patch = bench.ready(b"new")[digest(b"old")]
    assert patch.index == digest(b"index of patch")
    assert patch.travels_bytes == 5 + 14
    assert bench.has_blob(b"index of patch")


def test_what_nobody_needs_any_more_is_not_made(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")
    bench.maker._survey()
    bench.holds("a", b"new")
    assert bench.work() == 0
    with bench.catalog.read() as session:
        assert session.patches.count()["waiting"] == 0


def test_releases_from_before_patches_are_taken_in_by_their_manifests(bench: PatchBench) -> None:
    manifests = [encode(make_manifest(f"1.{number}.0", number, [data])) for number, data in ((1, b"old"), (2, b"new"))]
    with bench.catalog.write() as session:
        session.repositories.put_releases(
            PRODUCT,
            [
                Release(PRODUCT, f"1.{number}.0", digest(data), len(data), number, 0, 1, 1, True)
                for number, data in enumerate(manifests, 1)
            ],
        )
        session.payloads.put(Compressed(digest(b"new"), 3, digest(b"f"), FULL_BYTES, None, 0))
    for data in (*manifests, b"old", b"new"):
        bench.blobs.put_now(digest(data), [data])
    bench.work()
    bench.holds("a", b"old")
    bench.work()
    assert bench.encoder.made == [(b"old", b"new")]


def test_a_server_that_is_to_make_none_makes_none(bench: PatchBench) -> None:
    bench.settings = Patches(processes=0)
    bench.maker = bench.another()
    bench.two_releases()
    bench.holds("a", b"old")
    assert bench.work() == 0
