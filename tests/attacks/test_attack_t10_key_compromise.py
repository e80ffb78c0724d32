"""T10: each key in an enemy's hand in turn, and the row of ATTACKS.md's table that says what it opens and what not.

The rows of the kit's and the technicians' keys come with the field kits. The device's key signs no metadata; its row is
held where batches are verified.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata

from device.clock import load
from protocol.objects import AssignmentBody, ClockBody, ObjectBody, Payload, ReceiptsBody, TransferPlan
from signing.objects import sign_object
from tests.fakes.field import DEVICE, NONCE, PRODUCT, Field, ms, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
GOOD = b"genuine"


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, GOOD)
    field.contact()
    field.passes(hours=1)
    return field


def signed(field: Field, signer: Signer, body: ObjectBody) -> str:
    return sign_object(body, signer, int(field.now.timestamp()), field.now + timedelta(days=1))


def assignment(manifest: str = "e" * 64) -> AssignmentBody:
    return AssignmentBody(
        device=DEVICE,
        product=PRODUCT,
        rollout="evil",
        release="6.6.6",
        manifest=Payload(sha256=manifest, length_bytes=1),
        plan=TransferPlan(steps=(), full_bytes=0),
    )


def role_listing_evil(field: Field) -> Any:
    role = field.house.current_product()
    role.version += 1
    next(iter(role.targets.values())).hashes["sha256"] = "e" * 64
    return role


def sign_with(field: Field, record: Any, signers: Sequence[Signer]) -> bytes:
    metadata: Metadata[Any] = Metadata(record)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def listed(verdict: Any) -> set[str]:
    assert verdict.terms is not None
    return set(verdict.terms.listed)


def test_attack_t10_server_with_timestamp_and_snapshot_keys_installs_nothing_new(field: Field) -> None:
    before = field.contact()
    field.passes(hours=1)
    field.serve()
    keys = list(field.house.online["image"].values())
    forged = sign_with(field, role_listing_evil(field), keys)
    field.hostile("image", {"targets": (1, field.house.image.targets), PRODUCT: (3, forged)})
    verdict = field.contact(serve=False)
    assert listed(verdict) == listed(before)
    assert not verdict.may_install
    field.passes(hours=1)
    # Nor can it sign objects, for those keys are the director's roles' alone.
    for signer in (*keys, field.house.online["director"]["timestamp"], field.house.online["director"]["snapshot"]):
        verdict = field.contact(assignment=signed(field, signer, assignment()))
        assert reasons(verdict)[-1] == ("assignment", "signature")
        assert verdict.assignment is None


def test_attack_t10_server_with_timestamp_and_snapshot_keys_freezes_only_whom_the_delisting_has_not_reached(
    field: Field, tmp_path: Path
) -> None:
    old = field.house.image.delegated[PRODUCT]
    field.house.delist("1.0.0")
    seen = field
    seen.contact()
    frozen = Field(tmp_path / "frozen", NOW)
    frozen.house, frozen.first_roots = field.house, field.first_roots
    frozen.passes(hours=1)
    for machine, is_frozen in ((seen, False), (frozen, True)):
        for days in (7, 90, 170, 190):
            machine.now = NOW + timedelta(days=days)
            machine.boot_ms = 10_000 + days * 86_400_000
            machine.house.now = machine.now
            machine.serve()
            machine.hostile("image", {"targets": (1, machine.house.image.targets), PRODUCT: (2, old)})
            verdict = machine.contact(serve=False)
            assert verdict.may_install is (is_frozen and days < 180)
            assert bool(listed(verdict)) is is_frozen


def test_attack_t10_the_assignments_key_names_only_what_managers_listed(field: Field) -> None:
    field.serve()
    signer = field.house.online["director"]["assignments"]
    verdict = field.contact(serve=False, assignment=signed(field, signer, assignment()))
    assert verdict.assignment is not None
    assert verdict.assignment.manifest.sha256 not in listed(verdict)
    for other in (
        ClockBody(device=DEVICE, nonce=NONCE, time_ms=ms(field.now + timedelta(days=900))),
        ReceiptsBody(device=DEVICE, epoch="4" * 32, generation="3" * 32),
    ):
        changes: dict[str, Any] = {"time": signed(field, signer, other)}
        if isinstance(other, ReceiptsBody):
            changes = {"receipts": (signed(field, signer, other),)}
        verdict = field.contact(serve=False, **changes)
        assert [reason for _, reason in reasons(verdict)] == ["signature"]


def test_attack_t10_one_managers_key_lists_nothing(field: Field) -> None:
    field.serve()
    for name in ("alice", "bob", "carol"):
        forged = sign_with(field, role_listing_evil(field), [field.house.keys[name]])
        field.hostile("image", {"targets": (1, field.house.image.targets), PRODUCT: (3, forged)})
        verdict = field.contact(serve=False)
        assert ("image", "signature") in reasons(verdict)
        assert "e" * 64 not in listed(verdict)
        root = sign_with(field, field.house.make_root("image", 2, [name]), [field.house.keys[name]])
        field.image_shelf.files["2.root.json"] = root
        assert ("image", "signature") in reasons(field.contact(serve=False, image_timestamp="{}"))
        del field.image_shelf.files["2.root.json"]
        field.passes(minutes=1)
        field.serve()


def test_attack_t10_the_clock_key_holds_time_back_to_the_floor_only(field: Field) -> None:
    field.contact()
    floor = load(field.notes).floor_ms
    field.passes(days=1)
    field.reboots()
    field.contact(time=field.time(time_ms=ms(NOW - timedelta(days=4000))))
    assert load(field.notes).floor_ms >= floor
    assert field.judge().reading().ms >= floor


def test_attack_t10_the_clock_key_pushes_time_ahead_and_installs_stop_until_it_is_rotated(field: Field) -> None:
    field.serve()
    later = field.now + timedelta(days=20_000)
    pushed = field.house.object(ClockBody(device=DEVICE, nonce=NONCE, time_ms=ms(later)), later)
    verdict = field.contact(serve=False, time=pushed)
    assert ("image", "expired") in reasons(verdict)
    assert not verdict.may_install
    assert verdict.terms is not None
    assert not field.contact().may_install
    field.house.rotate_online("director", "clock")
    field.passes(hours=1)
    verdict = field.contact()
    assert verdict.may_install
    assert abs(field.judge().reading().ms - ms(field.now)) < 1000


def test_attack_t10_the_clock_key_installs_nothing(field: Field) -> None:
    field.serve()
    text = signed(field, field.house.online["director"]["clock"], assignment())
    verdict = field.contact(serve=False, assignment=text)
    assert reasons(verdict) == [("assignment", "signature")]


def test_attack_t10_the_receipts_key_installs_nothing_and_tells_no_time(field: Field) -> None:
    field.serve()
    signer = field.house.online["director"]["receipts"]
    assert reasons(field.contact(serve=False, assignment=signed(field, signer, assignment()))) == [
        ("assignment", "signature")
    ]
    forged = signed(field, signer, ClockBody(device=DEVICE, nonce=NONCE, time_ms=1))
    assert reasons(field.contact(serve=False, time=forged)) == [("clock", "signature")]


def test_attack_t10_an_object_of_one_kind_does_not_pass_as_another_even_with_the_right_roles_key(field: Field) -> None:
    field.serve()
    signer = field.house.online["director"]["assignments"]
    body = ReceiptsBody(device=DEVICE, epoch="4" * 32, generation="3" * 32)
    assert reasons(field.contact(serve=False, assignment=signed(field, signer, body))) == [("assignment", "metadata")]


def test_attack_t10_a_stolen_machine_key_signs_no_metadata(field: Field) -> None:
    field.serve()
    stolen = CryptoSigner.generate_ecdsa()
    assert reasons(field.contact(serve=False, assignment=signed(field, stolen, assignment()))) == [
        ("assignment", "signature")
    ]


def test_attack_t10_two_release_keys_and_the_director_do_everything_and_do_not_survive_root_rotation(
    field: Field,
) -> None:
    field.serve()
    thieves = [field.house.keys["alice"], field.house.keys["bob"]]
    evil = role_listing_evil(field)
    evil.version = 1 << 40
    field.hostile(
        "image", {"targets": (1, field.house.image.targets), PRODUCT: (1 << 40, sign_with(field, evil, thieves))}
    )
    verdict = field.contact(serve=False)
    assert "e" * 64 in listed(verdict)

    house = field.house
    old = dict(house.keys)
    house.keys = {name: CryptoSigner.generate_ed25519() for name in old}
    house.keys |= {f"old {name}": signer for name, signer in old.items()}
    for role in ("snapshot", "timestamp"):
        house.online["image"][role] = CryptoSigner.generate_ed25519()
    new_and_old = ["alice", "bob", "old alice", "old bob"]
    house._accept(
        "image",
        {
            "2.root.json": house.sign(house.make_root("image", 2), new_and_old),
            "targets.json": house.sign(house.make_image_targets(2, {PRODUCT: 1})),
            f"{PRODUCT}.json": house.sign(house.make_product(3)),
        },
    )
    house.release("2.0.0", 1, b"clean", era=1)
    field.passes(hours=1)
    verdict = field.contact()
    assert verdict.may_install
    assert verdict.terms is not None
    assert (verdict.terms.era, [found.version for found in verdict.terms.listed.values()]) == (1, ["2.0.0"])
    # The thieves go on signing: to no avail.
    field.passes(hours=1)
    evil.version = 1 << 41
    field.hostile("image", {"targets": (2, house.image.targets), PRODUCT: (1 << 41, sign_with(field, evil, thieves))})
    assert ("image", "signature") in reasons(field.contact(serve=False))
