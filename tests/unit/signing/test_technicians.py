"""Technicians as managers list, change, renew and revoke them, and a director from before there were any."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Targets

from protocol.kits import Technician
from protocol.objects import MANAGERS_ROLES, DirectorTerms
from signing import keyfile, proposals
from signing.metadata import parse, terms
from signing.repository import technicians_of
from tests.fakes.managers_tool import ManagersTool

KEY = "1" * 64


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    return ManagersTool(tmp_path)


@pytest.fixture
def begun(tool: ManagersTool) -> ManagersTool:
    tool.begin()
    return tool


def director(tool: ManagersTool) -> Targets:
    return parse(tool.workspace.need("director").targets, Targets, "").signed


def listed(tool: ManagersTool) -> dict[str, Technician]:
    """What the server has been given."""
    role = parse(tool.server.sets["director"].delegated["technicians"], Targets, "").signed
    return {each.name: each for each in technicians_of(role).technicians}


def agree(tool: ManagersTool) -> str:
    """Alice and Bob sign, and the list is published; what Alice was shown."""
    said = tool.invoke("keys", "sign", "--as", "alice", "--yes").stderr
    tool.sign("bob")
    tool.push()
    return said


def with_machines(tool: ManagersTool, **groups: list[str]) -> None:
    tool.server.answers["/devices"] = {
        "devices": [{"device": name, "groups": of, "revoked": name == "scrap"} for name, of in groups.items()]
    }


def an_old_director(tool: ManagersTool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both repositories, as a tool from before there were field kits made them."""
    first: Callable[..., proposals.Proposal] = proposals.first

    def old(*arguments: Any, **_: Any) -> proposals.Proposal:
        made = first(*arguments)
        files = {key: signed for key, signed in made.files.items() if key != ("director", "technicians")}
        top = files["director", "targets"]
        assert isinstance(top, Targets) and top.delegations is not None and top.delegations.roles is not None
        for role in MANAGERS_ROLES:
            for keyid in list(top.delegations.roles[role].keyids):
                top.revoke_key(keyid, role)
            del top.delegations.roles[role]
        return proposals.Proposal(made.slug, made.title, files)

    monkeypatch.setattr(proposals, "first", old)
    tool.begin()
    monkeypatch.undo()


def test_a_new_director_has_an_empty_list_and_the_servers_key_to_seal_to(begun: ManagersTool) -> None:
    assert listed(begun) == {}
    assert terms(director(begun), DirectorTerms, "").sealing_key == begun.server.sealing_key
    roles = {each["role"]: each for each in begun.run("keys", "show")["roles"]}
    for role in MANAGERS_ROLES:
        assert roles[f"director/{role}"]["threshold"] == 2
        assert roles[f"director/{role}"]["keyids"] == roles["director/targets"]["keyids"]


def test_an_older_director_gets_kits_and_technicians_by_its_managers_signatures(
    tool: ManagersTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_old_director(tool, monkeypatch)
    assert tool.server.sets["director"].delegated == {}
    said = tool.fail("technicians", "add", "tom", "--key", KEY, code=6)
    assert "headland keys kits" in said
    tool.publish("1.0.0", 1)  # everything else goes on
    tool.run("keys", "kits")
    said = agree(tool)
    assert "technicians: 2 of alice" in said and "sealed to the server's key" in said
    assert listed(tool) == {}
    assert terms(director(tool), DirectorTerms, "").sealing_key == tool.server.sealing_key
    assert "already" in tool.fail("keys", "kits", code=6)
    tool.run("technicians", "add", "tom", "--key", KEY)


def test_a_technician_is_added_changed_and_revoked_and_every_signer_reads_it(begun: ManagersTool) -> None:
    begun.run("technicians", "add", "tom", "--key", KEY, "--machine", "tractor-2", "--machine", "tractor-1")
    assert listed(begun) == {}, "not before the threshold"
    said = agree(begun)
    assert "tom may force updates on tractor-1, tractor-2 until 2027-05-04, with the key 111111111111" in said
    assert listed(begun)["tom"].machines == ("tractor-1", "tractor-2")
    begun.run("technicians", "add", "tom", "--no-force", "--days", 10)
    said = agree(begun)
    assert "tom may NOT force updates on EVERY machine until 2026-05-14" in said
    assert "before: tom may force updates on tractor-1, tractor-2" in said
    assert (listed(begun)["tom"].public_key, listed(begun)["tom"].may_force) == (KEY, False)
    begun.run("technicians", "add", "ina", "--key", "2" * 64)
    assert "! ina may force updates on EVERY machine" in agree(begun)
    begun.run("technicians", "remove", "tom")
    assert "tom is REVOKED" in agree(begun)
    assert list(listed(begun)) == ["ina"]
    rows = begun.run("technicians", "list")["technicians"]
    assert [(each["name"], each["may_force"]) for each in rows] == [("ina", True)]
    assert "listed: ina" in begun.fail("technicians", "remove", "tom", code=6)


def test_a_key_that_stands_for_two_or_is_none_is_refused(begun: ManagersTool, tmp_path: Path) -> None:
    begun.run("technicians", "add", "tom", "--key", KEY)
    agree(begun)
    assert "two technicians" in begun.fail("technicians", "add", "ina", "--key", KEY, code=4)
    begun.fail("technicians", "add", "ina", code=6)
    begun.fail("technicians", "add", "ina", "--key", "f00", code=6)
    begun.fail("technicians", "add", "../ina", "--key", "2" * 64, code=4)
    (tmp_path / "key").write_text("no key at all")
    begun.fail("technicians", "add", "ina", "--key", tmp_path / "key", code=4)
    keyfile.write_key_file(
        tmp_path / "ecdsa.key", CryptoSigner.generate_ecdsa(), "a passphrase", begun.app.random, begun.app.key_cost
    )
    assert "Ed25519" in begun.fail("technicians", "add", "ina", "--key", tmp_path / "ecdsa.key", code=4)
    assert begun.run("keys", "show")["events"] == []


def test_a_key_file_is_encrypted_and_its_public_half_is_what_managers_take(begun: ManagersTool, tmp_path: Path) -> None:
    out = tmp_path / "tom.key"
    made = begun.run("technicians", "key", "tom", "--out", out)
    assert out.stat().st_mode & 0o777 == 0o600
    begun.run("technicians", "add", "tom", "--key", f"{out}.pub")
    agree(begun)
    assert listed(begun)["tom"].public_key == made["public_key"]
    public = keyfile.public_key_of(out)
    opened = keyfile.open_key_file(out.read_bytes(), public, "correct horse battery", "tom.key")
    signature = bytes.fromhex(opened.sign(b"a request").signature)
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(made["public_key"])).verify(signature, b"a request")
    begun.run("technicians", "add", "tom", "--key", out)  # its header will do, and is the same key
    assert "exists already" in begun.fail("technicians", "key", "tom", "--out", out, code=6)


def test_a_machine_that_the_server_does_not_know_is_asked_about(begun: ManagersTool) -> None:
    with_machines(begun, t1=[], t2=[])
    said = begun.invoke("technicians", "add", "tom", "--key", KEY, "--machine", "t1", "--machine", "tractor-2").stderr
    assert "the server knows no machine tractor-2: is that its name?" in said
    assert "knows no machine" not in begun.invoke("technicians", "add", "tom", "--key", KEY, "--machine", "t2").stderr


def test_groups_are_the_machines_in_them_when_the_list_is_made_and_made_again(begun: ManagersTool) -> None:
    with_machines(begun, t1=["north"], t2=["north", "south"], t3=["south"], scrap=["north", "museum"])
    begun.run("technicians", "add", "tom", "--key", KEY, "--group", "north")
    assert "on t1, t2 (as north stood)" in agree(begun)
    for group in ("nroth", "museum"):
        assert "no machine is in the group" in begun.fail("technicians", "add", "tom", "--group", group, code=6)
    assert "not both" in begun.fail("technicians", "add", "tom", "--group", "north", "--machine", "t9", code=6)
    with_machines(begun, t2=["south"], t4=["north"])
    begun.run("technicians", "renew")
    assert "before: tom may force updates on t1, t2" in agree(begun)
    assert listed(begun)["tom"].machines == ("t4",)
    with_machines(begun, t5=["north"])
    begun.run("keys", "resign", "director/technicians", "image/root")
    agree(begun)
    assert listed(begun)["tom"].machines == ("t5",)
    with_machines(begun)
    begun.fail("technicians", "renew", code=6)


def test_a_list_is_renewed_for_its_own_lifetime_and_without_whom_has_ended(begun: ManagersTool) -> None:
    def due() -> dict[str, str]:
        return {each["role"]: each["state"] for each in begun.run("keys", "due")["roles"]}

    begun.later(days=100)
    assert "technicians" not in due(), "nothing ends with a list that names nobody"
    begun.run("technicians", "add", "tom", "--key", KEY, "--days", 20)
    agree(begun)
    begun.run("technicians", "add", "ina", "--key", "2" * 64)
    agree(begun)
    assert due()["technicians"] == "fresh"
    begun.later(days=31)
    assert due()["technicians"] == "due"
    begun.run("keys", "resign", "director/technicians")
    assert "tom has ended" in agree(begun)
    assert list(listed(begun)) == ["ina"]
    assert due()["technicians"] == "fresh"
    begun.later(days=59)
    begun.run("technicians", "renew")
    agree(begun)
    begun.later(days=59)
    assert due()["technicians"] == "urgent", "not expired: the renewed list began anew"


def test_keys_and_thresholds_change_in_both_roles_and_the_list_is_signed_again(begun: ManagersTool) -> None:
    begun.run("technicians", "add", "tom", "--key", KEY)
    agree(begun)
    event = begun.run("keys", "rotate", "--threshold", 3)
    assert "director/technicians" in {need["file"] for need in event["needs"]}
    begun.sign("alice", "bob", "carol")
    begun.push()
    assert set(listed(begun)) == {"tom"}
    begun.run("keys", "add", "dora")
    begun.run("keys", "rotate", "--remove", "carol", "--add", "dora", "--threshold", 2)
    begun.sign("alice", "bob", "carol", "dora")
    begun.push()
    dora = next(each for each in begun.run("keys", "show")["managers"] if each["name"] == "dora")
    carol = next(each for each in begun.run("keys", "show")["managers"] if each["name"] == "carol")
    assert {f"director/{role}" for role in MANAGERS_ROLES} <= set(dora["roles"])
    assert carol["roles"] == []
    begun.run("technicians", "remove", "tom")
    begun.sign("alice", "carol")
    begun.fail("release", "push", code=4)
    begun.sign("dora")
    begun.push()
    assert listed(begun) == {}


def test_two_keys_of_one_owner_or_a_strangers_key_are_refused_in_the_directors_roles(begun: ManagersTool) -> None:
    begun.run("keys", "rotate", "--threshold", 3)
    (path,) = begun.path.glob("events/*/payload/director/targets.json")
    metadata = parse(path.read_bytes(), Targets, "")
    metadata.signed.add_key(CryptoSigner.generate_ed25519().public_key, "kits")
    path.write_bytes(metadata.to_bytes())
    assert "director kits would trust the key" in begun.fail("keys", "sign", "--as", "alice", "--yes", code=4)


def test_the_servers_new_sealing_key_comes_with_its_online_keys(begun: ManagersTool, tmp_path: Path) -> None:
    fresh = ManagersTool(tmp_path).server
    keys = tmp_path / "online-keys.json"
    keys.write_bytes(fresh.online_keys)
    begun.run("keys", "rotate", "--online", keys)
    assert f"before: {begun.server.sealing_key[:12]}" in agree(begun)
    assert terms(director(begun), DirectorTerms, "").sealing_key == fresh.sealing_key
    begun.run("keys", "rotate", "--threshold", 3)  # nothing else changes it
    begun.sign("alice", "bob", "carol")
    begun.push()
    assert terms(director(begun), DirectorTerms, "").sealing_key == fresh.sealing_key


def test_push_again_sends_the_list_too(begun: ManagersTool) -> None:
    begun.run("technicians", "add", "tom", "--key", KEY)
    agree(begun)
    sets, begun.server.sets = begun.server.sets, {}
    begun.run("release", "push", "--again")
    assert begun.server.sets == sets and "tom" in listed(begun)


def test_nobody_signs_a_list_that_says_it_was_made_in_years(begun: ManagersTool) -> None:
    now = begun.now
    begun.now = now + timedelta(days=300)
    begun.run("technicians", "add", "tom", "--key", KEY)
    begun.now = now
    assert "still to come" in begun.fail("keys", "sign", "--as", "alice", "--yes", code=4)
