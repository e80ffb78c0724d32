"""Making patches: for whom, in which order, each once, whatever ends in the middle."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import LinkError, Reason, StateError
from protocol.ids import digest
from protocol.messages import FailedPatch
from protocol.objects import Conditions
from protocol.wire import encode
from server.compress import LEASE_MS
from server.delta.process import EncoderFailedError, InterruptedEncodingError, Made
from server.failed_patches import take_failures
from server.patching import DAY_MS, LEAST_BYTES, ORPHAN_MS, OUTAGE_MS, TIDY_MS, Patchmaker
from server.settings import Patches
from server.storage.blobs import FolderBlobs
from server.storage.catalog import Catalog
from server.storage.jobs import PATCH
from server.storage.records import Compressed, Device, Pair, Patch, Release, Rollout
from tests.fakes.encoder import FakeEncoder
from tests.fakes.server_house import make_manifest

PRODUCT = "pest-detector"
START_MS = 1_790_000_000_000
FULL_BYTES = 50_000


class Bench:
    """A catalog, a blob store and a patchmaker under the test's clock, without a server around them."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = START_MS
        self.folder = folder
        self.catalog = Catalog(f"sqlite:///{folder / 'catalog.db'}")
        self.blobs = FolderBlobs(folder / "blobs")
        self.encoder = FakeEncoder()
        self.settings = Patches()
        self.maker = self.another()
        with self.catalog.write() as session:
            session.facts.put("fleet_changes", 0)

    def another(self) -> Patchmaker:
        """As a server that starts makes one."""
        return Patchmaker(
            self.catalog, self.blobs, self.folder, lambda: self.now_ms, settings=self.settings, encoder=self.encoder
        )

    def release(self, counter: int, parts: dict[str, bytes], *, product: str = PRODUCT, full: int = FULL_BYTES) -> None:
        """Publishes a release whose payloads are made."""
        manifest = digest(f"{product} {counter}".encode())
        entry = Release(product, f"1.{counter}.0", manifest, 10, counter, 0, len(parts), 100, True)
        with self.catalog.write() as session:
            listed = [release for release in session.repositories.releases(product) if release.listed]
            session.repositories.put_releases(product, [entry, *listed])
            session.fleet.note_release(product, manifest, {part: digest(data) for part, data in parts.items()})
            for data in parts.values():
                made = Compressed(digest(data), len(data), digest(b"full" + data), full, None, 0)
                session.payloads.put(made)
                session.payloads.add_blob(digest(data), len(data), self.now_ms)
        for data in parts.values():
            self.blobs.put_now(digest(data), [data])

    def rollout(self, counter: int, state: str) -> None:
        with self.catalog.write() as session:
            session.rollouts.add(
                Rollout(
                    name=f"r{counter}",
                    sequence=0,
                    product=PRODUCT,
                    release=f"1.{counter}.0",
                    manifest=digest(f"{PRODUCT} {counter}".encode()),
                    manifest_bytes=1,
                    release_counter=counter,
                    era=0,
                    group="all",
                    phases=(),
                    conditions=Conditions(),
                    created_ms=1,
                    state=state,
                )
            )

    def delist(self, counter: int) -> None:
        with self.catalog.write() as session:
            listed = [release for release in session.repositories.releases() if release.release_counter != counter]
            session.repositories.put_releases(PRODUCT, listed)

    def holds(self, name: str, *held: bytes, product: str = PRODUCT) -> None:
        with self.catalog.write() as session:
            if session.devices.get(name) is None:
                session.devices.enrol(Device(name, product, (), b"key", "pem", self.now_ms))
            session.fleet.hold(name, [digest(data) for data in held])

    def work(self) -> int:
        """Works until there is nothing to do. Returns how many jobs there were."""
        count = 0
        while self.maker.work():
            count += 1
        return count

    def ready(self, result: bytes) -> dict[str, Patch]:
        with self.catalog.read() as session:
            return {patch.pair.base: patch for patch in session.patches.ready([digest(result)])}

    def kept(self, base: bytes, result: bytes) -> Patch | None:
        with self.catalog.read() as session:
            return session.patches.get(Pair(digest(base), digest(result), 1).id)

    def has_blob(self, data: bytes) -> bool:
        try:
            return b"".join(self.blobs.read_now(digest(data), 1 << 20)) == data
        except StateError:
            return False

    def failed(self, device: str, payload: bytes, base: bytes = b"old", result: bytes = b"new") -> int:
        told = FailedPatch(artifact=digest(result), base=digest(base), payload=digest(payload), reason=Reason.HASH)
        with self.catalog.write() as session:
            return take_failures(session, device, [told], self.now_ms, self.settings.withdraw_after)

    def events(self, kind: str) -> list[str]:
        with self.catalog.read() as session:
            return [event.detail for event in session.events.after(0, 1000) if event.kind == kind]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.catalog.close()


def two_releases(bench: Bench) -> None:
    bench.release(1, {"model/m/cpu": b"old"})
    bench.release(2, {"model/m/cpu": b"new"})


def test_a_patch_is_made_for_a_base_that_a_machine_reports(bench: Bench) -> None:
    two_releases(bench)
    assert bench.work() == 0  # nobody holds anything
    bench.holds("a", b"old")
    assert bench.work() == 1
    patch = bench.ready(b"new")[digest(b"old")]
    assert (patch.payload, patch.payload_bytes, patch.index) == (digest(b"patch"), 5, None)
    assert bench.has_blob(b"patch")
    assert bench.work() == 0
    assert bench.encoder.made == [(b"old", b"new")]


def test_the_base_that_most_machines_hold_comes_first(bench: Bench) -> None:
    bench.release(1, {"model/m/cpu": b"oldest"})
    bench.release(2, {"model/m/cpu": b"older"})
    bench.release(3, {"model/m/cpu": b"old"})
    bench.release(4, {"model/m/cpu": b"new"})
    for name, held in (("a", b"oldest"), ("b", b"older"), ("c", b"older"), ("d", b"old"), ("e", b"old"), ("f", b"old")):
        bench.holds(name, held)
    assert bench.work() == 3
    assert bench.encoder.made == [(b"old", b"new"), (b"older", b"new"), (b"oldest", b"new")]


def test_more_machines_move_a_waiting_job_ahead(bench: Bench) -> None:
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


def test_bases_beyond_the_bound_are_those_that_fewest_hold(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
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
    bench.catalog.close()


def test_only_the_same_part_of_the_same_product_is_a_base(bench: Bench) -> None:
    bench.release(1, {"model/m/cpu": b"old", "model/m/edgetpu": b"tpu old", "config/c": b"same"})
    bench.release(2, {"model/m/cpu": b"new", "model/m/edgetpu": b"tpu new", "config/c": b"same"})
    bench.release(1, {"model/m/cpu": b"foreign"}, product="weed-detector")
    bench.holds("a", b"old", b"same")
    bench.holds("b", b"foreign", product="weed-detector")
    bench.work()
    assert bench.encoder.made == [(b"old", b"new")]


def test_who_has_the_result_or_is_revoked_needs_no_patch(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old", b"new")
    bench.holds("b", b"old")
    with bench.catalog.write() as session:
        session.devices.revoke("b", 1)
    assert bench.work() == 0


def test_a_result_that_travels_in_a_few_bytes_is_not_worth_a_patch(bench: Bench) -> None:
    bench.release(1, {"config/c": b"old"})
    bench.release(2, {"config/c": b"new"}, full=LEAST_BYTES - 1)
    bench.holds("a", b"old")
    assert bench.work() == 0
    bench.release(3, {"config/c": b"newer"}, full=LEAST_BYTES)
    assert bench.work() == 1


def three_releases(bench: Bench) -> None:
    bench.release(1, {"model/m/cpu": b"old"})
    bench.release(2, {"model/m/cpu": b"middle"})
    bench.release(3, {"model/m/cpu": b"new"})
    bench.holds("a", b"old")


def test_of_each_product_the_newest_release_is_what_machines_will_want(bench: Bench) -> None:
    three_releases(bench)
    bench.work()
    assert bench.encoder.made == [(b"old", b"new")]


@pytest.mark.parametrize(("state", "made"), [("active", True), ("paused", True), ("halted", False)])
def test_an_older_release_is_wanted_too_while_a_rollout_brings_it(bench: Bench, state: str, made: bool) -> None:
    three_releases(bench)
    bench.rollout(2, state)
    bench.work()
    assert ((b"old", b"middle") in bench.encoder.made) is made
    assert (b"old", b"new") in bench.encoder.made


def test_no_patch_leads_to_a_release_that_the_managers_took_back(bench: Bench) -> None:
    three_releases(bench)
    bench.rollout(3, "active")
    bench.delist(3)
    bench.work()
    assert bench.encoder.made == [(b"old", b"middle")]


def test_a_patch_that_is_no_cheaper_leaves_its_number_and_is_not_made_again(bench: Bench) -> None:
    two_releases(bench)
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


def test_a_large_patch_keeps_its_index_and_pays_for_it(bench: Bench) -> None:
    two_releases(bench)
    bench.encoder.index = True
    bench.holds("a", b"old")
    bench.work()
    patch = bench.ready(b"new")[digest(b"old")]
    assert patch.index == digest(b"index of patch")
    assert patch.travels_bytes == 5 + 14
    assert bench.has_blob(b"index of patch")


def test_what_nobody_needs_any_more_is_not_made(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    bench.maker._survey()
    bench.holds("a", b"new")
    assert bench.work() == 0
    with bench.catalog.read() as session:
        assert session.patches.count()["waiting"] == 0


def test_a_killed_server_leaves_a_job_that_the_next_one_does_once(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    bench.maker._survey()
    with bench.catalog.write() as session:
        assert session.jobs.claim(PATCH, bench.now_ms, 60_000) is not None  # and then it was killed
    bench.maker = bench.another()
    assert bench.work() == 0
    bench.now_ms += 60_000
    assert bench.work() == 1
    assert list(bench.ready(b"new")) == [digest(b"old")]


def test_a_kill_between_writing_a_blob_and_naming_it_leaves_nothing_for_good(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_releases(bench)
    bench.holds("a", b"old")

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr("server.storage.patches.Patches.put", power_cut)
        with pytest.raises(KeyboardInterrupt):
            bench.maker.work()
    assert bench.has_blob(b"patch")
    bench.holds("a", b"new")  # by a stick: nobody will make it again
    bench.now_ms += ORPHAN_MS
    bench.maker = bench.another()
    bench.work()
    assert not bench.has_blob(b"patch")


def test_of_two_servers_at_once_each_makes_another_one(bench: Bench) -> None:
    bench.release(1, {"model/m/cpu": b"older"})
    bench.release(2, {"model/m/cpu": b"old"})
    bench.release(3, {"model/m/cpu": b"new"})
    bench.holds("a", b"old")
    bench.holds("b", b"older")
    second, encode = bench.another(), bench.encoder

    class Interleaved:
        """The other server works while this one encodes."""

        def __call__(self, *order: object) -> object:
            bench.maker._encode = encode
            assert second.work()
            assert not second.work()
            return encode(*order)

    bench.maker._encode = Interleaved()
    assert bench.maker.work()
    assert sorted(encode.made) == [(b"old", b"new"), (b"older", b"new")]
    assert len(bench.ready(b"new")) == 2


def test_servers_on_one_catalog_lose_no_patch_and_make_none_twice(bench: Bench) -> None:
    """Each has its own connections, and one of them is killed at a job."""
    bases = [f"old {number}".encode() for number in range(8)]
    for counter, base in enumerate(bases, 1):
        bench.release(counter, {"model/m/cpu": base})
        bench.holds(f"m{counter}", base)
    bench.release(9, {"model/m/cpu": b"new"})
    bench.maker._survey()
    url = f"sqlite:///{bench.folder / 'catalog.db'}"
    killed, *catalogs = (Catalog(url) for _ in range(3))
    with killed.write() as session:
        assert session.jobs.claim(PATCH, bench.now_ms, LEASE_MS) is not None
    killed.close()
    encode = bench.encoder
    faults: list[BaseException] = []

    def slow(*order: Any) -> Made:
        time.sleep(0.02)  # so that they are at it together
        return encode(*order)

    def serve(catalog: Catalog) -> None:
        maker = Patchmaker(
            catalog, bench.blobs, bench.folder, lambda: bench.now_ms, settings=bench.settings, encoder=slow
        )
        try:
            while maker.work():
                pass
        except BaseException as error:  # a thread's own is told to nobody
            faults.append(error)

    for done in (7, 8):
        threads = [threading.Thread(target=serve, args=(catalog,)) for catalog in catalogs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert len(bench.ready(b"new")) == done, "the dead one's job is another's once its time is over"
        bench.now_ms += LEASE_MS
    assert sorted(encode.made) == [(base, b"new") for base in bases]
    for catalog in catalogs:
        catalog.close()


def test_who_lost_its_lease_changes_nothing_when_it_comes_last(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    encode, second = bench.encoder, bench.another()

    class Slow:
        """Sleeps for longer than its lease; meanwhile another one does the job."""

        def __call__(self, old: Path, new: Path, payload: Path, index: Path, beat: object) -> object:
            bench.now_ms += 60_000
            assert second.work()
            encode.payload = lambda attempt: b"a later patch"
            return encode(old, new, payload, index, lambda: True)

    bench.maker._encode = Slow()
    bench.maker.work()
    assert bench.ready(b"new")[digest(b"old")].payload == digest(b"patch")
    bench.now_ms += ORPHAN_MS
    bench.another().work()
    assert bench.has_blob(b"patch") and not bench.has_blob(b"a later patch")


def test_the_job_is_held_as_long_as_it_takes(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    encode, second = bench.encoder, bench.another()

    class Long:
        def __call__(self, old: Path, new: Path, payload: Path, index: Path, beat: object) -> object:
            for _ in range(10):
                bench.now_ms += 30_000
                assert beat()
                assert not second.work()
            return encode(old, new, payload, index, lambda: True)

    bench.maker._encode = Long()
    assert bench.work() == 1
    assert encode.made == [(b"old", b"new")]


def test_a_stop_gives_the_job_back_at_once(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")

    def interrupted(*_: object) -> None:
        raise InterruptedEncodingError

    bench.maker._encode = interrupted
    bench.maker.work()
    bench.maker.stop()
    assert not bench.maker.work()
    bench.maker = bench.another()
    assert bench.work() == 1


def test_a_pair_that_fails_again_and_again_is_given_up_and_tried_another_day(bench: Bench) -> None:
    two_releases(bench)
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
def test_an_outage_is_waited_out_however_long(bench: Bench, error: Exception) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    bench.encoder.error = error
    for _ in range(10):
        assert bench.work() == 1
        bench.now_ms += OUTAGE_MS
    bench.encoder.error = None
    assert bench.work() == 1
    assert len(bench.ready(b"new")) == 1
    assert bench.events("patch-given-up") == []


def test_a_pair_that_kills_the_server_each_time_is_given_up(bench: Bench) -> None:
    two_releases(bench)
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


def test_an_artifact_that_is_damaged_in_the_store_gives_no_patch(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    sha256 = digest(b"old")
    (bench.folder / "blobs" / "sha256" / sha256[:2] / sha256).write_bytes(b"odd")
    bench.work()
    assert bench.ready(b"new") == {}


def test_a_patch_that_fails_on_several_machines_is_withdrawn_made_once_more_and_then_given_up(bench: Bench) -> None:
    two_releases(bench)
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


def test_the_same_bytes_again_are_given_up_unoffered(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    bench.holds("b", b"old")
    bench.work()
    bench.failed("a", b"patch")
    bench.failed("b", b"patch")
    assert bench.work() == 1
    assert bench.ready(b"new") == {}
    kept = bench.kept(b"old", b"new")
    assert kept is not None and kept.why.startswith("given up: made again")


def test_failures_of_patches_that_never_were_are_not_kept(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    bench.work()
    assert bench.failed("a", b"never ours") == 0
    assert bench.failed("a", b"patch", base=b"unknown") == 0
    with bench.catalog.read() as session:
        assert session.patches.failed_on("a") == {}


def test_a_withdrawn_patch_stays_while_an_assignment_names_it(bench: Bench) -> None:
    two_releases(bench)
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


def test_a_patch_that_nobody_wants_is_forgotten_after_a_month_with_its_blobs(bench: Bench) -> None:
    two_releases(bench)
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


def test_a_patch_that_is_still_wanted_is_kept_for_years(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    bench.work()
    for _ in range(24):
        bench.now_ms += 30 * DAY_MS
        bench.work()
    assert len(bench.encoder.made) == 1
    assert bench.has_blob(b"patch")


def test_a_forgotten_patch_stays_while_an_assignment_names_it(bench: Bench) -> None:
    two_releases(bench)
    bench.holds("a", b"old")
    bench.work()
    with bench.catalog.write() as session:
        session.patches.name([Pair(digest(b"old"), digest(b"new"), 1).id], bench.now_ms + 60 * DAY_MS)
    bench.holds("a", b"new")
    for days, there in ((59, True), (2, False)):
        bench.now_ms += days * DAY_MS
        bench.work()
        assert bench.has_blob(b"patch") is there


def test_blobs_that_something_else_names_too_are_spared(bench: Bench) -> None:
    bench.release(1, {"model/m/cpu": b"old"})
    bench.release(2, {"model/m/cpu": b"new", "config/c": b"patch"})  # a config file with the bytes of the patch
    bench.holds("a", b"old")
    bench.work()
    bench.holds("a", b"new")
    bench.now_ms += 31 * DAY_MS
    bench.work()
    assert bench.kept(b"old", b"new") is None
    assert bench.has_blob(b"patch")


def test_releases_from_before_patches_are_taken_in_by_their_manifests(bench: Bench) -> None:
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


def test_a_server_that_is_to_make_none_makes_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.settings = Patches(processes=0)
    bench.maker = bench.another()
    two_releases(bench)
    bench.holds("a", b"old")
    assert bench.work() == 0
    bench.catalog.close()
