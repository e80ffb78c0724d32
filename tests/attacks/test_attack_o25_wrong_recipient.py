"""O25, O26, T11: objects for another device or product, and receipts that nobody entitled signed."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from protocol.objects import ReceiptsBody
from signing.objects import sign_object
from tests.fakes.field import DEVICE, Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.contact()
    return field


def test_attack_o25_another_machines_assignment_is_refused(field: Field) -> None:
    verdict = field.contact(assignment=field.assignment(device="tractor-2"))
    assert reasons(verdict) == [("assignment", "wrong-device")]
    assert verdict.assignment is None


def test_attack_o25_another_machines_receipts_are_refused(field: Field) -> None:
    verdict = field.contact(receipts=(field.receipts(device="tractor-2"), field.receipts()))
    assert reasons(verdict) == [("receipts", "wrong-device")]
    assert [body.device for body in verdict.receipts] == [DEVICE]


def test_attack_o25_another_machines_time_is_refused(field: Field) -> None:
    field.reboots()
    verdict = field.contact(time=field.time(device="tractor-2"))
    assert reasons(verdict) == [("clock", "wrong-device")]
    assert not verdict.may_install


def test_attack_o25_changing_the_name_inside_the_signed_bytes_breaks_the_signature(field: Field) -> None:
    text = field.assignment(device="tractor-2").replace('"tractor-2"', f'"{DEVICE}"')
    assert json.loads(text)["signed"]["headland"]["device"] == DEVICE
    assert reasons(field.contact(assignment=text)) == [("assignment", "signature")]


def test_attack_t11_an_assignment_of_another_product_is_refused(field: Field) -> None:
    verdict = field.contact(assignment=field.assignment(product="weed-detector"))
    assert reasons(verdict) == [("assignment", "wrong-product")]


def test_attack_o26_a_receipt_that_the_receipts_role_did_not_sign_is_refused(field: Field) -> None:
    body = ReceiptsBody(device=DEVICE, epoch="4" * 32, generation="3" * 32)
    version, expires = int(field.now.timestamp()), field.now + timedelta(days=1)
    roles = field.house.online["director"]
    for signer in (CryptoSigner.generate_ed25519(), *(roles[name] for name in roles if name != "receipts")):
        text = sign_object(body, signer, version, expires)
        verdict = field.contact(receipts=(text,))
        assert reasons(verdict) == [("receipts", "signature")]
        assert verdict.receipts == ()
        assert field.judge().receipts((text,)) == ()


def test_attack_o26_no_byte_of_a_receipt_can_be_changed(field: Field) -> None:
    genuine = field.receipts()
    judge = field.judge()
    start = genuine.index('"signed":')
    for offset in range(start, len(genuine), 3):
        changed = genuine[:offset] + chr(ord(genuine[offset]) ^ 1) + genuine[offset + 1 :]
        assert judge.receipts((changed,)) == ()
    assert len(judge.receipts((genuine,))) == 1
