"""O23: the director drops or loosens an interlock. The managers' own stand in the product's role, and hold."""

import msgspec
import pytest

from device.update.states import State
from protocol.objects import Conditions
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(500, 1))
NEW = Release("1.1.0", 2, noise(500, 2))
INTERLOCKED = msgspec.structs.replace(terms(OLD, NEW), interlocks=("driving",))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, NEW))


@pytest.mark.parametrize("loosened", [Conditions(), Conditions(signals_clear=("spraying",))], ids=["dropped", "other"])
async def test_attack_o23_a_driving_machine_activates_nothing_whatever_the_director_leaves_out(bench, loosened):
    async with bench.running() as updater:
        await bench.install(OLD, NEW)
        await updater.learn(INTERLOCKED)
        bench.signals_off.update({"spraying"})
        await updater.offer(NEW.assignment(conditions=loosened), NEW.manifest_bytes, INTERLOCKED, may_install=True)
        await bench.until(lambda: updater.record.state is State.WAIT and "driving" in updater.progress().why)
        assert bench.workers.history == [OLD.digest]
        bench.signals_off.add("driving")
        await bench.settled()
        assert bench.workers.serving == NEW.digest


async def test_attack_o23_an_assignment_only_adds(bench):
    async with bench.running() as updater:
        await bench.install(OLD, NEW)
        await updater.learn(INTERLOCKED)
        bench.signals_off.update({"driving"})
        more = Conditions(signals_clear=("spraying",))
        await updater.offer(NEW.assignment(conditions=more), NEW.manifest_bytes, INTERLOCKED, may_install=True)
        await bench.until(lambda: updater.record.state is State.WAIT and "spraying" in updater.progress().why)
        assert bench.workers.history == [OLD.digest]
