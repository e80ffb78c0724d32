"""The table of the update machine, held over every state and every event."""

import itertools
from pathlib import Path

import pytest
from msgspec.structs import replace

from device.update.diagram import draw, fill
from device.update.states import (
    NEXT,
    RESUME,
    TRIED_KEPT,
    Ended,
    Event,
    Held,
    Offer,
    State,
    Tried,
    UpdateRecord,
    advance,
    is_spent,
    is_worn_out,
    observed,
    resume,
    settles_at_s,
    will_retry,
)
from protocol.errors import Reason
from protocol.release import TrialRules
from protocol.wire import decode, encode

OLDER = Held(digest="00" * 32, version="0.9.0", release_counter=1)
OLD = Held(digest="aa" * 32, version="1.0.0", release_counter=2)
NEW = Held(digest="bb" * 32, version="1.1.0", release_counter=3)
OTHER = Held(digest="cc" * 32, version="1.2.0", release_counter=4)
RULES = TrialRules(healthy_s=300, min_healthy_s=60, max_failed_starts=3, max_retries=2)
OFFER = Offer(release=NEW, rollout="spring", trial=RULES)


def record_in(state, **fields):
    """A record as it really stands in `state`."""
    base = {"committed": OLD, "previous": OLDER, "active": OLD.digest, "offer": OFFER}
    if state is State.IDLE:
        base["offer"] = None
    if state is State.TRIAL:
        base["active"] = NEW.digest
    if state is State.COMMIT:
        base |= {"active": NEW.digest, "committed": NEW, "previous": OLD}
    return UpdateRecord(state=state, **(base | fields))


def go(record, event, **more):
    more.setdefault("offer", Offer(release=OTHER, rollout="summer") if event is Event.OFFERED else None)
    return advance(record, event, reason=more.pop("reason", Reason.GOLDEN), detail="why", **more)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_is_either_in_the_table_or_impossible(state, event):
    record = record_in(state)
    if (state, event) in NEXT:
        assert go(record, event).state is NEXT[state, event]
    else:
        with pytest.raises(AssertionError):
            go(record, event)


@pytest.mark.parametrize(("state", "event"), sorted(NEXT))
def test_workers_are_pointed_at_an_offer_in_a_trial_only(state, event):
    """`active` is the committed release in every state but TRIAL, and what COMMIT keeps is what was on trial."""
    before = record_in(state)
    after = go(before, event)
    if after.state is State.TRIAL:
        assert after.active == after.offer.release.digest
        assert after.committed == before.committed
    else:
        assert after.active == after.committed.digest
    if after.committed != before.committed:
        assert (state, event) == (State.TRIAL, Event.HEALTHY)
        assert after.committed == NEW
        assert after.previous == OLD


PAGE = Path(__file__).parents[4] / "device" / "README.md"


def test_the_diagram_in_the_docs_is_drawn_from_the_table():
    page = PAGE.read_text()
    assert fill(page) == page, "run: python -m device.update.diagram device/README.md"
    assert draw() in page


def test_the_diagram_shows_every_transition_and_what_a_restart_counts():
    drawn = set()
    for line in draw().splitlines():
        pair, _, events = line.strip().partition(": ")
        source, arrow, target = pair.partition(" --> ")
        if arrow and events:
            drawn |= {(source, event, target) for event in events.split(", ")}
    assert drawn == {(state, event, after) for (state, event), after in NEXT.items()}
    assert [line.split()[3] for line in draw().splitlines() if "note right" in line] == ["check:", "trial:"]


def test_every_state_can_be_reached_and_left():
    reached, front = {State.IDLE}, [State.IDLE]
    while front:
        state = front.pop()
        for (before, _), after in NEXT.items():
            if before is state and after not in reached:
                reached.add(after)
                front.append(after)
    assert reached == set(State)
    assert {before for before, after in NEXT if before is not after} == set(State)


def test_from_every_state_the_machine_comes_to_rest():
    def rest(state, seen):
        ways = {after for (before, _), after in NEXT.items() if before is state} - seen
        return state is State.IDLE or any(rest(after, seen | {after}) for after in ways)

    assert all(rest(state, {state}) for state in State)


@pytest.mark.parametrize("state", State)
def test_a_restart_is_defined_in_every_state_and_changes_only_start_counts(state):
    assert set(RESUME) == set(State)
    record = record_in(state, healthy_s=123.0, inferences=7, failures=2)
    after = resume(record)
    assert after.state is state
    assert (after.active, after.healthy_s, after.inferences, after.failures) == (record.active, 123.0, 7, 2)
    assert after.starts == (1 if state in (State.CHECK, State.TRIAL) else 0)


def test_only_starts_that_never_settled_are_counted_in_a_row():
    record = record_in(State.TRIAL)
    for _ in range(3):
        record = resume(record)
        assert not is_spent(record)
    settled = observed(record, healthy_s=70, inferences=0, errors=0, this_start_s=60)
    assert (settled.starts, settled.settled) == (0, True)
    again = resume(settled)
    assert (again.starts, again.settled) == (0, False)
    assert is_spent(resume(resume(resume(resume(record)))))
    assert not is_spent(resume(resume(resume(again))))


def test_a_trial_of_many_settled_starts_is_never_spent_and_its_seconds_add_up():
    record, healthy_s = record_in(State.TRIAL), 0.0
    for _ in range(50):
        record = resume(record)
        assert not is_spent(record)
        healthy_s += 60
        record = observed(record, healthy_s=healthy_s, inferences=0, errors=0, this_start_s=60)
    assert record.healthy_s == 3000


def test_a_short_trial_settles_when_it_is_over():
    assert settles_at_s(TrialRules(healthy_s=5, min_healthy_s=60)) == 5
    assert settles_at_s(RULES) == 60


def test_three_ends_are_kept_apart():
    refused = go(record_in(State.CHECK), Event.REFUSED)
    assert refused.last == Ended(release=NEW, rollout="spring", outcome="refused", reason=Reason.GOLDEN, detail="why")
    failed = go(record_in(State.TRIAL), Event.FAILED, reason=Reason.TRIAL_CRASH)
    assert (failed.last.outcome, failed.last.reason) == ("rolled-back", Reason.TRIAL_CRASH)
    spent = go(record_in(State.TRIAL), Event.SPENT, reason=None)
    assert (spent.last.outcome, spent.last.reason) == ("unfinished", Reason.TRIAL_UNFINISHED)
    paused = go(record_in(State.FETCH), Event.PAUSED)
    assert paused.last is None
    assert (paused.failures, paused.retries, paused.starts) == (1, 0, 0)


def test_only_an_unfinished_update_is_tried_again_and_not_for_ever():
    record = record_in(State.TRIAL, starts=4)
    for attempt in (1, 2):
        record = go(go(go(record, Event.SPENT), Event.RESTORED), Event.CLEAN)
        assert will_retry(record)
        assert record.retries == attempt
        record = go(record, Event.AGAIN)
        assert (record.state, record.starts, record.healthy_s) == (State.FETCH, 0, 0.0)
        for event in (Event.FETCHED, Event.CHECKED, Event.READY, Event.ACTIVATED):
            record = go(record, event)
        assert record.retries == attempt
    record = go(go(record, Event.SPENT), Event.RESTORED)
    assert not will_retry(record)
    record = go(record, Event.CLEAN)
    assert record.offer is None
    assert is_worn_out(record, OFFER)
    for event, state in ((Event.REFUSED, State.CHECK), (Event.FORBIDDEN, State.WAIT)):
        ended = go(record_in(state), event)
        assert not will_retry(ended)


def test_a_repair_of_the_committed_release_keeps_the_one_before_it():
    again = Offer(release=OLD, rollout="repair", trial=RULES)
    after = go(record_in(State.TRIAL, offer=again, active=OLD.digest), Event.HEALTHY)
    assert (after.committed, after.previous) == (OLD, OLDER)


def test_an_offer_of_the_same_release_keeps_its_retries():
    record = record_in(State.FETCH, tried=(Tried(release=NEW.digest, rollout="spring", count=2),))
    assert go(record, Event.OFFERED, offer=Offer(release=NEW, rollout="spring")).retries == 2
    assert go(record, Event.OFFERED).retries == 0


def worn_out(record):
    """The offer, tried as often as its rules have it."""
    record = go(record, Event.OFFERED, offer=OFFER)
    for _ in range(RULES.max_retries + 1):
        record = replace(record, state=State.TRIAL, active=NEW.digest)
        record = go(go(record, Event.SPENT), Event.RESTORED)
    return go(record, Event.CLEAN)


def test_a_worn_out_offer_stays_so_whatever_was_offered_or_withdrawn_in_between():
    record = worn_out(record_in(State.IDLE))
    record = go(go(go(record, Event.OFFERED), Event.WITHDRAWN), Event.CLEAN)
    other = go(record, Event.OFFERED)
    for event in (Event.FETCHED, Event.REFUSED, Event.CLEAN):
        other = go(other, event)
    assert is_worn_out(other, OFFER)
    assert not is_worn_out(other, Offer(release=NEW, rollout="summer", trial=RULES)), "another rollout is a new offer"
    committed = replace(go(other, Event.OFFERED, offer=OFFER), state=State.TRIAL, active=NEW.digest)
    assert go(committed, Event.HEALTHY).tried == ()


def test_what_gave_way_to_another_offer_has_used_up_nothing():
    record = go(go(record_in(State.TRIAL), Event.SUPERSEDED), Event.RESTORED)
    assert record.last.outcome == "unfinished"
    assert (record.tried, will_retry(record)) == ((), True)


def test_the_memory_of_tries_is_bounded_and_the_oldest_go():
    record = record_in(State.IDLE)
    for number in range(TRIED_KEPT + 1):
        offer = Offer(release=NEW, rollout=f"rollout-{number}", trial=RULES)
        record = replace(go(record, Event.OFFERED, offer=offer), state=State.TRIAL, active=NEW.digest)
        record = go(go(go(record, Event.SPENT), Event.RESTORED), Event.CLEAN)
    assert len(record.tried) == TRIED_KEPT
    assert record.tries_of(NEW.digest, "rollout-0") == 0
    assert record.tries_of(NEW.digest, "rollout-1") == 1


@pytest.mark.parametrize("state", [State.IDLE, State.FETCH, State.CHECK, State.WAIT])
def test_a_withdrawn_offer_is_cleaned_up_after(state):
    record = go(record_in(state, offer=OFFER, failures=3), Event.WITHDRAWN)
    assert (record.state, record.offer, record.failures) == (State.CLEANUP, None, 0)
    assert go(record, Event.CLEAN).state is State.IDLE


def test_counts_of_one_attempt_do_not_leak_into_the_next():
    dirty = {"healthy_s": 9.0, "inferences": 9, "errors": 9, "starts": 2, "settled": True}
    after = go(record_in(State.ACTIVATE, **dirty), Event.ACTIVATED)
    assert (after.healthy_s, after.inferences, after.errors, after.starts, after.settled) == (0.0, 0, 0, 0, False)
    after = go(record_in(State.CHECK, starts=2), Event.CHECKED)
    assert after.starts == 0


@pytest.mark.parametrize("state", State)
def test_the_record_survives_its_own_writing(state):
    record = record_in(state, last=Ended(release=NEW, rollout="spring", outcome="refused", reason=Reason.HASH))
    assert decode(encode(record), UpdateRecord, limit=1 << 20) == record
