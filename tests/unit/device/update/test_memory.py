"""What the update machine remembers may have been written by another version of the agent: forgotten, never fatal."""

import msgspec
import pytest

from device.update.memory import ASSIGNMENT, DELISTED, TERMS, Memory
from device.update.rules import Accepted
from device.update.states import State
from protocol.objects import Conditions
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(3000, 2))
OTHER = b'{"product":"pest-detector","role_version":1,"written_by":"0.2.0"}'


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW))


@pytest.mark.parametrize("key", [TERMS, DELISTED, ASSIGNMENT])
async def test_a_fact_that_cannot_be_read_is_learnt_anew_and_the_update_goes_on(bench, key):
    async with bench.running() as updater:
        await bench.install(OLD, NEW)
        bench.source.up = False
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(OLD, NEW), may_install=True)
        await bench.until(lambda: updater.record.state is State.FETCH and updater.record.failures > 0)
        bench.db.put(key, OTHER)
        assert updater.parts() is not None
    async with bench.running() as updater:
        bench.source.up = True
        bench.db.put(key, OTHER)
        verdict = await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(OLD, NEW, role_version=2), True)
        assert isinstance(verdict, Accepted)
        await bench.until(lambda: updater.record.committed.digest == NEW.digest)
        assert "refused" not in [outcome for outcome, _ in bench.outcomes()]


async def test_without_its_assignment_a_fetch_waits_for_the_next_contact_and_deletes_nothing(bench):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await updater.offer(NEW.assignment(conditions=conditions), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: updater.record.state is State.WAIT)
        files = set(bench.store.digests())
        bench.db.put(ASSIGNMENT, OTHER)
        assert Memory(bench.db).assignment() is None
        bench.db.write_record(msgspec.structs.replace(updater.record, state=State.FETCH))
    async with bench.running() as updater:
        await bench.until(lambda: "assignment" in updater.progress().why)
        assert set(bench.store.digests()) == files
        bench.signals_off.add("driving")
        await updater.offer(NEW.assignment(conditions=conditions), NEW.manifest_bytes, terms(NEW), may_install=True)
        await bench.until(lambda: updater.record.committed is not None)
