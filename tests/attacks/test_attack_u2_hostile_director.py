"""U2: whoever holds the director's online keys assigns old, mixed, unlisted and delisted releases, and the machine's
own install rule, fed by what it trusts of the image repository, refuses each."""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device.trust.port import Verdict
from device.update.rules import Accepted, Floor, judge_offer
from device.update.states import UpdateRecord
from protocol.artifact import Artifact
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.objects import Payload
from protocol.release import Config, ReleaseManifest
from protocol.wire import encode
from tests.fakes.field import PRODUCT, Field
from tests.fakes.updates import MACHINE

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def manifest(version: str, counter: int, era: int = 0) -> bytes:
    artifact = Artifact(sha256="c" * 64, length_bytes=1, media_type="text/plain")
    return encode(
        ReleaseManifest(
            format=1,
            product=PRODUCT,
            version=version,
            release_counter=counter,
            created_ms=0,
            models=(),
            configs=(Config(name="x", artifact=artifact),),
            era=era,
        )
    )


OLD, NEW = manifest("1.0.0", 1), manifest("2.0.0", 2)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, OLD)
    field.house.release("2.0.0", 2, NEW)
    field.serve()
    return field


def assigned(field: Field, data: bytes, version: str) -> Verdict:
    """The director assigns these bytes; all else is honest."""
    payload = Payload(sha256=digest(data), length_bytes=len(data))
    return field.contact(assignment=field.assignment(payload.sha256, length=payload.length_bytes, release=version))


def install(verdict: Verdict, data: bytes, *, floor: int = 0, delisted: Collection[str] = ()) -> Accepted:
    assert verdict.assignment is not None
    assert verdict.terms is not None
    accepted = judge_offer(
        verdict.assignment,
        data,
        verdict.terms,
        MACHINE,
        floor=Floor(counter=floor),
        record=UpdateRecord(),
        refused={},
        delisted=delisted,
    )
    assert isinstance(accepted, Accepted)
    return accepted


def refusal(verdict: Verdict, data: bytes, **known: object) -> Reason:
    with pytest.raises(Refused) as caught:
        install(verdict, data, **known)  # type: ignore[arg-type]  # as `install` takes them
    return caught.value.reason


def test_attack_u2_what_managers_listed_is_installed(field: Field) -> None:
    assert install(assigned(field, NEW, "2.0.0"), NEW).offer.release.release_counter == 2


def test_attack_u2_an_unlisted_release_is_refused(field: Field) -> None:
    evil = manifest("6.6.6", 66)
    assert refusal(assigned(field, evil, "6.6.6"), evil) is Reason.NOT_LISTED


def test_attack_u2_an_older_listed_release_is_refused_above_its_counter(field: Field) -> None:
    assert refusal(assigned(field, OLD, "1.0.0"), OLD, floor=2) is Reason.COUNTER_FLOOR


def test_attack_u2_a_release_below_the_products_floor_is_refused(field: Field) -> None:
    field.house.release("3.0.0", 3, manifest("3.0.0", 3), floor=3)
    assert refusal(assigned(field, NEW, "2.0.0"), NEW) is Reason.PRODUCT_FLOOR


def test_attack_u2_the_products_floor_holds_although_a_newer_role_takes_it_back(field: Field) -> None:
    field.house.release("3.0.0", 3, manifest("3.0.0", 3), floor=3)
    field.contact()
    field.passes(hours=1)
    field.serve()
    targets = field.house.current_product().targets
    lower = field.house.sign(field.house.make_product(9, dict(targets), floor=0))
    field.hostile("image", {"targets": (1, field.house.image.targets), PRODUCT: (9, lower)})
    text = field.assignment(digest(NEW), length=len(NEW), release="2.0.0")
    verdict = field.contact(serve=False, assignment=text)
    assert refusal(verdict, NEW) is Reason.PRODUCT_FLOOR


def test_attack_u2_one_release_under_anothers_version_is_refused(field: Field) -> None:
    assert refusal(assigned(field, NEW, "1.0.0"), NEW) is Reason.MANIFEST


def test_attack_o24_a_delisted_release_is_refused_once_the_newer_role_was_seen(field: Field) -> None:
    field.house.delist("2.0.0")
    assert refusal(assigned(field, NEW, "2.0.0"), NEW, delisted={digest(NEW)}) is Reason.DELISTED


def test_attack_o24_withholding_the_newer_role_from_one_who_saw_it_does_not_bring_the_release_back(
    field: Field,
) -> None:
    old = field.house.image.delegated[PRODUCT]
    field.house.delist("2.0.0")
    field.contact()
    field.passes(hours=1)
    field.serve()
    field.hostile("image", {"targets": (1, field.house.image.targets), PRODUCT: (3, old)})
    text = field.assignment(digest(NEW), length=len(NEW), release="2.0.0")
    verdict = field.contact(serve=False, assignment=text)
    assert not verdict.may_install
    assert refusal(verdict, NEW) is Reason.NOT_LISTED


def test_attack_u2_a_past_eras_release_is_refused(field: Field) -> None:
    field.house.era(1)
    assert refusal(assigned(field, NEW, "2.0.0"), NEW) is Reason.COUNTER_FLOOR


def test_attack_u2_an_era_taken_back_is_refused(field: Field) -> None:
    field.house.era(1)
    field.contact()
    field.passes(hours=1)
    field.serve()
    back = field.house.sign(field.house.make_image_targets(9))
    role = field.house.image.delegated[PRODUCT]
    field.hostile("image", {"targets": (9, back), PRODUCT: (3, role)})
    verdict = field.contact(serve=False)
    assert [(complaint.what, complaint.reason) for complaint in verdict.complaints] == [("image", Reason.ROLLBACK)]
    assert not verdict.may_install
