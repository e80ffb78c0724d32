"""Offers that the director takes back before they are active."""

import asyncio
import threading

import pytest

from device.update.ports import Health
from device.update.states import State
from protocol.objects import Conditions
from signing.durable import Disk
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

MIB = 1 << 20

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(2 * MIB + 5000, 2))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW))


async def test_a_withdrawn_offer_stops_before_activation_and_never_in_a_trial(bench):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await updater.offer(
            OLD.assignment(conditions=conditions), OLD.manifest_bytes, terms(NEW, OLD), may_install=True
        )
        await bench.until(lambda: updater.record.state is State.WAIT)
        updater.withdraw()
        await bench.settled()
        assert updater.record.offer is None
        assert not list((bench.folder / "store/sha256").iterdir()), "nothing of it stays"
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=0)
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: updater.record.state is State.TRIAL)
        updater.withdraw()
        del bench.workers.shown[NEW.digest]
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest


async def test_a_download_that_is_withdrawn_leaves_nothing_behind_and_begins_anew_when_it_is_offered_again(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        kept = {path.name for path in (bench.folder / "store/sha256").iterdir()}
        bench.source.chunk_bytes = 1000
        sent = bench.source.sent + MIB
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: bench.source.sent > sent)
        updater.withdraw()  # in the midst of it
        await bench.settled()
        assert updater.record.offer is None
        assert list((bench.folder / "store/parts").iterdir()) == []
        assert {path.name for path in (bench.folder / "store/sha256").iterdir()} == kept
        await bench.install(NEW, OLD)
        assert updater.record.committed.digest == NEW.digest


@pytest.mark.parametrize("effect", ["the manifest's rename", "the index's rename", "reserve"])
async def test_what_is_under_way_when_an_offer_is_withdrawn_is_cleaned_up_after_too(tmp_path, effect):
    reached, go_on = threading.Event(), threading.Event()
    renamed = []

    def before(what, path):
        renamed.extend([path] if what == "rename" and "store" in path.parts else ())
        at = {"the manifest's rename": len(renamed) == 1, "the index's rename": len(renamed) == 2}
        if at.get(effect, what == effect) and not reached.is_set():
            reached.set()
            go_on.wait(10)

    bench = Bench(tmp_path, BlobSource(NEW), disk=Disk(before))
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(reached.is_set)
        updater.withdraw()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        for _ in range(2):
            await bench.until(lambda: updater.record.state is State.IDLE and updater.record.offer is None)
            await asyncio.to_thread(go_on.wait, 10)
            await asyncio.sleep(0.05)
    assert [path for path in (bench.folder / "store").rglob("*") if path.is_file()] == []
