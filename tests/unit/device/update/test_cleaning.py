"""What a machine deletes, and when it knows too little to delete anything."""

import pytest

from device.layout import Layout
from device.rescue import _in_memory
from device.update.ports import Health
from device.update.states import State
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

MIB = 1 << 20
OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(3 * MIB, 2))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW, chunk_bytes=MIB // 4))


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


def files(bench):
    return sorted(path.name for path in (bench.folder / "store").rglob("*"))
