"""O24, U2: the director is an enemy: it assigns what managers delisted, never listed, or listed long ago."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from tests.fakes.field import PRODUCT, Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
MANIFEST = b"a manifest"
DIGEST = sha256(MANIFEST).hexdigest()


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, MANIFEST)
    field.serve()
    return field


def assigned(field: Field, digest: str = DIGEST) -> str:
    return field.assignment(digest)


def test_attack_o24_a_delisted_release_is_unknown_once_the_newer_role_was_seen(field: Field) -> None:
    verdict = field.contact()
    assert verdict.terms is not None
    assert DIGEST in verdict.terms.listed
    old_role = field.house.image.delegated[PRODUCT]
    field.house.delist("1.0.0")
    field.passes(hours=1)
    field.contact()
    field.passes(hours=1)
    field.serve()
    # The director withholds the newer role and assigns the release: what was seen stays seen.
    field.hostile("image", {"targets": (1, field.house.image.targets), PRODUCT: (2, old_role)})
    verdict = field.contact(serve=False, assignment=assigned(field))
    assert reasons(verdict) == [("image", "rollback")]
    assert not verdict.may_install
    assert verdict.terms is not None
    assert DIGEST not in verdict.terms.listed


def test_attack_o24_withholding_the_newer_role_only_delays_and_ends_with_its_expiry(field: Field) -> None:
    field.contact()
    image = field.house.image
    field.house.delist("1.0.0")
    for days, still in ((60, True), (60, True), (61, False)):
        field.passes(days=days)
        field.reboots()
        field.serve()
        field.hostile("image", {"targets": (1, image.targets), PRODUCT: (2, image.delegated[PRODUCT])})
        verdict = field.contact(serve=False)
        assert verdict.may_install is still
    assert reasons(verdict) == [("image", "expired")]


def test_attack_u2_a_director_without_its_offline_keys_cannot_delegate_to_keys_of_its_own(field: Field) -> None:
    field.contact()
    field.passes(hours=1)
    field.house.online["director"]["assignments"] = field.house.online["director"]["receipts"]
    forged = field.house.sign(field.house.make_director_targets(2), ["alice"])
    field.serve()
    field.hostile(
        "director", {"targets": (2, forged), "technicians": (1, field.house.director.delegated["technicians"])}
    )
    verdict = field.contact(serve=False, assignment=assigned(field))
    assert ("director", "signature") in reasons(verdict)
    assert verdict.assignment is None
