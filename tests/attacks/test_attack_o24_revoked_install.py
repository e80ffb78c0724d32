"""O24, as far as the install rule: once the newer role was seen, a delisted release is not installed any more."""

import asyncio

import pytest

from device.update.states import State
from protocol.errors import Reason
from protocol.objects import Conditions
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(500, 1))
BAD = Release("1.1.0", 2, noise(500, 2))
LISTED, DELISTED = terms(OLD, BAD), terms(OLD, role_version=2)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, BAD))


async def test_attack_o24_a_delisted_release_is_refused_whatever_role_the_director_shows(bench):
    async with bench.running() as updater:
        await bench.install(OLD, BAD)
        await updater.learn(DELISTED)
        verdict = await updater.offer(BAD.assignment(), BAD.manifest_bytes, DELISTED, may_install=True)
        assert verdict.reason is Reason.DELISTED
        # Trust never hands out older terms; if it did, what was learnt stands.
        verdict = await updater.offer(BAD.assignment(), BAD.manifest_bytes, LISTED, may_install=True)
        assert verdict.reason is Reason.DELISTED
        assert bench.workers.history == [OLD.digest]
        assert ("refused", "delisted") in bench.outcomes()


@pytest.mark.parametrize("state", [State.FETCH, State.CHECK, State.WAIT])
async def test_attack_o24_a_release_that_is_delisted_on_its_way_in_stops(bench, state):
    async with bench.running() as updater:
        await bench.install(OLD, BAD)
        conditions = Conditions(signals_clear=("driving",))
        if state is State.FETCH:
            bench.source.up = False
        if state is State.CHECK:
            bench.canary.gate = asyncio.Event()
        await updater.offer(BAD.assignment(conditions=conditions), BAD.manifest_bytes, LISTED, may_install=True)
        await bench.until(lambda: updater.record.state is state)
        await updater.learn(DELISTED)
        bench.signals_off.add("driving")
        await bench.settled()
        assert bench.workers.history == [OLD.digest]
        assert bench.outcomes()[-1] == ("refused", "delisted")


async def test_attack_o24_what_runs_goes_on_when_it_is_delisted(bench):
    async with bench.running() as updater:
        await bench.install(OLD, BAD)
        await updater.learn(terms(BAD, role_version=3))
        assert bench.workers.serving == OLD.digest
    async with bench.running() as updater:
        assert bench.workers.serving == OLD.digest
        assert updater.record.committed.digest == OLD.digest
