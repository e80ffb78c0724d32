"""Every history of the update machine: cuts at every step, also during recovery, against every fault of a release.

This walks the pure table on a simulated disk. The real updater goes through the same in `test_fail_points` and
`test_crash_states`, as the workloads `update`, `rollback` and `dying`.
"""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from device.update import states
from device.update.states import Event, Held, Offer, State, UpdateRecord, advance, is_spent, resume
from device.update.trial import Watched
from protocol.errors import Reason
from protocol.release import TrialRules


class PowerCut(BaseException):
    """No code of ours may catch it."""


class Choices:
    """Walks every path of bounded choices, depth first."""

    def __init__(self):
        self._path, self._at, self._fresh = [], 0, True

    def choose(self, count):
        if self._at == len(self._path):
            self._path.append([0, count])
        value = self._path[self._at][0]
        self._at += 1
        return value

    def again(self):
        if self._fresh:
            self._fresh = False
            return True
        while self._path:
            if self._path[-1][0] + 1 < self._path[-1][1]:
                self._path[-1][0] += 1
                self._at = 0
                return True
            self._path.pop()
        return False


OLD = Held(digest="aa" * 32, version="1.0.0", release_counter=1)
NEW = Held(digest="bb" * 32, version="1.1.0", release_counter=2)
RULES = TrialRules(healthy_s=3, min_healthy_s=1, max_failed_starts=2, max_retries=1)
OFFER = Offer(release=NEW, rollout="spring", trial=RULES)


@dataclass
class World:
    """What is durable, and what the release is like."""

    choices: Choices
    fault: str
    cuts_left: int
    record: UpdateRecord = field(
        default_factory=lambda: UpdateRecord(active=OLD.digest, committed=OLD, state=State.IDLE)
    )
    store: set = field(default_factory=lambda: {OLD.digest})
    floor: int = 1
    refused: set = field(default_factory=set)
    ends: list = field(default_factory=list)
    cut_in: Counter = field(default_factory=Counter)

    def tick(self):
        if self.cuts_left and self.choices.choose(2):
            self.cuts_left -= 1
            self.cut_in[self.record.state] += 1
            raise PowerCut

    def write(self, record, event=None):
        """One transaction: nothing of it, or all."""
        self.tick()
        before, self.record = self.record, record
        if event is Event.HEALTHY:
            self.floor = record.committed.release_counter
        if event in (Event.REFUSED, Event.FAILED):
            self.refused.add(before.offer.release.digest)
        if event in (Event.HEALTHY, Event.REFUSED, Event.RESTORED):
            self.ends.append(record.last.outcome)
        self.tick()


def work(world, record):
    """A shell as thin as can be: each state's work may be cut before and after its effect."""
    match record.state:
        case State.IDLE:
            return Event.AGAIN
        case State.FETCH:
            world.tick()
            world.store.add(NEW.digest)
            return Event.FETCHED
        case State.CHECK:
            if is_spent(record):
                return Event.SPENT
            if world.fault == "kills in check":
                raise PowerCut
            world.tick()
            return Event.REFUSED if world.fault == "golden" else Event.CHECKED
        case State.WAIT:
            return Event.READY
        case State.ACTIVATE:
            world.tick()
            return Event.ACTIVATED
        case State.TRIAL:
            return trial(world, record)
        case State.COMMIT:
            world.tick()
            return Event.COMMITTED
        case State.ROLLBACK:
            world.tick()
            return Event.RESTORED
        case State.CLEANUP:
            keep = {held.digest for held in (record.committed, record.previous) if held is not None}
            world.tick()
            world.store &= keep | ({NEW.digest} if states.will_retry(record) else set())
            return Event.CLEAN


def trial(world, record):
    if is_spent(record):
        return Event.SPENT
    if world.fault == "kills in trial":
        raise PowerCut
    if world.fault == "crash":
        return Event.FAILED
    this_start = 0
    while record.healthy_s < RULES.healthy_s:
        world.tick()
        this_start += 1
        seen = Watched(record.healthy_s + 1, 10, 0, this_start)
        record = states.observed(
            record, healthy_s=seen.healthy_s, inferences=10, errors=0, this_start_s=seen.this_start_s
        )
        world.write(record)
    return Event.HEALTHY


def boot(world):
    """From power on until nothing is to do."""
    record = resume(world.record)
    if record != world.record:
        world.write(record)
    if record == UpdateRecord(active=OLD.digest, committed=OLD) and not world.ends:
        world.write(advance(record, Event.OFFERED, offer=OFFER))
    for _ in range(100):
        record = world.record
        check(world)
        if record.state is State.IDLE and not states.will_retry(record):
            return
        event = work(world, record)
        record = world.record
        reason = Reason.GOLDEN if event is Event.REFUSED else Reason.TRIAL_CRASH if event is Event.FAILED else None
        world.write(advance(record, event, reason=reason), event)
    raise AssertionError("never came to rest")


def check(world):
    record = world.record
    assert record.active in world.store, "the pointer names a release that is there"
    assert record.committed.digest in world.store
    assert world.floor == record.committed.release_counter, "the floor rises in the transaction of the commit"
    if NEW.digest in world.refused:
        assert record.committed == OLD, "what was refused is not kept"


def histories(fault, cuts):
    choices, count, cut_in = Choices(), 0, Counter()
    while choices.again():
        count += 1
        world = World(choices, fault, cuts)
        for _ in range(60):
            try:
                boot(world)
                break
            except PowerCut:
                continue
        else:
            raise AssertionError("a boot loop")
        cut_in += world.cut_in
        check_end(world, fault)
    return count, cut_in


def check_end(world, fault):
    if fault == "none":
        assert world.record.committed == NEW
        assert world.ends == ["committed"]
    else:
        assert world.record.active == OLD.digest
        assert "committed" not in world.ends
    if fault in ("golden", "crash"):
        # Told once; a cut between an end and its transaction repeats the work, not the word.
        assert world.ends == [{"golden": "refused", "crash": "rolled-back"}[fault]]
        assert world.refused == {NEW.digest}
    if fault.startswith("kills"):
        assert world.refused == set()
        assert states.is_worn_out(world.record, OFFER)


@pytest.mark.parametrize("fault", ["none", "golden", "crash", "kills in check", "kills in trial"])
@pytest.mark.parametrize("cuts", [0, 1, 2])
def test_every_history_ends_with_a_whole_release_and_a_verdict(fault, cuts):
    count, cut_in = histories(fault, cuts)
    assert count > cuts * 10
    if cuts == 2:
        ends = {"none": {State.TRIAL, State.COMMIT}, "crash": {State.TRIAL, State.ROLLBACK}}
        assert set(cut_in) >= {State.FETCH, State.CHECK, State.CLEANUP} | ends.get(fault, set())


@pytest.mark.parametrize(
    "fault_in_rules",
    ["no start counter", "forgets to activate", "starts never settle", "refusal forgotten"],
)
def test_the_walk_sees_a_fault_that_is_planted_in_the_rules(monkeypatch, fault_in_rules):
    patient = TrialRules(healthy_s=3, min_healthy_s=1, max_failed_starts=1, max_retries=0)
    monkeypatch.setattr(f"{__name__}.RULES", patient)
    monkeypatch.setattr(f"{__name__}.OFFER", Offer(release=NEW, rollout="spring", trial=patient))
    match fault_in_rules:
        case "no start counter":
            monkeypatch.setattr(f"{__name__}.is_spent", lambda record: False)
            fault = "kills in trial"
        case "forgets to activate":
            monkeypatch.setitem(states.NEXT, (State.CHECK, Event.CHECKED), State.COMMIT)
            fault = "none"
        case "starts never settle":
            monkeypatch.setitem(
                states.RESUME,
                State.TRIAL,
                lambda record: record if record.state is not State.TRIAL else _always_counted(record),
            )
            fault = "none"
        case "refusal forgotten":
            monkeypatch.setattr(World, "refused", property(lambda self: set(), lambda self, value: None), raising=False)
            fault = "crash"
    with pytest.raises(AssertionError):
        histories(fault, 2)


def _always_counted(record):
    return UpdateRecord(
        **{name: getattr(record, name) for name in record.__struct_fields__} | {"starts": record.starts + 1}
    )
