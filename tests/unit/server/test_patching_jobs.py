"""Making patches: each once, however many servers are at it and whatever ends in the middle."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from protocol.ids import digest
from server.compress import LEASE_MS
from server.delta.process import InterruptedEncodingError, Made
from server.patching import ORPHAN_MS, Patchmaker
from server.storage.catalog import Catalog
from server.storage.jobs import PATCH
from tests.fakes.patch_bench import PatchBench


def test_a_killed_server_leaves_a_job_that_the_next_one_does_once(bench: PatchBench) -> None:
    bench.two_releases()
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
    bench: PatchBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.two_releases()
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


def test_of_two_servers_at_once_each_makes_another_one(bench: PatchBench) -> None:
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


def test_servers_on_one_catalog_lose_no_patch_and_make_none_twice(bench: PatchBench) -> None:
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


def test_who_lost_its_lease_changes_nothing_when_it_comes_last(bench: PatchBench) -> None:
    bench.two_releases()
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


def test_the_job_is_held_as_long_as_it_takes(bench: PatchBench) -> None:
    bench.two_releases()
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


def test_a_stop_gives_the_job_back_at_once(bench: PatchBench) -> None:
    bench.two_releases()
    bench.holds("a", b"old")

    def interrupted(*_: object) -> None:
        raise InterruptedEncodingError

    bench.maker._encode = interrupted
    bench.maker.work()
    bench.maker.stop()
    assert not bench.maker.work()
    bench.maker = bench.another()
    assert bench.work() == 1
