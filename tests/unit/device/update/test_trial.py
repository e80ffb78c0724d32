"""What a trial shows: seconds and counts add up, evidence is found when there is enough of it."""

import pytest

from device.update.ports import Health
from device.update.trial import Evidence, Watch, Watched, find_evidence, is_proven, is_time_up
from protocol.errors import Reason
from protocol.release import Bounds, TrialRules

DIGEST = "ab" * 32
RULES = TrialRules(healthy_s=10, min_inferences=10, max_error_rate=0.1)
BOUNDS = {"pests": Bounds(latency_ms=100)}


def health(**facts):
    return Health(**({"digest": DIGEST, "serving": True} | facts))


def found(health, inferences=None, errors=None):
    watched = Watched(5, health.inferences if inferences is None else inferences, health.errors)
    evidence = find_evidence(health, watched, RULES, BOUNDS)
    return evidence.reason if evidence is not None else None


def test_seconds_count_while_every_model_serves():
    watch = Watch(Watched(healthy_s=3))
    watch.take(health(), 1)
    watch.take(health(serving=False), 5)
    assert watch.take(health(), 1) == Watched(healthy_s=5, this_start_s=2)


def test_counts_go_on_when_workers_start_anew_and_count_from_nothing():
    watch = Watch(Watched(inferences=100, errors=10))
    watch.take(health(inferences=20, errors=2), 1)
    watch.take(health(inferences=3), 1)
    seen = watch.take(health(inferences=8, errors=1), 1)
    assert (seen.inferences, seen.errors) == (128, 13)


def test_one_dead_worker_is_enough():
    assert found(health(crashes=("SIGSEGV",))) is Reason.TRIAL_CRASH


def test_one_worker_killed_from_outside_is_no_evidence_and_two_are():
    assert found(health(crashes=("SIGKILL",))) is None
    assert found(health(crashes=("SIGKILL", "SIGKILL"))) is Reason.TRIAL_CRASH


def test_a_container_at_fault_is_enough_and_is_told_with_its_words():
    evidence = find_evidence(health(faults=("container a is unhealthy", "b")), Watched(), RULES, BOUNDS)
    assert evidence == Evidence(Reason.TRIAL_CONTAINER, "container a is unhealthy; b")


def test_seconds_without_any_word_of_the_engine_add_up_until_the_set_serves():
    watch = Watch(Watched())
    away = health(serving=False, hindered="engine: away")
    watch.take(away, 5)
    assert watch.take(health(serving=False), 60).hindered_s == 5, "an engine that comes and goes is no way out of it"
    assert watch.take(away, 5).hindered_s == 10
    assert watch.take(health(), 5) == Watched(healthy_s=5, this_start_s=5)
    assert watch.take(away, 5).hindered_s == 5


def test_what_is_late_is_held_against_a_release_that_never_served_and_else_waited_for():
    late = health(serving=False, late=("container a did not come up within 30 s",))
    watch = Watch(Watched())
    first = watch.take(late, 5)
    assert first == Watched()
    assert find_evidence(late, first, RULES, BOUNDS).reason is Reason.TRIAL_CONTAINER
    watch.take(health(), 1)
    again = watch.take(late, 5)
    assert again.hindered_s == 5
    assert find_evidence(late, again, RULES, BOUNDS) is None


def test_neither_errors_nor_latency_are_held_against_a_set_that_is_not_whole():
    many = {"inferences": 100, "errors": 100, "latency_ms": {"pests": 500.0}}
    assert found(health(serving=False, **many)) is None
    assert found(health(**many)) is Reason.TRIAL_ERRORS


@pytest.mark.parametrize(
    ("inferences", "errors", "reason"),
    [(9, 9, None), (10, 1, None), (10, 2, Reason.TRIAL_ERRORS), (100, 10, None), (100, 11, Reason.TRIAL_ERRORS)],
)
def test_errors_are_a_share_of_enough_inferences(inferences, errors, reason):
    assert found(health(inferences=inferences, errors=errors)) is reason


@pytest.mark.parametrize(
    ("inferences", "latency_ms", "reason"),
    [(9, 500, None), (10, 100, None), (10, 100.1, Reason.TRIAL_LATENCY)],
)
def test_latency_is_held_against_the_bound_of_the_variant_that_runs(inferences, latency_ms, reason):
    assert found(health(inferences=inferences, latency_ms={"pests": latency_ms, "unknown": 9999})) is reason


def test_it_is_proven_by_time_and_frames_together():
    assert is_proven(Watched(healthy_s=10, inferences=10), RULES)
    assert not is_proven(Watched(healthy_s=9.9, inferences=10), RULES)
    assert not is_proven(Watched(healthy_s=10, inferences=9), RULES)
    assert is_time_up(Watched(healthy_s=10), RULES)
