"""A machine that lost `state.db` and its seal installs nothing before it heard what it had: no floor falls by that."""

import asyncio
import contextlib

import pytest

from device.recovery import Recovery
from device.state_db import RECOVERING, StateDb
from device.trust.port import Verdict
from device.update.memory import Memory
from device.update.rules import Floor, Later
from protocol.errors import Reason, Refused
from protocol.objects import ReportedBody
from tests.fakes.contact_machine import DEVICE, opened
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

ONE = Release("1.0.0", 1, noise(2000, 1))
TWO = Release("1.1.0", 2, noise(2000, 2))
THREE = Release("1.2.0", 3, noise(2000, 3))
LISTED = terms(ONE, TWO, THREE)


def reported(release: Release | None = TWO, **changes) -> ReportedBody:
    named = {} if release is None else {"manifest": release.digest, "release": release.version}
    return ReportedBody(device=DEVICE, nonce="0" * 32, **(named | changes))


@pytest.fixture
async def machine(tmp_path):
    async with opened(tmp_path) as machine:
        machine.state.put(RECOVERING, b"1")
        machine.trust.terms = LISTED
        yield machine


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(ONE, TWO, THREE))


async def test_it_asks_until_both_floors_were_verified_in_one_contact(machine):
    await machine.meets()
    machine.trust.reported, machine.trust.terms = reported(), None
    await machine.meets()
    machine.trust.terms, machine.trust.may_install = LISTED, False
    await machine.meets()
    assert machine.state.is_recovering
    assert Memory(machine.state).floor() == Floor()
    machine.trust.may_install = True
    await machine.meets()
    assert not machine.state.is_recovering
    assert Memory(machine.state).floor() == Floor(era=0, counter=2)
    await machine.meets()
    assert [request.recovering for request in machine.server.requests] == [True] * 4 + [False]


async def test_what_it_heard_is_sealed(machine):
    machine.trust.reported = reported()
    await machine.meets()
    sealed = machine.state._seals.newest()
    assert sealed.floors["update/counter/0"] == 2
    assert RECOVERING not in sealed.facts


async def test_the_managers_listing_counts_more_than_the_servers_word(machine):
    machine.trust.reported = reported(TWO, release_counter=1)
    await machine.meets()
    assert Memory(machine.state).floor().counter == 2


async def test_of_a_release_that_is_listed_no_more_the_servers_word_counts(machine):
    machine.trust.terms = terms(THREE)
    machine.trust.reported = reported(TWO, release_counter=2, era=0)
    await machine.meets()
    assert Memory(machine.state).floor().counter == 2


async def test_a_floor_that_is_known_here_does_not_fall_by_it(machine):
    machine.state.raise_floor("update/counter/0", 9)
    machine.trust.reported = reported()
    await machine.meets()
    assert Memory(machine.state).floor().counter == 9


async def test_a_machine_that_never_committed_anything_recovers_too(machine):
    machine.trust.reported = reported(None)
    await machine.meets()
    assert not machine.state.is_recovering
    assert Memory(machine.state).floor() == Floor()


async def test_until_then_offers_wait_and_say_why(bench):
    async with bench.running() as updater:
        bench.db.put(RECOVERING, b"1")
        verdict = await updater.offer(THREE.assignment(), THREE.manifest_bytes, LISTED, may_install=True)
        assert isinstance(verdict, Later)
        assert "recovery" in verdict.why
        assert updater.record.offer is None


@pytest.mark.parametrize(("release", "installed"), [(ONE, False), (TWO, True), (THREE, True)])
async def test_a_machine_that_has_nothing_left_gets_back_what_it_had_and_nothing_older(bench, release, installed):
    """The floor that it heard is that of the release it ran: to run it again is no step back."""
    async with bench.running() as updater:
        bench.db.put(RECOVERING, b"1")
        told = Verdict(terms=LISTED, reported=reported(), may_install=True)
        await asyncio.to_thread(Recovery(bench.db).hear, told)
        verdict = await updater.offer(release.assignment(), release.manifest_bytes, LISTED, may_install=True)
        if installed:
            await bench.until(lambda: bench.workers.serving == release.digest)
            await bench.until(lambda: updater.report().manifest == release.digest)
            assert Memory(bench.db).floor().counter == release.counter
        else:
            assert isinstance(verdict, Refused)
            assert verdict.reason is Reason.COUNTER_FLOOR
            assert updater.record.offer is None


async def test_until_then_nothing_of_what_it_fetched_is_deleted(bench):
    """A machine that knows of no release must not take all of them for needless."""
    async with bench.running():
        await bench.install(TWO, THREE)
        files = set(bench.store.digests())
    for path in (*bench.folder.glob("state*"), bench.folder / "sets/active"):
        path.unlink()
    with contextlib.closing(StateDb(bench.folder / "state.db")) as state:
        state.put(RECOVERING, b"1")
    async with bench.running() as updater:
        assert set(bench.store.digests()) == files
        await asyncio.to_thread(Recovery(bench.db).hear, Verdict(terms=LISTED, reported=reported(), may_install=True))
        asked = len(bench.source.asked)
        await bench.install(TWO, THREE)
        assert updater.record.committed.digest == TWO.digest
        assert len(bench.source.asked) == asked, "not a byte of it travelled again"
