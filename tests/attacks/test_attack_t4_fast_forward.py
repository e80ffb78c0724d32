"""T4: a version number pushed to the end of the world is recovered from by a key rotation, and by nothing else."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from device.state_db import StateDb
from device.update.memory import Memory
from signing.repository import RepositorySet
from tests.fakes.field import PRODUCT, Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
END = (1 << 31) - 1


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, b"genuine")
    field.contact()
    field.passes(hours=1)
    return field


@pytest.mark.parametrize("kind", ["image", "director"])
def test_attack_t4_a_fast_forwarded_timestamp_recovers_after_rotation_only(field: Field, kind: str) -> None:
    roles = {"targets": (1, getattr(field.house, kind).targets)}
    if kind == "image":
        roles[PRODUCT] = (2, field.house.image.delegated[PRODUCT])
    else:
        roles["technicians"] = (1, field.house.director.delegated["technicians"])
    field.serve()
    field.hostile(kind, roles, version=END)
    assert field.contact(serve=False).versions[f"{kind}/timestamp"] == END
    field.passes(hours=1)
    assert reasons(field.contact()) == [(kind, "rollback")]
    field.house.rotate_online(kind, "timestamp")  # type: ignore[arg-type]  # one of two words
    # The snapshot's key was not rotated, so its own number still holds.
    assert reasons(field.contact()) == [(kind, "rollback")]
    field.passes(hours=1)
    field.house.rotate_online(kind, "snapshot")  # type: ignore[arg-type]  # one of two words
    verdict = field.contact()
    assert (reasons(verdict), verdict.may_install) == ([], True)
    assert verdict.versions[f"{kind}/timestamp"] == int(field.now.timestamp())
    # What was signed with the old keys counts no more, whatever its number.
    field.passes(hours=1)
    assert field.contact().may_install


def test_attack_t4_a_fast_forwarded_product_role_recovers_when_its_keys_are_rotated(field: Field) -> None:
    stolen = field.house.sign(field.house.make_product(END), ["alice", "bob"])
    field.serve()
    field.hostile("image", {"targets": (1, field.house.image.targets), PRODUCT: (END, stolen)})
    driven = field.contact(serve=False)
    assert driven.versions["image/pest-detector"] == END
    field.passes(hours=1)
    assert [what for what, _ in reasons(field.contact())] == ["image"]

    house = field.house
    old = dict(house.keys)
    house.keys = {name: CryptoSigner.generate_ed25519() for name in old}
    house.keys |= {f"old {name}": signer for name, signer in old.items()}
    # A snapshot that named the end of the world must go as well: its key signed it.
    for role in ("snapshot", "timestamp"):
        house.online["image"][role] = CryptoSigner.generate_ed25519()
    root = house.make_root("image", 2)
    house._accept(
        "image",
        {
            "2.root.json": house.sign(root, ["alice", "bob", "old alice", "old bob"]),
            "targets.json": house.sign(house.make_image_targets(2)),
            f"{PRODUCT}.json": house.sign(house.make_product(3)),
        },
    )
    verdict = field.contact()
    assert (reasons(verdict), verdict.may_install) == ([], True)
    assert verdict.versions["image/pest-detector"] == 3
    # The update machine takes the lower number as well, and the higher one never again.
    db = StateDb(field.folder / "state.db")
    memory = Memory(db)
    for terms in (driven.terms, verdict.terms, driven.terms):
        assert terms is not None
        memory.learn(terms)
    assert memory.terms() == verdict.terms
    db.close()


def test_attack_t4_a_fast_forwarded_assignment_and_clock_recover_with_their_own_keys(field: Field) -> None:
    field.serve()
    field.contact(assignment=field.assignment(version=END * 4))
    verdict = field.contact(assignment=field.assignment())
    assert reasons(verdict) == [("assignment", "rollback")]
    field.house.rotate_online("director", "assignments")
    field.passes(hours=1)
    field.serve()
    assert field.contact(assignment=field.assignment()).assignment is not None


def test_attack_t4_floors_do_not_fall_by_a_new_root_that_rotates_nothing(field: Field) -> None:
    field.serve()
    old = dict(field.image_shelf.files)
    field.contact(serve=False)
    field.passes(hours=1)
    field.contact()
    field.house._accept("image", {"2.root.json": field.house.sign(field.house.make_root("image", 2))})
    root = field.house.image.roots[2]
    field.image_shelf.files = old | {"2.root.json": root}
    verdict = field.contact(serve=False)
    assert reasons(verdict) == [("image", "rollback")]


def test_attack_t4_floors_do_not_fall_by_a_root_that_adds_a_manager(field: Field) -> None:
    house = field.house
    old_role = house.image.delegated[PRODUCT]
    house.delist("1.0.0")
    assert field.contact().terms is not None
    house.keys["dave"] = house.keys.pop("carol")
    house.keys["carol"] = CryptoSigner.generate_ed25519()
    house._accept("image", {"targets.json": house.sign(house.make_image_targets(2))})
    field.passes(hours=1)
    new = house.image
    house.image = RepositorySet(roots=new.roots, targets=new.targets, delegated={PRODUCT: old_role})
    verdict = field.contact()
    assert reasons(verdict)[0][0] == "image"
    assert verdict.terms is not None
    assert verdict.terms.listed == {}
