"""The cheapest way to each artifact, and the word when there is none."""

import msgspec
import pytest

from device.kits import planning
from device.trust.port import Listed, Terms
from protocol.artifact import Artifact
from protocol.delta.patch import CODEC
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.kits import KitBody, KitRelease, PermitTerms
from protocol.objects import Payload, Step

NEW, OLD = digest(b"new"), digest(b"old")
ARTIFACT = Artifact(sha256=NEW, length_bytes=1000, media_type="application/onnx")


def payload(name: str, length: int) -> Payload:
    return Payload(sha256=digest(name.encode()), length_bytes=length)


FULL = Step(artifact=NEW, length_bytes=1000, method="full", payload=payload("full", 900), index=payload("index", 50))
PATCH = Step(
    artifact=NEW,
    length_bytes=1000,
    method="delta",
    payload=payload("patch", 100),
    base=OLD,
    codec=CODEC,
    full_bytes=950,
)
RELEASE = KitRelease(release="1.0.0", manifest=payload("manifest", 10), steps=(FULL, PATCH))


def plan(release=RELEASE, have=(), lacking=(), has_failed=lambda _: False):
    made = planning.plan(release, [ARTIFACT], have=frozenset(have), lacking=frozenset(lacking), has_failed=has_failed)
    assert len(made.steps) == 1
    return made


def test_the_cheapest_that_the_machine_can_use_is_taken():
    assert plan().steps == (FULL,)
    assert plan(have={OLD}).steps == (PATCH,)
    assert plan(have={OLD}).full_bytes == 950
    dear = msgspec.structs.replace(PATCH, payload=payload("dear", 2000))
    assert plan(msgspec.structs.replace(RELEASE, steps=(FULL, dear)), have={OLD}).steps == (FULL,)
    assert plan(have={NEW, OLD}).steps[0].method == "have"


def test_a_patch_that_failed_here_or_of_another_codec_is_not():
    assert plan(have={OLD}, has_failed=lambda step: step == PATCH).steps == (FULL,)
    other = msgspec.structs.replace(PATCH, codec=CODEC + 1)
    assert plan(msgspec.structs.replace(RELEASE, steps=(FULL, other)), have={OLD}).steps == (FULL,)


def test_blobs_that_no_stick_gives_are_gone_round():
    assert plan(have={OLD}, lacking={PATCH.payload.sha256}).steps == (FULL,)
    assert plan(have={OLD}, lacking={FULL.index.sha256}).steps == (PATCH,)
    with pytest.raises(LinkError) as error:
        plan(lacking={FULL.index.sha256})
    assert "another copy of the kit" in error.value.hint


def test_a_kit_without_a_way_is_for_other_hardware():
    with pytest.raises(Refused) as refused:
        plan(msgspec.structs.replace(RELEASE, steps=(PATCH,)))
    assert refused.value.reason is Reason.WRONG_HARDWARE
    assert "not made for this hardware" in refused.value.message


def test_a_kit_of_patches_that_all_failed_says_so():
    with pytest.raises(LinkError) as error:
        plan(msgspec.structs.replace(RELEASE, steps=(PATCH,)), have={OLD}, has_failed=lambda _: True)
    assert "gave no result here" in error.value.message


def test_releases_stand_by_era_and_counter_and_permits_are_known():
    names = [digest(bytes([number])) for number in range(4)]
    ranks = [(0, 5), (1, 1), (0, 7)]
    kit = KitBody(
        kit="kit-a",
        product="pest-detector",
        created_ms=1,
        releases=tuple(
            KitRelease(release=f"1.{n}.0", manifest=Payload(sha256=name, length_bytes=1), steps=())
            for n, name in enumerate(names)
        ),
    )
    permit = PermitTerms(
        kind="permit",
        permit="0" * 32,
        device="tractor-1",
        release="1.0.0",
        manifest=names[0],
        created_ms=1,
        expires_ms=2,
        reason="because",
    )
    terms = Terms(
        product="pest-detector",
        role_version=1,
        listed={
            name: Listed(version=f"1.{n}.0", release_counter=ranks[n][1], era=ranks[n][0], length_bytes=1)
            for n, name in enumerate(names[:3])
        },
        permits=(permit,),
    )
    found = planning.rank(kit, terms, (0, 7))
    assert [(one.release.release, one.is_new, one.is_permitted) for one in found] == [
        ("1.1.0", True, False),
        ("1.2.0", False, False),
        ("1.0.0", False, True),
    ]
