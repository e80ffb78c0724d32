"""What a machine deletes, and when it knows too little to delete anything."""

import pytest

from device.layout import Layout
from device.rescue import _in_memory
from device.update.ports import Health
from device.update.states import State
from protocol.errors import Reason
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

MIB = 1 << 20
OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(3 * MIB, 2))
THIRD = Release("1.2.0", 3, noise(2000, 3))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW, THIRD, chunk_bytes=MIB // 4))


@pytest.mark.parametrize("state", [State.FETCH, State.TRIAL])
async def test_a_start_whose_disk_is_too_full_for_state_db_costs_the_update_under_way_nothing(bench, state):
    """The record in memory knows what was sealed: the committed release, and nothing of the offer."""
    bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=0)
    async with bench.running() as updater:
        await bench.install(OLD)
        if state is State.FETCH:
            bench.source.drops_at = {bench.source.sent + 2 * MIB}
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(OLD, NEW), may_install=True)
        if state is State.FETCH:
            await bench.until(lambda: not bench.source.drops_at)
            bench.source.up = False
            await bench.until(lambda: updater.record.failures > 0)
        else:
            await bench.until(lambda: updater.record.state is state and bench.workers.serving == NEW.digest)
    lying = files(bench)
    bench.open_db = lambda _: _in_memory(Layout(bench.folder))
    async with bench.running() as updater:
        assert updater.record.state is State.IDLE
        assert bench.workers.serving == OLD.digest
        assert files(bench) == lying


async def test_a_release_before_that_lost_its_manifest_does_not_keep_the_disk_from_being_cleaned(bench):
    """A check drops a damaged manifest, and nobody fetches it again: what is refused would fill the store for ever."""
    bench.canary.refuses[THIRD.digest] = Reason.GOLDEN
    async with bench.running():
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        bench.store.discard(OLD.digest)
        await bench.install(THIRD, NEW, OLD)
        wanted = {NEW.digest, *NEW.artifacts}
        assert {path.name for path in (bench.folder / "store" / "sha256").iterdir()} == wanted
        assert bench.workers.serving == bench.active == NEW.digest


def files(bench):
    return sorted(path.name for path in (bench.folder / "store").rglob("*"))
