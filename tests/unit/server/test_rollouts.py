"""What a rollout does next, as facts and verdicts: no server, no clock."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Reason
from protocol.objects import Conditions
from server.rollouts import (
    NO_EVIDENCE,
    Candidate,
    Halt,
    Stay,
    Widen,
    choose,
    failed,
    judge,
    place,
    tally,
)
from server.storage.records import Member, Phase, Rollout

ALL = Phase(percent=100)


def rollout(*phases: Phase, phase: int = 0, **more: object) -> Rollout:
    base = Rollout(
        name="r",
        sequence=1,
        product="pest-detector",
        release="1.1.0",
        manifest="b" * 64,
        manifest_bytes=10,
        release_counter=2,
        era=0,
        group="all",
        phases=phases or (ALL,),
        conditions=Conditions(),
        created_ms=0,
        phase=phase,
    )
    return replace(base, **more)


def member(device: str, outcome: str | None = None, *, phase: int = 0, reason: Reason | None = None) -> Member:
    if outcome in ("refused", "rolled-back") and reason is None:
        reason = Reason.GOLDEN
    ended = None if outcome is None else 100
    return Member(rollout="r", device=device, phase=phase, offered_ms=0, outcome=outcome, reason=reason, ended_ms=ended)


def committed(count: int, phase: int = 0) -> list[Member]:
    return [member(f"good-{phase}-{number}", "committed", phase=phase) for number in range(count)]


def broken(count: int, phase: int = 0) -> list[Member]:
    return [member(f"bad-{phase}-{number}", "rolled-back", phase=phase) for number in range(count)]


def test_a_phase_opens_the_next_once_enough_of_its_places_committed() -> None:
    staged = rollout(Phase(count=5, success_percent=80), ALL)
    assert judge(staged, committed(3), 50) == Stay()
    assert judge(staged, committed(4), 50) == Widen(1)


def test_the_last_phase_has_nothing_to_open() -> None:
    assert judge(rollout(ALL), committed(10), 10) == Stay()


def test_machines_that_were_not_seen_have_not_failed() -> None:
    staged = rollout(Phase(percent=50, error_percent=0), ALL)
    (first, second) = tally(staged, committed(1), 100)
    assert (first.places, first.contacted, first.committed, first.failed, first.unseen) == (50, 1, 1, 0, 49)
    assert (second.places, second.unseen) == (50, 50)
    assert judge(staged, committed(1), 100) == Stay()


def test_machines_under_way_are_neither_good_nor_bad() -> None:
    staged = rollout(Phase(count=2), ALL)
    waiting = [member("a"), member("b", "deferred"), member("c", "unfinished")]
    assert judge(staged, waiting[:2], 10) == Stay()
    assert not any(failed(each) for each in waiting)


@pytest.mark.parametrize(
    ("bad", "good", "error_percent", "halts"),
    [
        (1, 0, 0, True),
        (1, 9, 10, False),  # exactly the share that may fail
        (1, 8, 10, True),
        (1, 0, 100, False),
        (5, 5, 50, False),
        (6, 4, 50, True),
        (0, 10, 0, False),
    ],
)
def test_more_failures_than_allowed_among_the_contacted_halt_it(
    bad: int, good: int, error_percent: float, halts: bool
) -> None:
    staged = rollout(Phase(percent=100, error_percent=error_percent))
    verdict = judge(staged, broken(bad) + committed(good), 1000)
    assert isinstance(verdict, Halt) is halts


def test_the_reason_of_a_halt_names_phase_numbers_and_evidence() -> None:
    verdict = judge(rollout(Phase(percent=100, error_percent=5)), [member("a", "refused", reason=Reason.GOLDEN)], 10)
    assert isinstance(verdict, Halt)
    assert verdict.why == "phase 1: 1 of 1 contacted machines failed (golden), at most 5 % may"


def test_a_failure_in_an_earlier_phase_still_halts_a_later_one() -> None:
    staged = rollout(Phase(count=1, error_percent=0), ALL, phase=1)
    assert isinstance(judge(staged, broken(1, phase=0) + committed(99, phase=1), 100), Halt)


def test_failing_beats_succeeding_in_the_same_moment() -> None:
    staged = rollout(Phase(count=10, success_percent=50, error_percent=10), ALL)
    assert isinstance(judge(staged, committed(5) + broken(5), 100), Halt)


@pytest.mark.parametrize("reason", sorted(NO_EVIDENCE))
def test_a_bad_link_source_or_aim_is_no_evidence_against_a_release(reason: Reason) -> None:
    assert judge(rollout(Phase(percent=100, error_percent=0)), [member("a", "refused", reason=reason)], 10) == Stay()


@pytest.mark.parametrize(
    "reason",
    [Reason.GOLDEN, Reason.BOUNDS, Reason.MODEL_CRASH, Reason.MODEL_LOAD, Reason.TRIAL_CRASH, Reason.TRIAL_LATENCY],
)
def test_what_a_machine_saw_of_the_release_itself_is_evidence(reason: Reason) -> None:
    verdict = judge(rollout(Phase(percent=100, error_percent=0)), [member("a", "refused", reason=reason)], 10)
    assert isinstance(verdict, Halt)


def test_who_resumes_has_seen_the_failures_until_then() -> None:
    staged = rollout(Phase(percent=100, error_percent=0), judged_from_ms=101)
    assert judge(staged, broken(3), 10) == Stay()
    late = replace(broken(1)[0], ended_ms=101)
    assert isinstance(judge(staged, [*broken(3), replace(late, device="late")], 10), Halt)


@pytest.mark.parametrize("state", ["paused", "halted"])
def test_a_rollout_that_does_not_run_takes_no_steps(state: str) -> None:
    staged = rollout(Phase(count=1), ALL, state=state)
    assert judge(staged, committed(1), 10) == Stay()
    assert judge(staged, broken(1), 10) == Stay()


def test_an_empty_group_opens_no_phase() -> None:
    assert judge(rollout(Phase(percent=10), ALL), [], 0) == Stay()
    assert judge(rollout(Phase(count=1), ALL), [], 0) == Stay()


def test_a_phase_that_earlier_ones_cover_already_opens_the_next() -> None:
    staged = rollout(Phase(devices=("a",)), Phase(percent=10), ALL, phase=1)
    assert judge(staged, [member("a", "committed")], 3) == Widen(2)


def test_named_machines_are_waited_for() -> None:
    staged = rollout(Phase(devices=("a", "b")), ALL)
    assert judge(staged, [member("a", "committed")], 10) == Stay()
    assert judge(staged, [member("a", "committed"), member("b", "committed")], 10) == Widen(1)


def test_named_machines_get_their_places_and_nobody_else() -> None:
    staged = rollout(Phase(devices=("a", "b")), ALL)
    assert place(staged, None, "a", {}, 10) == 0
    assert place(staged, None, "c", {}, 10) is None
    assert place(replace(staged, phase=1), None, "c", {0: 2}, 10) == 1


def test_counted_places_go_to_those_who_come_first() -> None:
    staged = rollout(Phase(count=2), ALL)
    assert place(staged, None, "x", {0: 1}, 10) == 0
    assert place(staged, None, "y", {0: 2}, 10) is None
    assert place(staged, member("x"), "x", {0: 2}, 10) == 0


def test_shares_are_rounded_up_and_count_all_places_so_far() -> None:
    staged = rollout(Phase(percent=10), Phase(percent=50), phase=1)
    assert [count.places for count in tally(staged, [], 3)] == [1, 1]
    assert place(staged, None, "x", {0: 1}, 3) == 1
    assert place(staged, None, "x", {0: 1, 1: 1}, 3) is None


def test_a_group_that_grows_has_more_places() -> None:
    staged = rollout(Phase(percent=50))
    assert place(staged, None, "x", {0: 1}, 2) is None
    assert place(staged, None, "x", {0: 1}, 4) == 0


def test_places_never_exceed_the_group() -> None:
    assert [count.places for count in tally(rollout(Phase(count=100), ALL), [], 4)] == [4, 0]


def candidate(base: Rollout, phase: int | None = 0, member: Member | None = None, listed: bool = True) -> Candidate:
    return Candidate(base, phase, member, listed)


def older(**more: object) -> Rollout:
    return rollout(name="old", sequence=0, release="1.0.0", manifest="a" * 64, release_counter=1, **more)


def test_the_newest_rollout_wins() -> None:
    chosen = choose([candidate(rollout()), candidate(older())], ["all"], None, None)
    assert chosen is not None and chosen.rollout.name == "r"


def test_a_machine_that_runs_the_release_is_offered_nothing() -> None:
    assert choose([candidate(rollout()), candidate(older())], ["all"], "b" * 64, (0, 2)) is None


@pytest.mark.parametrize("state", ["paused", "halted"])
def test_a_new_machine_gets_the_older_release_while_the_newest_does_not_run(state: str) -> None:
    newest = candidate(rollout(state=state), phase=None)
    chosen = choose([newest, candidate(older())], ["all"], None, None)
    assert chosen is not None and chosen.rollout.name == "old"


def test_nobody_is_sent_back_to_an_older_release() -> None:
    newest = candidate(rollout(state="halted"), phase=None)
    assert choose([newest, candidate(older())], ["all"], "c" * 64, (0, 2)) is None
    assert choose([newest, candidate(older())], ["all"], "a" * 64, (0, 1)) is None


def test_a_new_era_is_newer_whatever_its_counter() -> None:
    chosen = choose([candidate(rollout(era=1, release_counter=1))], ["all"], "a" * 64, (0, 900))
    assert chosen is not None


def test_a_delisted_release_is_not_offered() -> None:
    assert choose([candidate(rollout(), listed=False)], ["all"], None, None) is None


def test_a_machine_outside_the_group_or_without_a_place_is_not_offered_it() -> None:
    assert choose([candidate(rollout())], ["others"], None, None) is None
    assert choose([candidate(rollout(), phase=None)], ["all"], None, None) is None


def test_a_machine_that_refused_it_on_evidence_is_never_offered_it_again() -> None:
    ended = member("a", "refused", reason=Reason.GOLDEN)
    assert choose([candidate(rollout(), member=ended)], ["all"], None, None) is None
    assert choose([candidate(rollout(judged_from_ms=999), member=ended)], ["all"], None, None) is None


@pytest.mark.parametrize("outcome", ["unfinished", "deferred", None])
def test_a_machine_that_did_not_finish_is_offered_it_again(outcome: str | None) -> None:
    assert choose([candidate(rollout(), member=member("a", outcome))], ["all"], None, None) is not None


def test_a_swapped_blob_is_tried_again_and_wrong_hardware_only_when_a_person_resumes() -> None:
    swapped = member("a", "refused", reason=Reason.HASH)
    assert choose([candidate(rollout(), member=swapped)], ["all"], None, None) is not None
    unsuited = member("a", "refused", reason=Reason.WRONG_HARDWARE)
    assert choose([candidate(rollout(), member=unsuited)], ["all"], None, None) is None
    assert choose([candidate(rollout(judged_from_ms=999), member=unsuited)], ["all"], None, None) is not None


PHASES = st.lists(
    st.one_of(
        st.builds(Phase, count=st.integers(1, 20), success_percent=st.floats(0, 100), error_percent=st.floats(0, 100)),
        st.builds(
            Phase, percent=st.floats(0.1, 100), success_percent=st.floats(0, 100), error_percent=st.floats(0, 100)
        ),
        st.builds(
            Phase,
            devices=st.lists(st.sampled_from([f"d{n}" for n in range(12)]), max_size=4).map(tuple),
            success_percent=st.floats(0, 100),
        ),
    ),
    min_size=1,
    max_size=4,
)
OUTCOMES = st.sampled_from([None, "committed", "refused", "rolled-back", "unfinished", "deferred"])


@given(PHASES, st.lists(st.tuples(st.integers(0, 11), OUTCOMES), max_size=40), st.integers(0, 12))
def test_any_order_of_contacts_keeps_the_rollouts_promises(
    phases: list[Phase], contacts: list[tuple[int, str | None]], group_size: int
) -> None:
    """Machines come in any order and end in any way: it always ends judging, never exceeds its places, never narrows,
    and offers nothing once it halted."""
    current = rollout(*phases)
    members: dict[str, Member] = {}
    for number, outcome in contacts:
        device = f"d{number}"
        if number >= group_size:
            continue
        taken: dict[int, int] = {}
        for each in members.values():
            taken[each.phase] = taken.get(each.phase, 0) + 1
        if current.state == "active":
            at = place(current, members.get(device), device, taken, group_size)
            if at is not None:
                assert at <= current.phase
                members[device] = replace(member(device, outcome), phase=at)
        for _ in range(len(phases) + 1):
            match judge(current, list(members.values()), group_size):
                case Widen(phase):
                    assert phase == current.phase + 1
                    current = replace(current, phase=phase)
                case Halt(why):
                    assert any(failed(each) for each in members.values())
                    current = replace(current, state="halted", why=why)
                case Stay():
                    break
        else:
            raise AssertionError("judging does not end")
        for count in tally(current, list(members.values()), group_size):
            assert count.committed + count.failed <= count.contacted <= count.places
    assert len(members) <= group_size
