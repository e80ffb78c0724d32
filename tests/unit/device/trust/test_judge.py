"""Judging a contact: the order of things, what a verdict says, and what it costs when nothing is new."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device.clock import load
from protocol.errors import LinkError
from tests.fakes.field import DEVICE, PRODUCT, Field, ms, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    return Field(tmp_path, NOW)


def test_the_managers_interlocks_reach_the_machine_and_its_memory(field: Field) -> None:
    field.house.interlocks = ("driving",)
    field.house.release("1.0.0", 1, b"manifest one")
    field.serve()
    assert field.contact().terms.interlocks == ("driving",)
    assert field.contact().terms.interlocks == ("driving",), "from what is stored"


def test_an_honest_first_contact_says_everything(field: Field) -> None:
    field.house.release("1.0.0", 1, b"manifest one", floor=1)
    field.serve()
    verdict = field.contact(assignment=field.assignment(), receipts=(field.receipts(), field.receipts()))
    assert verdict.complaints == ()
    for shelf in (field.image_shelf, field.director_shelf):
        assert len(shelf.asked) == len(set(shelf.asked)), "a file was fetched for the scratch copy and again"
    assert verdict.may_install
    assert verdict.time_ms == ms(NOW)
    assert verdict.terms is not None
    assert (verdict.terms.product, verdict.terms.floor, verdict.terms.era) == (PRODUCT, 1, 0)
    assert [(listed.version, listed.release_counter) for listed in verdict.terms.listed.values()] == [("1.0.0", 1)]
    assert verdict.assignment is not None
    assert verdict.assignment.device == DEVICE
    assert len(verdict.receipts) == 2
    assert verdict.versions["image/pest-detector"] == 2
    assert verdict.versions["director/targets"] == 1


def test_a_contact_with_nothing_new_fetches_nothing_and_writes_nothing(field: Field) -> None:
    field.contact()
    effects: list[str] = []
    field.disk.before = lambda effect, path: effects.append(effect)
    writes = field.notes.writes
    floors = dict(field.floors._values)
    field.passes(minutes=10)
    verdict = field.contact(serve=False)
    assert (field.image_shelf.asked, field.director_shelf.asked) == ([], [])
    assert (effects, field.notes.writes, field.floors._values) == ([], writes, floors)
    assert verdict.may_install
    assert verdict.time_ms == ms(NOW) + 600_000


def test_a_dead_wall_clock_does_not_keep_a_machine_from_learning_the_time(field: Field) -> None:
    for off in (timedelta(days=-20_000), timedelta(days=20_000)):
        field.reboots()
        field.wall_off = off
        verdict = field.contact()
        assert verdict.may_install
        assert reasons(verdict) == [("wall-clock", "time")]
        assert load(field.notes).floor_ms == ms(NOW)


def test_a_wall_clock_that_is_a_day_off_is_told_beside_a_refused_statement_not_instead_of_it(field: Field) -> None:
    field.wall_off = timedelta(days=1)
    assert reasons(field.contact()) == []
    field.wall_off = timedelta(days=1, seconds=1)
    assert reasons(field.contact()) == [("wall-clock", "time")]
    # A statement that was refused says nothing of the wall clock, and is another complaint: neither hides the other.
    assert reasons(field.contact(asked_ago_s=61)) == [("clock", "time")]


def test_a_machine_that_slept_eight_months_goes_on(field: Field) -> None:
    field.contact()
    field.passes(days=240)
    field.reboots()
    for kind in ("image", "director"):
        for _ in range(3):
            field.house.rotate_online(kind, "timestamp", "snapshot")
    house = field.house
    house._accept("director", {"targets.json": house.sign(house.make_director_targets(2))})
    house._accept("image", {"targets.json": house.sign(house.make_image_targets(2))})
    house.release("9.0.0", 9, b"new")
    verdict = field.contact()
    assert (verdict.complaints, verdict.may_install) == ((), True)
    assert verdict.versions["director/root"] == 4


def test_a_statement_for_another_request_leaves_time_unsure_and_installs_waiting(field: Field) -> None:
    verdict = field.contact(time=field.time(nonce="f" * 32))
    assert ("clock", "time") in reasons(verdict)
    assert (verdict.time_ms, verdict.may_install) == (None, False)
    assert verdict.terms is not None


def test_a_statement_older_than_a_minute_is_refused(field: Field) -> None:
    verdict = field.contact(asked_ago_s=61)
    assert reasons(verdict) == [("clock", "time")]
    assert not verdict.may_install


def test_time_learnt_in_this_boot_carries_on_when_a_statement_is_refused(field: Field) -> None:
    field.contact()
    verdict = field.contact(time=field.time(nonce="f" * 32))
    assert verdict.time_ms is None
    assert verdict.may_install


def test_without_sure_time_nothing_is_called_stale(field: Field) -> None:
    field.wall_off = timedelta(days=4000)
    verdict = field.contact(time="nonsense")
    assert reasons(verdict) == [("clock", "metadata")]
    assert not verdict.may_install


def test_a_link_that_drops_at_any_request_leaves_trust_as_it_was_and_the_next_contact_goes_on(field: Field) -> None:
    field.contact()
    before = field.judge()._image.versions()
    field.house.release("1.0.0", 1, b"manifest")
    field.passes(hours=1)
    field.serve()
    for requests in range(3):
        field.image_shelf.cut_after = requests
        with pytest.raises(LinkError):
            field.contact(serve=False)
        assert field.judge()._image.versions()["targets"] == before["targets"]
        assert field.judge()._image.stored() is not None
    field.image_shelf.cut_after = None
    verdict = field.contact(serve=False)
    assert verdict.terms is not None
    assert len(verdict.terms.listed) == 1


def test_a_server_that_lacks_what_its_timestamp_names_is_complained_of(field: Field) -> None:
    field.contact()
    field.house.release("1.0.0", 1, b"manifest")
    field.passes(hours=1)
    field.serve()
    del field.image_shelf.files["2.pest-detector.json"]
    verdict = field.contact(serve=False)
    assert reasons(verdict) == [("image", "metadata")]
    assert verdict.terms is not None
    assert verdict.terms.role_version == 1
    assert not verdict.may_install


def test_a_lost_trust_folder_is_built_up_again_from_the_first_roots(field: Field) -> None:
    field.contact()
    shutil.rmtree(field.folder / "image")
    shutil.rmtree(field.folder / "director")
    assert field.contact().may_install


def test_a_product_that_targets_do_not_delegate_to_is_no_crash(field: Field) -> None:
    field.serve()
    judge = field.judge()
    judge._image._product = "other"
    verdict = judge.judge(field.answer(), "0" * 32, field.boot_ms / 1000)
    assert reasons(verdict)[0][0] == "image"
    assert verdict.terms is None


def test_receipts_that_come_alone_are_held_against_what_is_stored(field: Field) -> None:
    assert field.judge().receipts((field.receipts(),)) == ()
    field.contact()
    good, other, foreign = field.receipts(), field.receipts(device="tractor-2"), "{}"
    assert [body.device for body in field.judge().receipts((good, other, foreign, field.time()))] == [DEVICE]


def test_a_receipt_from_a_stick_counts_after_a_newer_one_from_the_network(field: Field) -> None:
    field.contact()
    stick = field.receipts(epoch="5" * 32)
    field.now += timedelta(days=1)
    network = field.receipts()
    assert [body.epoch for body in field.judge().receipts((network, stick, network))] == ["4" * 32, "5" * 32, "4" * 32]
    assert [body.epoch for body in field.contact(receipts=(stick, network)).receipts] == ["5" * 32, "4" * 32]


def test_a_wall_clock_years_ahead_that_is_not_sure_keeps_no_receipt_out(field: Field) -> None:
    field.contact()
    field.reboots()
    field.wall_off = timedelta(days=3650)
    field.boot_ms += 100_000
    verdict = field.contact(asked_ago_s=70, receipts=(field.receipts(),))  # so long ago that its time is not believed
    assert ("clock", "time") in reasons(verdict)
    assert len(verdict.receipts) == 1
    assert len(field.judge().receipts((field.receipts(),))) == 1


def test_what_this_machine_reported_is_believed_for_this_very_request(field: Field) -> None:
    field.contact()
    verdict = field.contact(reported=field.reported(release_counter=7))
    assert verdict.reported is not None
    assert (verdict.reported.manifest, verdict.reported.release_counter) == ("a" * 64, 7)
    assert verdict.complaints == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"nonce": "9" * 32}, "time"), ({"device": "tractor-2"}, "wrong-device")],
)
def test_what_was_said_for_another_request_or_machine_is_refused(
    field: Field, changes: dict[str, str], reason: str
) -> None:
    verdict = field.contact(reported=field.reported(**changes))
    assert verdict.reported is None
    assert reasons(verdict) == [("reported", reason)]


def test_another_kind_of_object_is_no_report(field: Field) -> None:
    verdict = field.contact(reported=field.assignment(), assignment=field.reported())
    assert (verdict.reported, verdict.assignment) == (None, None)
    assert sorted(reasons(verdict)) == [("assignment", "metadata"), ("reported", "metadata")]


def test_an_assignment_of_another_product_is_refused(field: Field) -> None:
    field.serve()
    verdict = field.contact(assignment=field.assignment(product="weed-detector"))
    assert reasons(verdict) == [("assignment", "wrong-product")]
    assert verdict.assignment is None


def test_an_era_is_told_and_restarts_the_counters_floor(field: Field) -> None:
    field.house.release("1.0.0", 7, b"one", floor=7)
    verdict = field.contact()
    assert verdict.terms is not None
    assert verdict.terms.floor == 7
    field.passes(hours=1)
    field.house.era(1)
    field.house._accept("image", {f"{PRODUCT}.json": field.house.sign(field.house.make_product(3, floor=7))})
    verdict = field.contact()
    assert verdict.terms is not None
    assert verdict.terms.era == 1


@pytest.mark.parametrize("what", ["time", "image_timestamp", "director_timestamp", "assignment", "reported"])
@pytest.mark.parametrize("junk", ["", "{}", "null", "[" * 5000, "\x00", "\ud800", '{"signed": 1, "signatures": []}'])
def test_junk_in_any_place_of_an_answer_is_a_complaint_and_no_crash(field: Field, what: str, junk: str) -> None:
    field.serve()
    verdict = field.contact(**{what: junk})
    assert verdict.complaints
    assert field.contact().may_install
