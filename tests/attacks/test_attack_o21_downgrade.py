"""O21, as far as the install rule: an older genuine release, a replayed assignment, another product's era."""

import pytest

from device.update.states import State
from protocol.errors import Reason
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(500, 1))
NEW = Release("1.1.0", 2, noise(500, 2))
TWIN = Release("1.1.1", 2, noise(500, 3))
ALL = terms(OLD, NEW, TWIN)


@pytest.mark.parametrize("release", [OLD, TWIN], ids=["older", "same counter"])
async def test_attack_o21_what_is_not_newer_than_the_committed_floor_is_refused(tmp_path, release):
    bench = Bench(tmp_path, BlobSource(OLD, NEW, TWIN))
    async with bench.running():
        await bench.install(OLD)
        await bench.install(NEW, OLD, TWIN)
    for _ in range(2):  # the floor holds over a restart
        async with bench.running() as updater:
            for rollout in ("spring", "again"):
                verdict = await updater.offer(
                    release.assignment(rollout), release.manifest_bytes, ALL, may_install=True
                )
                assert verdict.reason is Reason.COUNTER_FLOOR
            assert updater.record.state is State.IDLE
            assert bench.workers.serving == NEW.digest


async def test_attack_o21_a_floor_that_rises_while_the_offer_waits_is_seen(tmp_path):
    bench = Bench(tmp_path, BlobSource(OLD, NEW, TWIN))
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, ALL, may_install=True)
        await bench.until(lambda: updater.record.state is State.TRIAL)
        # Fits now; by the time it is taken up, NEW is committed with the same counter.
        verdict = await updater.offer(TWIN.assignment("later"), TWIN.manifest_bytes, ALL, may_install=True)
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
        assert not hasattr(verdict, "reason")
        assert bench.workers.history == [NEW.digest]


async def test_attack_o21_a_rollback_lowers_no_floor(tmp_path):
    bench = Bench(tmp_path, BlobSource(OLD, NEW, TWIN))
    bench.workers.dead = {NEW.digest}
    async with bench.running():
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        assert bench.db.floors("update/") == {"update/era": 0, "update/counter/0": 1}
