"""The install rule and the second look: each clause with its negative."""

import msgspec
import pytest

from device.trust.port import Terms
from device.update.rules import Accepted, Floor, Later, Machine, judge_offer, look_again
from device.update.states import Held, Offer, Tried, UpdateRecord
from protocol.errors import Reason, Refused
from protocol.objects import Conditions
from tests.fakes.updates import DEVICE, INVENTORY, MACHINE, PRODUCT, Release, terms

NEW = Release("1.1.0", 5, b"new model")
HELD = Held(digest=NEW.digest, version="1.1.0", release_counter=5)
OFFER = Offer(release=HELD, rollout="spring")
RUNS = UpdateRecord(committed=Held(digest="aa" * 32, version="1.0.0", release_counter=4), active="aa" * 32)
NOON_MS = 1_790_000_000_000 // 86_400_000 * 86_400_000 + 12 * 3_600_000


def judge(release=NEW, assignment=None, manifest=None, known=None, machine=MACHINE, **facts):
    facts = {"floor": Floor(), "record": RUNS, "refused": {}, "delisted": ()} | facts
    return judge_offer(
        assignment or release.assignment(),
        manifest or release.manifest_bytes,
        known or terms(release),
        machine,
        **facts,
    )


def refusal(*args, **facts):
    with pytest.raises(Refused) as refused:
        judge(*args, **facts)
    return refused.value.reason


def look(conditions=None, known=None, **facts):
    facts = {
        "floor": Floor(),
        "record": RUNS,
        "refused": {},
        "now_ms": NOON_MS,
        "sure_of_time": True,
        "signals_off": (),
    } | facts
    offer = msgspec.structs.replace(OFFER, conditions=conditions or Conditions())
    return look_again(offer, known or terms(NEW), **facts)


def test_a_listed_newer_fitting_release_that_is_assigned_here_is_accepted():
    verdict = judge()
    assert isinstance(verdict, Accepted)
    assert verdict.offer.release == HELD
    assert {artifact.sha256 for artifact in verdict.artifacts} == set(NEW.artifacts)


def test_another_machines_assignment_is_refused():
    assert refusal(assignment=NEW.assignment(device="tractor-2")) is Reason.WRONG_DEVICE


def test_another_products_assignment_terms_or_manifest_are_refused():
    other = msgspec.structs.replace(NEW.assignment(), product="weed-detector")
    assert refusal(assignment=other) is Reason.WRONG_PRODUCT
    assert refusal(known=msgspec.structs.replace(terms(NEW), product="weed-detector")) is Reason.WRONG_PRODUCT
    assert refusal(machine=Machine(DEVICE, "weed-detector", INVENTORY)) is Reason.WRONG_PRODUCT


def test_a_manifest_that_is_not_the_signed_bytes_is_refused_before_it_is_parsed():
    assert refusal(manifest=NEW.manifest_bytes[:-1] + b" ") is Reason.HASH
    assert refusal(manifest=NEW.manifest_bytes + b" ") is Reason.LENGTH


def test_what_the_role_does_not_list_is_refused_and_a_delisted_one_by_its_name():
    assert refusal(known=Terms(product=PRODUCT, role_version=1)) is Reason.NOT_LISTED
    assert refusal(known=Terms(product=PRODUCT, role_version=2), delisted=[NEW.digest]) is Reason.DELISTED


def test_a_manifest_that_says_something_else_than_its_listing_is_refused():
    for change in ({"version": "9.9.9"}, {"release_counter": 99}, {"era": 1}):
        listed = msgspec.structs.replace(NEW.listed, **change)
        known = msgspec.structs.replace(terms(NEW), listed={NEW.digest: listed})
        assert refusal(known=known) is Reason.MANIFEST
    assert refusal(assignment=msgspec.structs.replace(NEW.assignment(), release="9.9.9")) is Reason.MANIFEST


@pytest.mark.parametrize(("counter", "fits"), [(4, True), (5, False), (6, False)])
def test_the_counter_must_be_above_the_committed_floor(counter, fits):
    floor = Floor(era=0, counter=counter)
    if fits:
        assert isinstance(judge(floor=floor), Accepted)
    else:
        assert refusal(floor=floor) is Reason.COUNTER_FLOOR


@pytest.mark.parametrize(("counter", "fits"), [(4, True), (5, True), (6, False)])
def test_where_nothing_is_committed_the_release_at_the_floor_may_come_back_and_no_older_one(counter, fits):
    floor = Floor(era=0, counter=counter)
    if fits:
        assert isinstance(judge(record=UpdateRecord(), floor=floor), Accepted)
        assert look(record=UpdateRecord(), floor=floor) is None
    else:
        assert refusal(record=UpdateRecord(), floor=floor) is Reason.COUNTER_FLOOR
    above = {"record": UpdateRecord(), "floor": floor}
    assert refusal(known=terms(NEW, floor=6), **above) is Reason.PRODUCT_FLOOR, "the managers' floor holds"
    assert refusal(known=Terms(product=PRODUCT, role_version=2), **above) is Reason.NOT_LISTED
    assert refusal(record=UpdateRecord(), floor=Floor(era=1, counter=5)) is Reason.COUNTER_FLOOR, "nor a past era"


def test_a_higher_era_restarts_the_counter_and_a_lower_one_is_refused():
    again = Release("2.0.0", 1, b"after the era", era=1)
    assert isinstance(judge(again, known=terms(again, era=1), floor=Floor(era=0, counter=900)), Accepted)
    assert refusal(again, known=terms(again, era=1), floor=Floor(era=1, counter=1)) is Reason.COUNTER_FLOOR
    assert refusal(again, known=terms(again, era=1), floor=Floor(era=2, counter=0)) is Reason.COUNTER_FLOOR
    assert refusal(again, known=terms(again, era=0)) is Reason.COUNTER_FLOOR, "an era that nobody signed"
    assert refusal(known=terms(NEW, era=1)) is Reason.COUNTER_FLOOR, "a release of a past era"


def test_the_products_floor_holds():
    assert isinstance(judge(known=terms(NEW, floor=5)), Accepted)
    assert refusal(known=terms(NEW, floor=6)) is Reason.PRODUCT_FLOOR


def test_the_committed_release_may_be_repaired_under_its_own_floor():
    record = UpdateRecord(committed=HELD, active=NEW.digest)
    assert isinstance(judge(record=record, floor=Floor(0, 5), known=terms(NEW, floor=9)), Accepted)
    assert refusal(record=record, known=Terms(product=PRODUCT, role_version=2)) is Reason.NOT_LISTED


def test_what_this_machine_refused_on_evidence_is_not_tried_again():
    assert refusal(refused={NEW.digest: "golden"}) is Reason.REFUSED_BEFORE


def test_hardware_that_does_not_fit_is_refused():
    edge = Release("1.2.0", 6, b"edge", accelerator="edgetpu")
    assert refusal(edge) is Reason.WRONG_HARDWARE
    tagged = Release("1.2.0", 6, b"tagged", hardware=("jetson-orin",))
    assert refusal(tagged) is Reason.WRONG_HARDWARE
    orin = Machine(DEVICE, PRODUCT, msgspec.structs.replace(INVENTORY, hardware=("jetson-orin",)))
    assert isinstance(judge(tagged, machine=orin), Accepted)


@pytest.mark.parametrize(("needs", "fits"), [("0.1.0", True), ("0.1.1", False), ("0.2.0", False), ("0.0.9", True)])
def test_a_release_for_a_newer_agent_is_put_off_and_not_refused(needs, fits):
    verdict = judge(Release("1.2.0", 6, b"newer", min_agent=needs))
    assert isinstance(verdict, Accepted if fits else Later)


def test_an_offer_that_used_up_its_retries_waits_for_a_new_one():
    tried = Tried(release=NEW.digest, rollout=OFFER.rollout, count=NEW.trial.max_retries)
    assert isinstance(judge(record=UpdateRecord(tried=(tried,))), Accepted)
    record = UpdateRecord(tried=(msgspec.structs.replace(tried, count=tried.count + 1),))
    assert isinstance(judge(record=record), Later)
    assert isinstance(judge(record=record, assignment=NEW.assignment("summer")), Accepted)


def test_without_conditions_the_second_look_needs_neither_time_nor_signals():
    assert look(sure_of_time=False) is None


def test_the_second_look_sees_what_changed_since():
    for reason, facts in (
        (Reason.DELISTED, {"known": Terms(product=PRODUCT, role_version=2)}),
        (Reason.PRODUCT_FLOOR, {"known": terms(NEW, floor=6)}),
        (Reason.COUNTER_FLOOR, {"floor": Floor(0, 5)}),
        (Reason.COUNTER_FLOOR, {"known": terms(NEW, era=1)}),
        (Reason.REFUSED_BEFORE, {"refused": {NEW.digest: "golden"}}),
    ):
        with pytest.raises(Refused) as refused:
            look(**facts)
        assert refused.value.reason is reason


def test_a_signal_that_is_on_or_unknown_holds_activation():
    conditions = Conditions(signals_clear=("driving", "spraying"))
    assert look(conditions).why == "signals: driving, spraying"
    assert look(conditions, signals_off={"driving"}).why == "signals: spraying"
    assert look(conditions, signals_off={"driving", "spraying"}) is None


@pytest.mark.parametrize(
    ("window", "minute", "open_"),
    [
        ((600, 720), 599, False),
        ((600, 720), 600, True),
        ((600, 720), 719, True),
        ((600, 720), 720, False),
        ((1380, 60), 1379, False),
        ((1380, 60), 1380, True),
        ((1380, 60), 1439, True),
        ((1380, 60), 0, True),
        ((1380, 60), 59, True),
        ((1380, 60), 60, False),
        ((300, 300), 0, True),
    ],
)
def test_a_window_opens_and_closes_by_the_minute_also_over_midnight(window, minute, open_):
    now_ms = NOON_MS - 12 * 3_600_000 + minute * 60_000
    later = look(Conditions(window_utc=window), now_ms=now_ms)
    assert (later is None) is open_


def test_times_of_conditions_are_judged_by_sure_time_only():
    early, late = Conditions(not_before_ms=NOON_MS + 1), Conditions(activate_before_ms=NOON_MS)
    assert look(early) is not None
    assert look(Conditions(not_before_ms=NOON_MS)) is None
    with pytest.raises(Refused) as refused:
        look(late)
    assert refused.value.reason is Reason.EXPIRED
    assert look(Conditions(activate_before_ms=NOON_MS + 1)) is None
    for conditions in (early, late, Conditions(not_before_ms=1), Conditions(window_utc=(0, 1439))):
        assert "not sure" in look(conditions, sure_of_time=False).why


FORCED = msgspec.structs.replace(OFFER, forced="f" * 32)


def look_forced(conditions=None, known=None, **facts):
    facts = {"floor": Floor(), "record": RUNS, "refused": {}, "now_ms": NOON_MS, "sure_of_time": True} | facts
    offer = msgspec.structs.replace(FORCED, conditions=conditions or Conditions())
    return look_again(offer, known or terms(NEW), signals_off=(), **facts)


def test_force_skips_the_window_and_the_moment_and_asks_no_sure_time_for_them():
    conditions = Conditions(not_before_ms=NOON_MS + 1, window_utc=(0, 1))
    assert look(conditions) is not None
    assert look_forced(conditions) is None
    assert look_forced(conditions, sure_of_time=False) is None


def test_force_skips_only_signals_that_the_managers_let_a_technician_skip():
    known = msgspec.structs.replace(terms(NEW), interlocks=("driving", "loading"), skippable=("loading", "spraying"))
    conditions = Conditions(signals_clear=("spraying", "lifting"))
    assert look_forced(conditions, known).why == "signals: driving, lifting"
    assert look(conditions, known).why == "signals: driving, loading, spraying, lifting"


def test_force_never_skips_the_time_by_which_it_had_to_be_activated():
    with pytest.raises(Refused) as refused:
        look_forced(Conditions(activate_before_ms=NOON_MS))
    assert refused.value.reason is Reason.EXPIRED
    late = Conditions(activate_before_ms=NOON_MS + 1, not_before_ms=NOON_MS + 1)
    assert look_forced(late) is None
    assert "not sure" in look_forced(late, sure_of_time=False).why


def test_force_skips_no_rule_of_what_may_be_installed():
    for reason, facts in (
        (Reason.DELISTED, {"known": Terms(product=PRODUCT, role_version=2)}),
        (Reason.PRODUCT_FLOOR, {"known": terms(NEW, floor=6)}),
        (Reason.COUNTER_FLOOR, {"floor": Floor(0, 5)}),
        (Reason.REFUSED_BEFORE, {"refused": {NEW.digest: "golden"}}),
    ):
        with pytest.raises(Refused) as refused:
            look_forced(**facts)
        assert refused.value.reason is reason
        if reason is not Reason.DELISTED:
            assert refusal(forced="f" * 32, **facts) is reason
    assert refusal(known=Terms(product=PRODUCT, role_version=1), forced="f" * 32) is Reason.NOT_LISTED
    assert refusal(Release("1.2.0", 6, b"edge", accelerator="edgetpu"), forced="f" * 32) is Reason.WRONG_HARDWARE


def test_force_tries_what_used_up_its_retries():
    tried = Tried(release=NEW.digest, rollout=OFFER.rollout, count=NEW.trial.max_retries + 1)
    verdict = judge(record=UpdateRecord(tried=(tried,)), forced="f" * 32)
    assert isinstance(verdict, Accepted)
    assert verdict.offer.forced == "f" * 32
