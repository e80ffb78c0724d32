"""Judging a field kit: what is asked of it, in which order, and that a refused one changes nothing."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Targets

from device.trust.port import ROSTER, KitVerdict
from protocol.errors import Refused
from protocol.kits import KIT_FILE, PermitTerms, Technician
from protocol.objects import AssignmentBody, Payload, TransferPlan
from signing.metadata import terms_field
from signing.repository import read_release_list
from signing.trust.source import Gathered
from signing.trust_store import MetadataFolder
from tests.fakes.field import DEVICE, NONCE, PRODUCT, Field, ms
from tests.fakes.managers import Managers

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
EVA = Technician(name="eva", public_key="1" * 64, expires_ms=ms(NOW + timedelta(days=30)), may_force=True)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, b"manifest one")
    return field


def versions(verdict: KitVerdict) -> list[str]:
    return sorted(listed.version for listed in verdict.terms.listed.values()) if verdict.terms else []


def refusal(verdict: KitVerdict) -> str:
    assert verdict.kit is None
    assert verdict.complaint is not None
    assert verdict.complaint.hint
    return verdict.complaint.reason.value


@pytest.mark.parametrize("was_online", [False, True])
def test_a_kit_brings_all_that_a_contact_would(field: Field, was_online: bool) -> None:
    if was_online:
        field.contact()
    field.passes(days=20)
    field.house.sealing_key = "5" * 64
    field.house.rotate_online("director", "clock")
    field.house.technicians(EVA)
    field.house.interlocks, field.house.skippable = ("driving", "pto"), ("pto",)
    field.house.release("1.1.0", 2, b"manifest two")
    here, elsewhere = (
        PermitTerms(
            kind="permit",
            permit=token * 32,
            device=device,
            release="1.0.0",
            manifest=field_digest(field, "1.0.0"),
            created_ms=ms(field.now),
            expires_ms=ms(field.now + timedelta(days=7)),
            reason="the new one is blind at dusk",
        )
        for token, device in (("7", DEVICE), ("8", "tractor-2"))
    )
    field.house.permit(here)
    field.house.permit(elsewhere)
    field.reboots()
    verdict = field.bring(field.kit(days=90))
    assert verdict.complaint is None
    assert verdict.kit is not None
    assert (verdict.kit.kit, verdict.expires_ms) == ("kit-spring", ms(field.now + timedelta(days=90)))
    assert versions(verdict) == ["1.0.0", "1.1.0"]
    assert verdict.terms is not None
    assert (verdict.terms.interlocks, verdict.terms.skippable) == (("driving", "pto"), ("pto",))
    assert verdict.terms.permits == (here,)
    assert verdict.roster is not None
    assert (verdict.roster.technicians, verdict.roster.sealing_key) == ((EVA,), "5" * 64)
    assert verdict.roster.expires_ms == ms(field.now + timedelta(days=60))
    assert verdict.versions["image/timestamp"] == int(field.now.timestamp())
    assert field.image_shelf.asked == [] or was_online


def field_digest(field: Field, version: str) -> str:
    listed = read_release_list(field.house.image, PRODUCT)
    return next(each.manifest_sha256 for each in listed if each.version == version)


def test_what_a_kit_brought_the_next_contact_finds_and_goes_on_from(field: Field) -> None:
    field.contact()
    field.passes(days=2)
    field.house.release("1.1.0", 2, b"manifest two")
    assert field.bring(field.kit()).kit
    verdict = field.contact()
    assert (verdict.complaints, verdict.may_install) == ((), True)
    assert field.image_shelf.asked == ["3.root.json"] or "3.pest-detector.json" not in field.image_shelf.asked
    field.passes(days=1)
    field.house.release("1.2.0", 3, b"manifest three")
    verdict = field.contact()
    assert (verdict.complaints, verdict.may_install) == ((), True)
    assert verdict.terms is not None
    assert len(verdict.terms.listed) == 3


def _sign_less(field: Field) -> Path:
    return field.kit(by=("alice",))


def _sign_twice(field: Field) -> Path:
    return field.kit(by=("alice", "alice"))


def _rename(field: Field) -> Path:
    return field.kit(kit="kit-autumn")


def _other_product(field: Field) -> Path:
    return field.kit(product="weed-detector")


def _other_machine(field: Field) -> Path:
    return field.kit(machines=("tractor-2",))


def _too_long(field: Field) -> Path:
    return field.kit(days=181)


def _ends_before_it_begins(field: Field) -> Path:
    return field.kit(days=-1)


def _expired(field: Field) -> Path:
    folder = field.kit(days=10)
    field.passes(days=11)
    field.contact()  # the time is sure
    return folder


def _expired_by_the_floor(field: Field) -> Path:
    folder = _expired(field)
    field.reboots()
    field.wall_off = timedelta(days=-500)
    return folder


def _made_in_time_to_come(field: Field) -> Path:
    """Managers' tools sign none; a stolen key, or another tool, may."""
    return field.kit(created=field.now + timedelta(days=1, minutes=1))


def _assignment_as_kit(field: Field) -> Path:
    folder = field.kit()
    body = AssignmentBody(
        device=DEVICE,
        product=PRODUCT,
        rollout="kit-spring",
        release="1.0.0",
        manifest=Payload(sha256="a" * 64, length_bytes=1),
        plan=TransferPlan(steps=(), full_bytes=0),
    )
    expires = field.now + timedelta(days=3)
    signed = Targets(version=1, expires=expires.replace(microsecond=0), unrecognized_fields=terms_field(body))
    (folder / KIT_FILE).write_bytes(field.house.sign(signed))
    return folder


def _endless(field: Field) -> Path:
    folder = field.kit()
    with (folder / KIT_FILE).open("ab") as file:
        file.truncate(5_000_001)
    return folder


def _garbage(field: Field) -> Path:
    folder = field.kit()
    (folder / KIT_FILE).write_bytes(b'{"signed": ')
    return folder


def _unfinished(field: Field) -> Path:
    folder = field.kit()
    (folder / KIT_FILE).unlink()
    return folder


def _halved(field: Field) -> Path:
    folder = field.kit()
    (folder / "image" / f"{int(field.now.timestamp())}.snapshot.json").unlink()
    return folder


def _linked(field: Field) -> Path:
    folder = field.kit()
    (folder / "image").rename(field.folder / "elsewhere")
    (folder / "image").symlink_to(field.folder / "elsewhere")
    return folder


def _mixed(field: Field) -> Path:
    folder = field.kit()
    field.house.release("1.1.0", 2, b"manifest two")
    later = field.kit("kit-later")
    names = [max(path.glob("image/*.pest-detector.json")) for path in (later, folder)]
    assert names[0].name != names[1].name
    names[0].rename(names[1])
    return folder


def _stale(field: Field) -> Path:
    """Its own metadata had expired when it says that it was made."""
    folder = field.kit(created=field.now + timedelta(days=8))
    field.passes(days=9)
    return folder


REFUSALS: list[tuple[Callable[[Field], Path], str]] = [
    (_sign_less, "signature"),
    (_sign_twice, "signature"),
    (_rename, "kit"),
    (_other_product, "wrong-product"),
    (_other_machine, "wrong-device"),
    (_too_long, "kit"),
    (_ends_before_it_begins, "kit"),
    (_expired, "expired"),
    (_expired_by_the_floor, "expired"),
    (_made_in_time_to_come, "kit"),
    (_assignment_as_kit, "metadata"),
    (_endless, "length"),
    (_garbage, "metadata"),
    (_unfinished, "metadata"),
    (_halved, "metadata"),
    (_linked, "metadata"),
    (_mixed, "length"),
    (_stale, "expired"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSALS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("is_newer", [True, False])
def test_a_kit_that_is_refused_changes_nothing(
    field: Field, make: Callable[[Field], Path], reason: str, is_newer: bool
) -> None:
    field.contact()
    if is_newer:
        field.passes(days=1)
        field.house.rotate_online("director", "snapshot", "receipts")
        field.house.release("1.0.1", 7, b"another manifest")
    folder = make(field)
    before = field.trusted()
    if not is_newer and make in (_halved, _mixed):
        # Of a copy that is no newer than what is trusted nothing but roots is looked at.
        assert field.bring(folder).kit
    else:
        assert refusal(field.bring(folder)) == reason
    assert field.trusted() == before


def test_a_machine_whose_time_is_not_sure_takes_a_kit_from_what_it_holds_for_the_time_to_come(field: Field) -> None:
    field.contact()
    field.passes(days=60)
    folder = field.kit(created=field.now)
    field.reboots()
    field.wall_off = timedelta(days=-60)
    assert field.bring(folder).kit


def test_a_kit_made_a_little_ahead_of_sure_time_is_taken(field: Field) -> None:
    field.contact()
    assert field.bring(field.kit(created=field.now + timedelta(hours=23))).kit


def test_a_director_from_before_there_were_kits_works_and_says_so(tmp_path: Path) -> None:
    field = Field(tmp_path, NOW)
    old = Managers(NOW, kits=False)
    field.house = old
    field.first_roots = {"image": old.image.roots[1], "director": old.director.roots[1]}
    verdict = field.contact(assignment=field.assignment())
    assert (verdict.complaints, verdict.may_install) == ((), True)
    assert verdict.assignment
    assert verdict.roster is not None
    assert (verdict.roster.technicians, verdict.roster.sealing_key) == ((), None)
    field.passes(days=1)
    assert refusal(field.bring(field.kit())) == "not-delegated"


def test_an_older_kit_is_as_good_beside_a_newer_one(field: Field) -> None:
    field.contact()
    field.passes(days=1)
    older = field.kit("kit-older")
    field.passes(days=30)
    field.house.release("1.1.0", 2, b"manifest two")
    newer = field.kit("kit-newer")
    field.reboots()
    assert field.bring(newer).kit
    before = field.trusted()
    verdict = field.bring(older)
    assert verdict.kit
    assert versions(verdict) == ["1.0.0", "1.1.0"], "by what is trusted, which is newer"
    assert field.trusted() == before


def test_a_kit_whose_own_metadata_takes_its_signers_away_is_refused_at_last(field: Field) -> None:
    field.contact()
    field.passes(days=1)
    field.house.kit_makers = ("carol",)
    field.house.delegate_online("director", "clock")
    before = field.trusted()
    # The managers' new word is on the very stick that Alice and Bob signed.
    assert refusal(field.bring(field.kit(by=("alice", "bob")))) == "signature"
    assert field.trusted() == before
    assert field.bring(field.kit(by=("carol",))).kit


def test_a_contact_takes_a_kits_signers_away(field: Field) -> None:
    """Also where nothing else changed: what is under way is held against the roster."""
    folder = field.kit()
    was = field.bring(folder)
    assert was.roster is not None
    assert was.roster.takes_kit_of(was.signers)
    assert not was.roster.takes_kit_of(was.signers[:1])
    field.passes(days=1)
    field.house.kit_makers = ("carol",)
    field.house.delegate_online("director", "clock")
    roster = field.contact().roster
    assert roster is not None
    assert refusal(field.bring(folder)) == "signature"
    assert not roster.takes_kit_of(was.signers)
    assert roster.takes_kit_of(field.bring(field.kit("kit-new", by=("carol",))).signers)


@pytest.mark.parametrize("wall_off_days", [-3000, 3000])
def test_a_machine_that_slept_for_a_year_takes_a_kit(field: Field, wall_off_days: int) -> None:
    field.contact()
    for _ in range(14):
        field.passes(days=30)
        field.house.rotate_online("director", "snapshot", "timestamp", "clock", "assignments")
        field.house.rotate_online("image", "snapshot", "timestamp")
    field.house.resign()
    field.house.release("1.1.0", 2, b"manifest two")
    folder = field.kit()
    field.passes(days=100)
    field.reboots()
    field.wall_off = timedelta(days=wall_off_days)
    verdict = field.bring(folder)
    assert verdict.complaint is None
    assert versions(verdict) == ["1.0.0", "1.1.0"]
    verdict_online = field.contact()
    assert (verdict_online.complaints and verdict_online.complaints[0].what) == "wall-clock"
    assert verdict_online.may_install


@pytest.mark.parametrize("keys_rotate", [False, True])
def test_a_contact_that_was_cut_half_way_keeps_no_kit_of_before_out(field: Field, keys_rotate: bool) -> None:
    """The machine knows of a newer timestamp, and had a cut before it had what goes with it."""
    field.contact()
    field.passes(days=2)
    field.house.release("1.1.0", 2, b"manifest two")
    field.house.technicians(EVA)
    folder = field.kit()
    field.passes(hours=1)
    field.house.release("1.2.0", 3, b"manifest three")
    field.house.technicians()
    if keys_rotate:
        field.house.rotate_online("director", "snapshot", "timestamp", "clock")
        field.house.rotate_online("image", "snapshot", "timestamp")
        field.house.era(0)
    for until in range(1000):
        twin = twin_of(field, f"twin-{until}")
        twin.disk.before = cut_at(until)
        try:
            twin.contact()
        except CutError:
            pass
        else:
            assert until > 10
            break
        twin.disk.before = lambda effect, path: None
        before = twin.judge()._stored_image()
        assert before is not None
        floors = dict(twin.floors._values)
        for _ in range(2):
            verdict = twin.bring(folder)
            assert verdict.complaint is None
            if len(before.listed) < 3 and not keys_rotate:
                assert versions(verdict) == ["1.0.0", "1.1.0"], f"cut at effect {until}"
        assert all(twin.floors.read(name) >= value for name, value in floors.items())
        online = twin.contact()
        assert (online.complaints, online.may_install) == ((), True)
        assert online.roster is not None
        assert online.roster.technicians == ()


def test_what_a_cut_contact_left_is_gathered_only_as_long_as_it_is_good(field: Field) -> None:
    field.contact()
    field.passes(days=2)
    stick = MetadataFolder(field.kit(), "director")
    field.passes(hours=1)
    field.house.rotate_online("director", "snapshot", "timestamp", "clock")
    gathered = 0
    for until in range(20):
        twin = twin_of(field, f"twin-{until}")
        twin.disk.before = cut_at(until)
        with pytest.raises(CutError):
            twin.contact()
        director = twin.judge()._director
        source = director.beside(stick)
        if isinstance(source, Gathered):
            gathered += 1
            assert director.peek(source, field.now)
            with pytest.raises(Refused, match="had expired"):
                director.peek(source, field.now + timedelta(days=500))
    assert gathered > 3


class CutError(Exception):
    pass


def cut_at(effect_number: int) -> Callable[[str, Path], None]:
    left = effect_number

    def before(effect: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CutError

    return before


def test_a_stick_newer_than_the_servers_word_and_then_online_again(field: Field) -> None:
    field.contact()
    field.serve()
    field.passes(days=1)
    field.house.release("1.1.0", 2, b"manifest two")
    assert field.bring(field.kit()).kit
    verdict = field.contact(serve=False)  # a replica that lags behind
    assert {complaint.reason.value for complaint in verdict.complaints} == {"rollback"}
    assert not verdict.may_install
    field.passes(minutes=1)
    verdict = field.contact()
    assert (verdict.complaints, verdict.may_install) == ((), True)


def test_a_fast_forwarded_machine_is_brought_back_by_a_stick_as_by_a_contact(field: Field) -> None:
    """ATTACKS.md T4: thieves of the online keys pushed the versions to the end of the world."""
    field.serve()
    field.image_shelf.files = field.house.render("image", field.now, 1 << 52)
    field.director_shelf.files = field.house.render("director", field.now, 1 << 52)
    field.contact(serve=False)
    field.passes(days=1)
    for kind in ("image", "director"):
        field.house.rotate_online(kind, "snapshot", "timestamp")  # type: ignore[arg-type]
    field.house.release("1.1.0", 2, b"manifest two")
    assert versions(field.bring(field.kit())) == ["1.0.0", "1.1.0"]
    assert field.contact().may_install


def test_a_cut_at_any_write_of_a_kit_that_holds_leaves_what_the_same_kit_mends(field: Field) -> None:
    field.contact()
    field.passes(days=1)
    field.house.rotate_online("director", "snapshot", "timestamp", "clock")
    field.house.rotate_online("image", "snapshot", "timestamp")
    field.house.technicians(EVA)
    field.house.release("1.1.0", 2, b"manifest two")
    folder = field.kit()

    for until in range(1000):
        twin = twin_of(field, f"twin-{until}")
        twin.disk.before = cut_at(until)
        try:
            twin.bring(folder)
        except CutError:
            pass
        else:
            assert until > 10
            break
        twin.disk.before = lambda effect, path: None
        floors = dict(twin.floors._values)
        stored = twin.judge()._stored_image()
        assert stored is not None
        assert len(stored.listed) in (1, 2), "the old list or the new one"
        verdict = twin.bring(folder)
        assert verdict.complaint is None
        assert verdict.roster is not None
        assert (versions(verdict), verdict.roster.technicians) == (["1.0.0", "1.1.0"], (EVA,))
        assert all(twin.floors.read(name) >= value for name, value in floors.items())
        assert twin.contact().may_install


def twin_of(field: Field, name: str) -> Field:
    """A machine that trusts what this one does, of the same managers."""
    twin = Field(field.folder / name, field.now)
    twin.house, twin.first_roots, twin.boot_ms, twin.built_ms = (
        field.house,
        field.first_roots,
        field.boot_ms,
        field.built_ms,
    )
    for part in ("image", "director"):
        shutil.copytree(field.folder / part, twin.folder / part)
    twin.floors._values = dict(field.floors._values)
    twin.notes.values = dict(field.notes.values)
    return twin


def test_the_roster_is_kept_under_a_number_that_rises_only_when_it_says_something_new(field: Field) -> None:
    first = field.contact().roster
    assert first is not None
    field.house.technicians(EVA)
    field.passes(days=1)
    second = field.bring(field.kit()).roster
    assert second is not None
    assert (second.version, second.technicians) == (first.version + 1, (EVA,))
    field.passes(days=1)
    assert field.contact().roster == second
    assert field.judge().judge(field.answer(), NONCE, field.boot_ms / 1000).roster == second
    assert ROSTER in field.notes.values


def test_an_expired_list_of_technicians_stops_nothing_and_says_when_it_ended(field: Field) -> None:
    field.house.technicians(EVA, days=5)
    field.contact()
    for _ in range(2):
        field.passes(days=6)
        verdict = field.contact(assignment=field.assignment())
        assert (verdict.complaints, verdict.may_install) == ((), True)
        assert verdict.assignment
        assert verdict.roster is not None
        assert (verdict.roster.technicians, verdict.roster.expires_ms) == ((EVA,), ms(NOW + timedelta(days=5)))
    verdict = field.contact(serve=False)
    assert field.director_shelf.asked == [], "what is stored is the newest that there is"


@pytest.mark.parametrize("harm", ["missing", "failing", "junk", "older", "unsigned", "too long-lived"])
@pytest.mark.parametrize("had_one", [True, False])
def test_a_list_of_technicians_that_does_not_hold_stops_nothing_and_nobody_may_force(
    field: Field, harm: str, had_one: bool
) -> None:
    if had_one:
        field.house.technicians(EVA)
        field.contact()
        field.passes(days=1)
    old = field.house.director.delegated["technicians"]
    version = 4
    files = {
        "missing": None,
        "failing": None,
        "junk": b"{}",
        "older": old,
        "unsigned": field.house.sign(field.house.make_technicians(version, (EVA,)), by=("alice",)),
        "too long-lived": field.house.sign(field.house.make_technicians(version, (EVA,), days=91)),
    }
    field.serve()
    targets = field.house.director.targets
    data = files[harm]
    field.hostile("director", {"targets": (1, targets), "technicians": (version, data or b"absent")})
    name = f"{version}.technicians.json"
    if data is None:
        field.director_shelf.statuses[name] = 404 if harm == "missing" else 503
    for _ in range(2):
        verdict = field.contact(serve=False, assignment=field.assignment(), receipts=(field.receipts(),))
        assert (verdict.complaints, verdict.may_install) == ((), True)
        assert verdict.assignment
        assert verdict.receipts
        assert verdict.roster is not None
        assert verdict.roster.technicians == ()
    if data is None:
        field.director_shelf.statuses.clear()
        good = field.house.sign(field.house.make_technicians(version, (EVA,)))
        field.passes(minutes=1)
        field.hostile("director", {"targets": (1, targets), "technicians": (version, good)})
        verdict = field.contact(serve=False)
        assert verdict.roster is not None
        assert verdict.roster.technicians == (EVA,)


def test_an_older_list_does_not_bring_a_technician_back_even_where_the_folder_was_lost(field: Field) -> None:
    field.house.technicians(EVA)
    old = field.house.director.delegated["technicians"]
    folder = field.kit("kit-before")
    field.passes(days=1)
    field.house.technicians()
    field.contact()
    shutil.rmtree(field.folder / "director")
    verdict = field.bring(folder)
    assert verdict.kit, "what it brings besides is as new as what was seen"
    assert verdict.roster is not None
    assert verdict.roster.technicians == ()
    field.serve()
    field.hostile("director", {"targets": (1, field.house.director.targets), "technicians": (2, old)})
    verdict_online = field.contact(serve=False)
    assert verdict_online.roster is not None
    assert verdict_online.roster.technicians == ()
