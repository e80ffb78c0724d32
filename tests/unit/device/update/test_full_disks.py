"""A disk that takes no write keeps updates from going on. It must not keep what is committed from serving."""

import asyncio
import errno

import pytest

from device.state_db import StateDb
from device.update import fetching
from device.update.ports import Health
from device.update.states import State
from protocol.errors import StateError
from signing.durable import TEMPORARY_PREFIX, Disk
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(3000, 2))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW))


@pytest.fixture
def full(monkeypatch):
    """Truthy: the disk takes no record. SQLite opens a database with a log there all the same."""
    full: list[bool] = []
    write = StateDb.write_record

    def write_or_not(self, record, **more):
        if full:
            raise StateError("database or disk is full")
        write(self, record, **more)

    monkeypatch.setattr(StateDb, "write_record", write_or_not)
    return full


async def offer(bench, state):
    """Installs one release, and offers another one that comes as far as `state`."""
    await bench.install(OLD)
    bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=0)
    if state is State.CHECK:
        bench.canary.gate = asyncio.Event()
    await bench.updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(OLD, NEW), may_install=True)
    await bench.until(lambda: bench.updater.record.state is state)


@pytest.mark.parametrize("state", [State.CHECK, State.TRIAL])
async def test_what_is_committed_serves_where_no_start_can_be_counted(bench, full, state):
    async with bench.running():
        await offer(bench, state)
        await bench.until(lambda: state is State.CHECK or bench.active == NEW.digest)
    bench.canary.gate = None
    updater = bench.boot()
    full.append(True)
    for _ in range(2):
        with pytest.raises(StateError, match="full"):
            await updater.start()
        assert bench.workers.serving == bench.active == OLD.digest
    bench.db.close()
    full.clear()
    async with bench.running() as updater:
        assert updater.record.state is state
        assert updater.record.starts == 1
        await bench.until(lambda: bench.workers.serving == NEW.digest)


async def test_what_failed_its_trial_does_not_serve_on_because_the_disk_is_full(bench, full):
    async with bench.running() as updater:
        await offer(bench, State.TRIAL)
        await bench.until(lambda: bench.workers.serving == NEW.digest)
        full.append(True)
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=False, crashes=("SIGSEGV", "SIGSEGV"))
        await bench.until(lambda: "full" in updater.progress().why)
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=1000)
        tries = len(bench.slept)
        await bench.until(lambda: len(bench.slept) > tries + 3)
        assert bench.workers.serving == bench.active == OLD.digest
        assert updater.record.state is State.TRIAL
        full.clear()
        await bench.settled()
        assert bench.workers.serving == OLD.digest
        assert [refusal.manifest for refusal in bench.db.refusals()] == [NEW.digest]
        assert ("rolled-back", "trial-crash") in bench.outcomes()


@pytest.mark.parametrize("what", ["record", "link"])
async def test_nothing_on_trial_serves_while_nobody_can_watch_it(bench, full, what):
    def no_link(effect, path):
        if effect == "symlink":
            raise OSError(errno.ENOSPC, "no room: the disk is full", str(path))

    async with bench.running() as updater:
        await offer(bench, State.TRIAL)
        await bench.until(lambda: bench.active == NEW.digest)
    disk, plain = bench.disk, bench.workers.converge
    converged = []

    async def converge(release, *, trial=False):
        converged.append(release.digest)
        await plain(release, trial=trial)

    if what == "link":
        (bench.folder / "sets/active").unlink()
        bench.disk = Disk(no_link)
    async with bench.running() as updater:
        bench.workers.converge = converge
        if what == "record":
            full.append(True)
        await bench.until(lambda: "full" in updater.progress().why and len(converged) >= 4)
        assert converged[:4] == [NEW.digest, OLD.digest, NEW.digest, OLD.digest]
        assert updater.record.state is State.TRIAL
        full.clear()
        bench.disk.before = disk.before
        bench.workers.shown[NEW.digest] = Health(digest=NEW.digest, serving=True, inferences=1000)
        await bench.settled()
        assert bench.workers.serving == bench.active == NEW.digest


async def test_what_a_cut_left_behind_keeps_nothing_from_serving_on_a_disk_that_takes_no_writes(bench):
    async with bench.running():
        await bench.install(OLD)
    for folder in ("store/sha256", "store/parts"):
        (bench.folder / folder / f"{TEMPORARY_PREFIX}cut").touch()
    (bench.folder / "sets" / f"{TEMPORARY_PREFIX}cut" / "models").mkdir(parents=True)

    def read_only(effect, path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    bench.disk = Disk(read_only)
    async with bench.running():
        assert bench.workers.serving == bench.active == OLD.digest


async def test_parts_that_the_disk_does_not_tell_of_keep_no_contact_from_being_made(bench, monkeypatch):
    async with bench.running() as updater:
        bench.source.up = False
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: updater.record.failures > 0)
        monkeypatch.setattr(fetching, "held_bytes", unreadable)
        assert updater.parts() == {}


def unreadable(*_):
    raise OSError(errno.EIO, "Input/output error")
