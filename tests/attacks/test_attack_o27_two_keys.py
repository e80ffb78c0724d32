"""O27: nobody meets a threshold of two alone, with two keys or with one key under two names."""

import json
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from protocol.errors import Refused
from signing.events import open_event, open_events
from signing.keyfile import open_key_file, public_key_of, uri_of, write_key_file
from signing.managers import Register
from signing.metadata import parse
from signing.online_keys import key_to_dict
from signing.proposals import KeyChange, change_keys
from signing.workspace import KINDS
from tests.fakes.managers_tool import CHEAP_SCRYPT, ManagersTool


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    return tool


def second_key(tool: ManagersTool) -> tuple[Path, CryptoSigner]:
    signer = CryptoSigner.generate_ed25519()
    path = tool.folder / "second.key"
    write_key_file(path, signer, "correct horse battery", bytes, CHEAP_SCRYPT)
    return path, signer


def test_attack_O27_a_second_key_is_not_enrolled(tool: ManagersTool) -> None:
    path, _ = second_key(tool)
    assert "two keys of one owner" in tool.fail("keys", "add", "alice", code=6)
    tool.fail("keys", "add", "alice", "--uri", uri_of(path), code=6)


def test_attack_O27_one_key_is_not_enrolled_under_two_names(tool: ManagersTool) -> None:
    (alice,) = (tool.path / "keys").glob("alice-*.key")
    said = tool.fail("keys", "add", "alicia", "--uri", uri_of(alice), code=4)
    assert "is the key of alice" in said


def test_attack_O27_a_former_key_does_not_come_back_under_another_name(tool: ManagersTool) -> None:
    (old,) = (tool.path / "keys").glob("alice-*.key")
    tool.run("keys", "rotate", "--manager", "alice")
    tool.sign("alice", "bob")
    tool.push()
    tool.fail("keys", "add", "alicia", "--uri", uri_of(old), code=4)


def test_attack_O27_an_event_that_trusts_two_keys_of_one_owner_is_not_opened(tool: ManagersTool) -> None:
    path, signer = second_key(tool)
    Register(tool.workspace).propose_key("alice", signer.public_key, uri_of(path))
    sets = {kind: tool.workspace.need(kind) for kind in KINDS}
    proposal = change_keys(sets, KeyChange(add=(signer.public_key,)), tool.now)
    with pytest.raises(Refused, match="two keys of alice"):
        open_event(tool.workspace, proposal, tool.now)
    assert open_events(tool.workspace) == ()


def test_attack_O27_an_event_that_was_edited_by_hand_is_not_signed(tool: ManagersTool) -> None:
    path, signer = second_key(tool)
    tool.run("keys", "rotate", "--threshold", 1)
    Register(tool.workspace).propose_key("alice", signer.public_key, uri_of(path))
    (event,) = open_events(tool.workspace)
    file = event.folder / "payload" / "image" / "root.json"
    root = parse(file.read_bytes(), Root, "root").signed
    root.add_key(signer.public_key, "root")
    file.write_bytes(Metadata(root).to_bytes())
    said = tool.fail("keys", "sign", "--as", "bob", "--yes", code=4)
    assert "two keys of alice" in said


def test_attack_O27_an_event_with_two_keys_of_one_owner_is_not_pushed_even_when_signed(tool: ManagersTool) -> None:
    """Somebody signs by other means than this tool what the tool would not sign."""
    path, signer = second_key(tool)
    tool.run("keys", "rotate", "--threshold", 1)
    Register(tool.workspace).propose_key("alice", signer.public_key, uri_of(path))
    (event,) = open_events(tool.workspace)
    files: dict[str, list[dict[str, str]]] = {}
    for (kind, role), metadata in event.payload.items():
        if role == "root":
            metadata.signed.add_key(signer.public_key, "root")
            (event.folder / "payload" / kind / "root.json").write_bytes(Metadata(metadata.signed).to_bytes())
        files[f"{kind}/{role}"] = [
            {"keyid": made.keyid, "sig": made.signature}
            for made in (Metadata(metadata.signed).sign(manager) for manager in everybody(tool))
        ]
    (event.folder / "signatures").mkdir()
    (event.folder / "signatures" / "mallory.json").write_text(json.dumps({"files": files}))
    (event,) = open_events(tool.workspace)
    assert event.ready()
    assert "two keys of alice" in tool.fail("release", "push", code=4)
    assert tool.server.published == 1


def everybody(tool: ManagersTool) -> list[CryptoSigner]:
    paths = sorted((tool.path / "keys").glob("*.key"))
    passphrase = tool.passphrase.read_text().strip()
    return [open_key_file(path.read_bytes(), public_key_of(path), passphrase, path.name) for path in paths]


def test_attack_O27_a_strangers_key_in_an_event_is_not_signed(tool: ManagersTool) -> None:
    tool.run("keys", "rotate", "--threshold", 1)
    (event,) = open_events(tool.workspace)
    file = event.folder / "payload" / "image" / "root.json"
    root = parse(file.read_bytes(), Root, "root").signed
    root.add_key(CryptoSigner.generate_ed25519().public_key, "targets")
    file.write_bytes(Metadata(root).to_bytes())
    assert "nobody's here" in tool.fail("keys", "sign", "--as", "bob", "--yes", code=4)


def test_attack_O27_a_servers_key_is_no_managers(tool: ManagersTool) -> None:
    server = tool.server.keys["image"]["timestamp"]
    assert isinstance(server, CryptoSigner)
    path = tool.folder / "server.key"
    write_key_file(path, server, "correct horse battery", bytes, CHEAP_SCRYPT)
    assert "server's online keys" in tool.fail("keys", "add", "mallory", "--uri", uri_of(path), code=4)


def test_attack_O27_signatures_of_one_manager_count_once(tool: ManagersTool) -> None:
    tool.build("1.0.0", 1)
    tool.sign("alice")
    (event,) = open_events(tool.workspace)
    mine = event.folder / "signatures" / "alice.json"
    (event.folder / "signatures" / "bob.json").write_bytes(mine.read_bytes())
    assert "1 more of bob, carol" in tool.fail("release", "push", code=4)
    content = json.loads(mine.read_bytes())
    bob = Register(tool.workspace).get("bob").current()
    for entries in content["files"].values():
        entries[0]["keyid"] = key_to_dict(bob)["keyid"]
    (event.folder / "signatures" / "bob.json").write_text(json.dumps(content))
    assert "1 more of bob, carol" in tool.fail("release", "push", code=4)
