"""Updates that a field kit brings, beside those of the server: what they cost and wait for, what forcing skips."""

import asyncio
import dataclasses

import msgspec
import pytest

from device.update.offers import Offers, Waiting
from device.update.rules import Accepted, Later
from device.update.states import State
from protocol.errors import StateError
from protocol.objects import Budget, Conditions
from tests.fakes.machines import Bench
from tests.fakes.updates import QUICK, BlobSource, Release, noise, terms

MIB = 1 << 20
OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(3 * MIB, 2))
NEXT = Release("1.2.0", 3, noise(900, 3))
ALL = terms(OLD, NEW, NEXT)
REQUEST, SECOND = "f" * 32, "e" * 32
WAITS = Conditions(window_utc=(0, 1), not_before_ms=9_000_000_000_000, signals_clear=("driving",))


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path, BlobSource(OLD, NEW, NEXT))
    bench.stick.add([OLD, NEW, NEXT])
    return bench


async def offer(bench, release, name, conditions=None, known=ALL, **more):
    return await bench.updater.offer(
        release.assignment(name, conditions), release.manifest_bytes, known, may_install=True, **more
    )


def hold_waits(bench):
    """Back-off takes as long as it takes: only what is told that its obstacle went away goes on."""
    held = []

    async def sleep(seconds):
        held.append(seconds)
        await asyncio.Event().wait()

    bench.updater._fetching._world = dataclasses.replace(bench.updater._fetching._world, sleep=sleep)
    return held


async def pulled(bench, release=NEW, at_bytes=MIB, kit="kit-a"):
    """Offers a kit whose stick is pulled out in the midst of it."""
    held = hold_waits(bench)
    bench.stick.drops_at = {bench.stick.sent + at_bytes}
    await offer(bench, release, kit)
    await bench.until(lambda: bool(held))
    return held


async def test_what_a_kit_brings_is_installed_without_the_server_and_counts_nowhere(bench):
    bench.source.up = False
    bench.own_budget = Budget(release_bytes=0)
    async with bench.running() as updater:
        assert isinstance(await offer(bench, NEW, "kit-a"), Accepted)
        await bench.until(lambda: updater.record.committed is not None)
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
        assert bench.source.asked == []
        assert bench.db.counters().get("bytes_received", 0) == 0
        assert {status.rollout for status in bench.db.pending_statuses(100)} == {"kit-a"}
        assert all(status.transfer is None for status in bench.db.pending_statuses(100))
        assert updater.report().transfer is None


async def test_a_pulled_stick_pauses_says_so_and_goes_on_at_once_when_any_with_that_kit_is_back(bench):
    async with bench.running() as updater:
        await pulled(bench)
        assert updater.record.state is State.FETCH
        assert "stick: plug in one with kit-a" in updater.progress().why
        before = bench.stick.sent
        updater.link_is_up()
        updater.kit_is_there("kit-b")
        await asyncio.sleep(0.05)
        assert bench.stick.sent == before, "neither a contact nor another kit helps"
        updater.kit_is_there("kit-a")
        await bench.until(lambda: updater.record.committed is not None)
        assert bench.stick.sent < NEW.travels_bytes + MIB // 2, "what was verified is not read again"


async def test_a_restart_while_the_stick_is_away_loses_nothing_that_was_verified(bench):
    async with bench.running() as updater:
        await pulled(bench)
    bench.stick.up = False
    async with bench.running() as updater:
        held = hold_waits(bench)
        await bench.until(lambda: bool(held))
        assert "stick" in updater.progress().why
        bench.stick.up = True
        updater.kit_is_there("kit-a")
        await bench.until(lambda: updater.record.committed is not None)
        assert bench.stick.sent < NEW.travels_bytes + MIB // 2


async def test_a_kit_that_waits_for_its_stick_blocks_nothing_and_the_download_goes_on_over_the_air(bench):
    async with bench.running() as updater:
        await pulled(bench)
        assert isinstance(await offer(bench, NEW, "spring"), Accepted)
        await bench.until(lambda: updater.record.committed is not None)
        assert updater.record.last.rollout == "spring"
        assert 0 < bench.source.sent < NEW.travels_bytes - MIB // 2, "the parts of the stick are used"


async def test_a_kit_takes_a_download_over_from_the_server(bench):
    bench.source.up = False
    async with bench.running() as updater:
        held = hold_waits(bench)
        await offer(bench, NEW, "spring")
        await bench.until(lambda: bool(held))
        await offer(bench, NEW, "kit-a")
        await bench.until(lambda: updater.record.committed is not None)
        assert updater.record.last.rollout == "kit-a"


@pytest.mark.parametrize(("first", "then"), [("kit-a", "spring"), ("spring", "kit-a"), ("kit-a", "kit-b")])
async def test_a_lower_release_does_not_take_the_place_of_a_higher_one_and_is_put_off_with_a_word(bench, first, then):
    async with bench.running() as updater:
        await offer(bench, NEXT, first, WAITS)
        await bench.until(lambda: updater.record.state is State.WAIT)
        verdict = await offer(bench, NEW, then)
        assert isinstance(verdict, Later)
        assert "1.2.0" in verdict.why
        await asyncio.sleep(0.05)
        assert updater.record.offer.release.digest == NEXT.digest
        bench.signals_off.add("driving")
        await updater.force(NEXT.digest, REQUEST)
        await bench.until(lambda: bench.updater.progress().why == "signals: driving" or updater.record.committed)


async def test_a_higher_release_of_a_kit_replaces_the_servers_and_the_other_way_round(bench):
    for first, then in (("spring", "kit-a"), ("kit-a", "spring")):
        async with bench.running() as updater:
            await offer(bench, NEW, first, WAITS)
            await bench.until(lambda: updater.record.state is State.WAIT)
            await offer(bench, NEXT, then, WAITS)
            await bench.until(lambda: updater.record.offer.release.digest == NEXT.digest)
            updater.withdraw()
            updater.withdraw_kit("kit-a")
            await bench.settled()
            assert updater.record.offer is None


async def test_the_server_withdraws_what_it_offered_and_a_kit_what_it_brought_and_neither_the_others(bench):
    async with bench.running() as updater:
        for name, others in (("kit-a", "kit-b"), ("spring", "kit-a")):
            await offer(bench, NEW, name, WAITS)
            await bench.until(lambda: updater.record.state is State.WAIT)
            if name != "spring":
                updater.withdraw()
            updater.withdraw_kit(others)
            await asyncio.sleep(0.05)
            assert updater.record.state is State.WAIT
            if name == "spring":
                updater.withdraw()
            else:
                updater.withdraw_kit(name)
            await bench.settled()
            assert updater.record.offer is None


async def test_an_offer_of_the_server_waits_through_a_trial_of_a_kit(bench):
    slow = Release("1.1.0", 2, noise(500, 7), trial=msgspec.structs.replace(QUICK, healthy_s=1000.0))
    bench.stick.add([slow])
    known = terms(OLD, slow, NEXT)
    async with bench.running() as updater:
        await offer(bench, slow, "kit-a", known=known)
        await bench.until(lambda: updater.record.state is State.TRIAL)
        await offer(bench, NEXT, "spring", known=known)
        await bench.until(
            lambda: updater.record.committed is not None and updater.record.committed.digest == NEXT.digest
        )


# Force


async def test_a_forced_update_waits_for_no_window_and_says_by_which_request(bench):
    bench.signals_off.add("driving")
    async with bench.running() as updater:
        await offer(bench, NEW, "kit-a", WAITS)
        await bench.until(lambda: updater.record.state is State.WAIT)
        await updater.force(NEW.digest, REQUEST)
        await updater.force(NEW.digest, SECOND)
        assert updater.progress().forced in (REQUEST, "")
        await bench.until(lambda: updater.record.committed is not None)
        await bench.settled()
        said = [status.detail for status in bench.db.pending_statuses(100)]
        assert sum("forced by request" in detail for detail in said) >= 2
        assert not any(SECOND in detail for detail in said)
        assert REQUEST in said[-1]


async def test_a_cut_does_not_lose_that_an_update_was_forced_and_no_signal_is_left_on_that_may_not_be(bench):
    async with bench.running() as updater:
        await offer(bench, NEW, "kit-a", WAITS)
        await bench.until(lambda: updater.record.state is State.WAIT)
        await updater.force(NEW.digest, REQUEST)
    async with bench.running() as updater:
        assert updater.record.offer.forced == REQUEST
        await offer(bench, NEW, "kit-a", WAITS)
        await bench.until(lambda: updater.progress().why == "signals: driving")
        assert updater.record.offer.forced == REQUEST, "the same offer again does not undo it"
        await updater.learn(msgspec.structs.replace(ALL, role_version=2, skippable=("driving",)))
        await bench.until(lambda: updater.record.committed is not None)


async def test_what_is_offered_as_forced_is_forced_also_when_it_is_under_way_by_another_way(bench):
    bench.signals_off.add("driving")
    async with bench.running() as updater:
        await offer(bench, NEW, "spring", WAITS)
        await bench.until(lambda: updater.record.state is State.WAIT)
        verdict = await offer(bench, NEW, "kit-a", WAITS, forced=REQUEST)
        assert isinstance(verdict, Accepted)
        await bench.until(lambda: updater.record.committed is not None)
        assert updater.record.last.rollout == "spring"


async def test_a_forced_release_stays_so_when_another_way_brings_it(bench):
    async with bench.running() as updater:
        held = await pulled(bench)
        await updater.force(NEW.digest, REQUEST)
        bench.stick.up = False
        await bench.until(lambda: len(held) > 1)
        await offer(bench, NEW, "spring", WAITS)
        await bench.until(lambda: updater.record.state is State.WAIT)
        assert updater.record.offer.forced == REQUEST


async def test_force_ends_a_back_off_and_tries_what_used_up_its_retries(bench):
    once = Release("1.3.0", 4, noise(700, 9), trial=msgspec.structs.replace(QUICK, max_failed_starts=1, max_retries=0))
    bench.stick.add([once])
    known = terms(once)
    bench.workers.shown[once.digest] = dataclasses.replace(bench.workers.health(), digest=once.digest, serving=False)
    for _ in range(3):
        async with bench.running() as updater:
            if updater.record.offer is None and updater.record.last is None:
                await offer(bench, once, "kit-a", known=known)
            await bench.until(lambda: updater.record.state is State.TRIAL or updater.record.last is not None)
    async with bench.running() as updater:
        await bench.settled()
        assert "used up" in (await offer(bench, once, "kit-a", known=known)).why
        with pytest.raises(StateError):
            await updater.force(once.digest, REQUEST)
        bench.workers.shown.clear()
        assert isinstance(await offer(bench, once, "kit-a", known=known, forced=REQUEST), Accepted)
        await bench.until(lambda: updater.record.committed is not None)


async def test_force_ends_the_wait_of_a_download(bench):
    bench.source.up = False
    async with bench.running() as updater:
        held = hold_waits(bench)
        await offer(bench, NEW, "spring")
        await bench.until(lambda: bool(held))
        bench.source.up = True
        await updater.force(NEW.digest, REQUEST)
        await bench.until(lambda: updater.record.committed is not None)


async def test_what_is_forced_in_the_moment_in_which_it_is_taken_up_is_forced(bench, monkeypatch):
    async with bench.running() as updater:
        put, loop = bench.store.put, asyncio.get_running_loop()

        def put_while_somebody_forces(content):
            asyncio.run_coroutine_threadsafe(updater.force(NEW.digest, REQUEST), loop).result(10)
            return put(content)

        monkeypatch.setattr(bench.store, "put", put_while_somebody_forces)
        await offer(bench, NEW, "kit-a", WAITS)
        await bench.until(lambda: updater.record.offer is not None)
        monkeypatch.undo()
        await bench.until(lambda: updater.record.state is State.WAIT)
        assert updater.record.offer.forced == REQUEST


async def test_nothing_is_forced_that_is_not_under_way(bench):
    async with bench.running() as updater:
        with pytest.raises(StateError):
            await updater.force(NEW.digest, REQUEST)
        await bench.install(NEW, OLD)
        with pytest.raises(StateError):
            await updater.force(NEW.digest, REQUEST)


def test_an_offer_that_waits_stays_forced_when_it_is_repeated_and_the_next_one_is_not():
    offers = Offers()
    offers.put(Waiting(NEW.assignment("kit-a"), NEW.manifest_bytes, REQUEST))
    offers.put(Waiting(NEW.assignment("kit-a"), NEW.manifest_bytes))
    assert offers.next().forced == REQUEST
    offers.put(Waiting(NEXT.assignment("kit-a"), NEXT.manifest_bytes))
    assert offers.next().forced is None
