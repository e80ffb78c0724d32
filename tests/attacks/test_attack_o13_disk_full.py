"""O13: the disk is full at any step of FETCH: the update pauses, what runs goes on, and later so does the update."""

import errno

import pytest

from device.update.states import State
from protocol.limits import MIB
from signing.durable import Disk
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(2 * MIB + 100, 2))
WRITES = ("create", "write", "append", "fsync", "rename", "link", "mkdir")


class FullDisk(Disk):
    """Refuses every write from the n-th on, until there is room again."""

    def __init__(self):
        super().__init__(self._before)
        self.after = None
        self.refused = 0

    def _before(self, effect, path):
        if self.after is None or effect not in WRITES:
            return
        if self.after > 0:
            self.after -= 1
            return
        self.refused += 1
        raise OSError(errno.ENOSPC, "no space left on device", str(path))


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 12, 16, 20])
async def test_attack_o13_a_full_disk_pauses_and_nothing_is_lost(tmp_path, after):
    disk = FullDisk()
    bench = Bench(tmp_path, BlobSource(OLD, NEW), disk=disk)
    async with bench.running() as updater:
        await bench.install(OLD)
        disk.after = after
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: disk.refused >= 2)
        assert bench.workers.serving == OLD.digest
        assert bench.db.refusals() == ()
        disk.after = None
        await bench.until(lambda: updater.record.committed.digest == NEW.digest)
        await bench.settled()
        assert all(bench.store.is_whole(name) for name in NEW.artifacts)
        assert ("refused", None) not in bench.outcomes()


async def test_attack_o13_too_little_room_is_known_before_the_first_byte_and_reported(tmp_path):
    bench = Bench(tmp_path, BlobSource(OLD, NEW))
    async with bench.running() as updater:
        await bench.install(OLD)
        asked = len(bench.source.asked)
        bench.free_bytes = 65 * MIB
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: updater.record.failures >= 3)
        assert updater.record.state is State.FETCH
        assert len(bench.source.asked) == asked
        assert updater.progress().why.startswith("space: ")
        assert bench.outcomes()[-1] == ("deferred", None)
        assert set(OLD.artifacts) <= set(bench.store.digests()), "nothing that runs is deleted to make room"
        bench.free_bytes = 1 << 40
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
