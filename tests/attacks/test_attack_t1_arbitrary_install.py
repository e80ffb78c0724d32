"""T1: unsigned, wrongly signed, under-signed, twice-signed metadata, seen by a machine."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from protocol.objects import ProductTerms, ReleaseTerms
from signing.metadata import plain, terms_field
from tests.fakes.field import PRODUCT, Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, b"genuine")
    field.contact()
    field.passes(hours=1)
    return field


def install(field: Field, role: bytes) -> Any:
    """The attacker holds the server and its online keys, and serves this role as the product's."""
    targets = field.house.image.targets
    field.serve()
    field.hostile("image", {"targets": (1, targets), PRODUCT: (3, role)})
    return field.contact(serve=False)


def evil(field: Field) -> Targets:
    signed = field.house.current_product()
    target = next(iter(signed.targets.values()))
    target.hashes["sha256"] = "e" * 64
    signed.version += 1
    return signed


def held(field: Field, verdict: Any, reason: str) -> None:
    assert reasons(verdict) == [("image", reason)]
    assert not verdict.may_install
    assert verdict.terms is not None
    assert "e" * 64 not in verdict.terms.listed
    assert field.contact(serve=False).terms == verdict.terms


def test_attack_t1_an_unsigned_release_is_refused(field: Field) -> None:
    held(field, install(field, Metadata(evil(field)).to_bytes()), "signature")


def test_attack_t1_a_release_signed_by_one_manager_only_is_refused(field: Field) -> None:
    held(field, install(field, field.house.sign(evil(field), ["alice"])), "signature")


def test_attack_t1_a_release_signed_by_the_servers_own_keys_is_refused(field: Field) -> None:
    metadata: Metadata[Any] = Metadata(evil(field))
    for signer in field.house.online["image"].values():
        metadata.sign(signer, append=True)
    metadata.sign(CryptoSigner.generate_ed25519(), append=True)
    held(field, install(field, metadata.to_bytes()), "signature")


def test_attack_t1_one_managers_signature_given_twice_is_refused(field: Field) -> None:
    data = json.loads(field.house.sign(evil(field), ["alice"]))
    data["signatures"].append(data["signatures"][0])
    held(field, install(field, json.dumps(data).encode()), "metadata")


def test_attack_t1_one_managers_signature_under_another_managers_name_is_refused(field: Field) -> None:
    data = json.loads(field.house.sign(evil(field), ["alice"]))
    bob = field.house.keys["bob"].public_key.keyid
    data["signatures"].append(data["signatures"][0] | {"keyid": bob})
    held(field, install(field, json.dumps(data).encode()), "signature")


def test_attack_t1_no_byte_of_a_signed_release_can_be_changed(field: Field) -> None:
    genuine = field.house.release("1.1.0", 2, b"newer", publish=False)
    text = genuine.decode()
    signed = text[text.index('"signed":') :]
    for offset in range(len(genuine) - len(signed), len(genuine), 7):
        changed = bytearray(genuine)
        changed[offset] ^= 1
        verdict = install(field, bytes(changed))
        assert not verdict.may_install
        assert verdict.terms is not None
        assert verdict.terms.role_version == 2


def test_attack_t1_a_key_listed_twice_under_two_ids_does_not_meet_a_threshold_of_two(field: Field) -> None:
    # Whoever holds the targets keys could delegate so; the machine refuses what no honest tool makes.
    targets = field.house.make_image_targets(2)
    assert targets.delegations is not None
    alice = targets.delegations.keys[field.house.keys["alice"].public_key.keyid]
    twin = type(alice).from_dict("f" * 64, alice.to_dict())
    targets.delegations.keys["f" * 64] = twin
    assert targets.delegations.roles is not None
    targets.delegations.roles[PRODUCT].keyids.append("f" * 64)
    data = json.loads(field.house.sign(evil(field), ["alice"]))
    data["signatures"].append(data["signatures"][0] | {"keyid": "f" * 64})
    field.serve()
    field.hostile("image", {"targets": (2, field.house.sign(targets)), PRODUCT: (3, json.dumps(data).encode())})
    verdict = field.contact(serve=False)
    assert reasons(verdict) == [("image", "signature")]
    assert verdict.terms is not None
    assert "e" * 64 not in verdict.terms.listed


def test_attack_t3_a_release_outside_the_products_own_paths_is_refused(field: Field) -> None:
    signed = field.house.current_product()
    signed.version += 1
    target = next(iter(signed.targets.values()))
    del signed.targets[target.path]
    target.path = "weed-detector/releases/1.0.0.json"
    signed.targets[target.path] = target
    held_verdict = install(field, field.house.sign(signed))
    assert reasons(held_verdict) == [("image", "metadata")]
    assert held_verdict.terms is not None
    assert held_verdict.terms.role_version == 2


def test_attack_t3_a_role_of_another_product_signed_by_the_same_managers_is_refused(field: Field) -> None:
    signed = Targets(
        version=3,
        expires=field.house.current_product().expires,
        targets={},
        unrecognized_fields=terms_field(ProductTerms(kind="product", product="weed-detector")),
    )
    verdict = install(field, field.house.sign(signed))
    assert reasons(verdict) == [("image", "wrong-product")]
    assert verdict.versions["image/pest-detector"] == 2


def test_attack_t3_a_target_that_is_no_release_is_refused(field: Field) -> None:
    signed = field.house.current_product()
    signed.version += 1
    target = next(iter(signed.targets.values()))
    custom = plain(ReleaseTerms(kind="release", version="9.9.9", release_counter=9))
    target.unrecognized_fields["custom"] = custom
    assert reasons(install(field, field.house.sign(signed))) == [("image", "metadata")]
