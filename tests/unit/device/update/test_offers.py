"""Which offer goes before which: the whole table of what is under way and what comes."""

import itertools

import pytest

from device.update.offers import SERVER, UNDER_WAY, Offers, Waiting, goes_before, is_same, source_of
from device.update.states import Held, Offer, State, UpdateRecord
from tests.fakes.updates import Release

UNDER = ["none", "server", "kit", "kit waits for its stick"]
COMES = ["server", "kit"]
COUNTERS = {"higher": (0, 6), "same": (0, 5), "lower": (0, 4), "era": (1, 1)}
FORCED = "f" * 32


def offer(source, counter=(0, 5), forced=None):
    era, number = counter
    held = Held(digest=f"{number:064x}", version=f"1.{number}.0", release_counter=number, era=era)
    return Offer(release=held, rollout="spring" if source == "server" else "kit-spring", forced=forced)


def expected(under, state, comes, counter):
    """As people are told it, not as it is computed."""
    if under == "none" or state in (State.COMMIT, State.ROLLBACK, State.CLEANUP):
        return True
    if under == "kit waits for its stick":
        return True
    if (under, comes) == ("server", "server"):
        return True
    if counter == "same":
        return (under, comes, state) == ("server", "kit", State.FETCH)
    return counter in ("higher", "era")


@pytest.mark.parametrize(("under", "comes"), list(itertools.product(UNDER, COMES)))
@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("forced", [None, FORCED])
def test_every_pair_has_its_winner_in_every_state(under, comes, counter, forced):
    for state in State:
        waits = under == "kit waits for its stick"
        if waits and state is not State.FETCH:
            continue
        current = None if under == "none" else offer(under)
        record = UpdateRecord(state=state, offer=current)
        new = offer(comes, COUNTERS[counter], forced)
        assert goes_before(new, record, waits_for_stick=waits) is expected(under, state, comes, counter), state


def test_an_update_is_under_way_until_its_trial_is_over():
    assert frozenset(State) - UNDER_WAY == {State.COMMIT, State.ROLLBACK, State.CLEANUP}


def test_an_offer_that_is_forced_is_still_the_same_offer():
    assert is_same(offer("kit"), offer("kit", forced=FORCED))
    assert not is_same(offer("kit"), offer("server"))


def waiting(name, number=1):
    return Waiting(Release(f"1.{number}.0", number, b"model").assignment(name), b"")


def test_the_server_has_one_offer_waiting_and_each_kit_one_of_its_own():
    offers = Offers()
    for name, number in (("spring", 1), ("kit-a", 2), ("summer", 3), ("kit-b", 4), ("kit-a", 5)):
        offers.put(waiting(name, number))
    taken = []
    while (one := offers.next()) is not None:
        taken.append((source_of(one.assignment.rollout), one.assignment.release))
        offers.done(one)
    assert sorted(taken) == [("kit-a", "1.5.0"), ("kit-b", "1.4.0"), (SERVER, "1.3.0")]


def test_what_is_withdrawn_is_dropped_for_its_source_only_and_a_newer_offer_outlives_the_end_of_an_older_one():
    offers = Offers()
    first, second = waiting("spring", 1), waiting("summer", 2)
    offers.put(first)
    offers.put(waiting("kit-a", 3))
    offers.put(second)
    offers.done(first)
    assert offers.next() is second
    assert offers.drop(SERVER)
    assert not offers.drop(SERVER)
    assert offers.next().assignment.rollout == "kit-a"


def test_what_waits_is_forced_by_its_release():
    offers = Offers()
    offers.put(waiting("spring", 1))
    offers.put(waiting("kit-a", 3))
    release = waiting("kit-a", 3).assignment.manifest.sha256
    assert offers.force(release, FORCED)
    assert not offers.force("00" * 32, FORCED)
    assert [offers._waiting[source].forced for source in (SERVER, "kit-a")] == [None, FORCED]
    assert offers.another(release)
