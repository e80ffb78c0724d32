"""T1 at the publish gate: unsigned, wrong-key, below-threshold and duplicate-keyid metadata is refused."""

import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey

from protocol.errors import Reason, Refused
from signing.repository import accept
from tests.fakes.managers import Managers

NOW = datetime(2026, 5, 4, 8, 0, tzinfo=UTC)
FILE = "pest-detector.json"


@pytest.fixture
def house() -> Managers:
    return Managers(NOW)


def refuse(house: Managers, files: Mapping[str, bytes], *reasons: Reason) -> None:
    before = copy.deepcopy(house.image)
    with pytest.raises(Refused) as error:
        accept("image", house.image, files, NOW)
    assert error.value.reason in reasons
    assert house.image == before


def edited(data: bytes, edit: Any) -> bytes:
    content = json.loads(data)
    edit(content)
    return json.dumps(content).encode()


def test_attack_T1_unsigned_and_below_threshold(house: Managers) -> None:
    for by in ((), ("alice",), ("bob",), ("carol",)):
        refuse(house, {FILE: house.release("1.0.0", 1, b"{}", by=by, publish=False)}, Reason.SIGNATURE)


def test_attack_T1_wrong_key(house: Managers) -> None:
    house.keys["mallory"] = CryptoSigner.generate_ed25519()
    house.keys["eve"] = CryptoSigner.generate_ed25519()
    for by in (("mallory", "eve"), ("alice", "mallory")):
        refuse(house, {FILE: house.release("1.0.0", 1, b"{}", by=by, publish=False)}, Reason.SIGNATURE)
        refuse(house, {"targets.json": house.sign(house.make_image_targets(2), by)}, Reason.SIGNATURE)
        refuse(house, {"2.root.json": house.sign(house.make_root("image", 2), by)}, Reason.SIGNATURE)


def test_attack_T1_one_signature_twice(house: Managers) -> None:
    one = house.release("1.0.0", 1, b"{}", by=("alice",), publish=False)
    twice = edited(one, lambda content: content["signatures"].append(content["signatures"][0]))
    refuse(house, {FILE: twice}, Reason.METADATA, Reason.SIGNATURE)


def test_attack_T1_one_signature_under_a_second_managers_key_id(house: Managers) -> None:
    one = house.release("1.0.0", 1, b"{}", by=("alice",), publish=False)
    bob = house.keys["bob"].public_key.keyid
    borrowed = edited(one, lambda c: c["signatures"].append({"keyid": bob, "sig": c["signatures"][0]["sig"]}))
    refuse(house, {FILE: borrowed}, Reason.SIGNATURE)


def test_attack_T1_one_public_key_under_two_key_ids(house: Managers) -> None:
    mine = house.keys["alice"].public_key
    assert isinstance(mine, SSlibKey)
    again = SSlibKey("f" * 64, mine.keytype, mine.scheme, dict(mine.keyval))
    root = house.make_root("image", 2)
    root.add_key(again, "targets")
    refuse(house, {"2.root.json": house.sign(root)}, Reason.SIGNATURE)
    top = house.make_image_targets(2)
    top.add_key(again, "pest-detector")
    refuse(house, {"targets.json": house.sign(top)}, Reason.SIGNATURE)


def test_attack_T1_key_listed_twice_in_a_role(house: Managers) -> None:
    def double(content: Any) -> None:
        keyids = content["signed"]["roles"]["root"]["keyids"]
        keyids.append(keyids[0])

    data = edited(house.sign(house.make_root("image", 2)), double)
    refuse(house, {"2.root.json": data}, Reason.METADATA, Reason.SIGNATURE)


def test_attack_T1_root_that_only_its_old_or_only_its_new_keys_signed(house: Managers) -> None:
    """All else that the new root asks for is right, so that only its own signatures can be at fault."""
    house.keys |= {name: CryptoSigner.generate_ed25519() for name in ("mallory", "eve")}
    root = house.make_root("image", 2, ("mallory", "eve"))
    targets = house.sign(house.make_image_targets(2), ("mallory", "eve"))
    for by in (("mallory", "eve"), ("alice", "bob"), ("alice", "mallory"), ("alice", "bob", "eve")):
        refuse(house, {"2.root.json": house.sign(root, by), "targets.json": targets}, Reason.SIGNATURE)
    both = house.sign(root, ("alice", "bob", "mallory", "eve"))
    assert max(accept("image", house.image, {"2.root.json": both, "targets.json": targets}, NOW).roots) == 2


def test_attack_T1_online_keys_sign_no_release(house: Managers) -> None:
    for roles in house.online.values():
        house.keys |= dict(roles)
    every_online_key = [role for roles in house.online.values() for role in roles]
    data = house.release("1.0.0", 1, b"{}", by=every_online_key, publish=False)
    refuse(house, {FILE: data}, Reason.SIGNATURE)
