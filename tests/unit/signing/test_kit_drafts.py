"""What lies on a stick already when a kit is built: signatures are carried on, and nothing else is believed."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner, Signer

from protocol.kits import DRAFT_FILE, KIT_FILE, KITS_FOLDER
from signing.keyfile import open_key_file, public_key_of
from signing.kits.kit_file import KitObject, make_kit, parse_kit
from tests.fakes.kit_offers import offer_kit
from tests.fakes.managers_tool import ManagersTool


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    tool.publish("1.0.0", 1)
    offer_kit(tool, "1.0.0")
    return tool


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    stick = tmp_path / "stick"
    stick.mkdir()
    return stick


def build(tool: ManagersTool, stick: Path, *more: str) -> Path:
    return Path(tool.run("kit", "build", stick, "--yes", *more)["path"])


def sign(tool: ManagersTool, stick: Path, *names: str) -> None:
    for name in names:
        tool.run("kit", "sign", stick, "--as", name, "--yes")


def read(folder: Path, name: str = DRAFT_FILE) -> KitObject:
    return parse_kit((folder / name).read_bytes())


def plant(folder: Path, by: Iterable[Signer], *, created: datetime, days: float = 180.0) -> bytes:
    """The draft that lies there, with another time and other signatures."""
    body = msgspec.structs.replace(read(folder).body, created_ms=int(created.timestamp() * 1000))
    kit = make_kit(body, (created + timedelta(days=days)).replace(microsecond=0))
    for signer in by:
        kit.metadata.sign(signer, append=True)
    content = kit.metadata.to_bytes()
    (folder / DRAFT_FILE).write_bytes(content)
    return content


def key_of(tool: ManagersTool, name: str) -> Signer:
    (path,) = (tool.path / "keys").glob(f"{name}*")
    return open_key_file(path.read_bytes(), public_key_of(path), tool.passphrase.read_text().strip(), name)


@pytest.mark.parametrize("by", ["nobody", "a stranger", "a manager"])
def test_a_draft_of_another_time_is_not_signed_however_it_came_there(tool: ManagersTool, stick: Path, by: str) -> None:
    folder = build(tool, stick)
    signers = {"nobody": [], "a stranger": [CryptoSigner.generate_ed25519()], "a manager": [key_of(tool, "bob")]}[by]
    for created, days in (
        (tool.now + timedelta(days=7000), 180.0),
        (tool.now + timedelta(days=2), 180.0),
        (tool.now, 7000.0),
        (tool.now - timedelta(days=91), 180.0),
    ):
        plant(folder, signers, created=created, days=days)
        shown = tool.invoke("kit", "build", stick, "--dry-run").stderr
        assert ("put aside" in shown) == bool(signers)
        assert build(tool, stick, "--as", "alice") == folder
        kit = read(folder)
        assert datetime.fromtimestamp(kit.body.created_ms / 1000, UTC) == tool.now
        assert kit.expires == tool.now + timedelta(days=180)
        assert len(kit.metadata.signatures) == 1


def test_what_another_manager_signed_is_gone_on_with_and_strangers_signatures_are_not(
    tool: ManagersTool, stick: Path
) -> None:
    folder = build(tool, stick, "--as", "alice")
    alices = read(folder)
    tool.later(days=3)
    plan = tool.run("kit", "build", stick, "--dry-run")["plan"]
    assert plan["goes_on"] and plan["expires"] == alices.expires.isoformat()
    strangers = [CryptoSigner.generate_ed25519() for _ in range(60)]
    alice = key_of(tool, "alice")
    plant(folder, [alice, *strangers], created=datetime.fromtimestamp(alices.body.created_ms / 1000, UTC))
    assert build(tool, stick, "--as", "bob") == folder
    both = read(folder, KIT_FILE)
    assert both.metadata.signed_bytes == alices.metadata.signed_bytes
    assert len(both.metadata.signatures) == 2
    assert not (folder / DRAFT_FILE).exists()
    plant_into = build(tool, stick, "--days", "30", "--as", "alice")
    plant(plant_into, [alice, *strangers], created=tool.now, days=30)
    sign(tool, plant_into, "bob")
    assert len(read(plant_into, KIT_FILE).metadata.signatures) == 2


def test_in_the_second_half_of_its_life_a_kit_is_made_anew_beside_the_one_that_still_holds(
    tool: ManagersTool, stick: Path
) -> None:
    folder = build(tool, stick, "--as", "alice")
    sign(tool, stick, "bob")
    first = (folder / KIT_FILE).read_bytes()
    tool.later(days=89)
    assert build(tool, stick) == folder, "mended, not made anew"
    assert (folder / KIT_FILE).read_bytes() == first
    tool.later(days=2)
    offered = tool.run("kit", "build", stick, "--dry-run")
    assert not offered["plan"]["goes_on"]
    assert "stays as it is" in tool.invoke("kit", "build", stick, "--dry-run").stderr
    fresh = build(tool, stick, "--as", "carol")
    assert fresh != folder and (folder / KIT_FILE).read_bytes() == first
    assert read(fresh).expires == tool.now + timedelta(days=180)
    assert read(fresh).expires.isoformat() == offered["plan"]["expires"]
    tool.later(days=90)
    tool.run("keys", "resign", "image/pest-detector")
    tool.sign("alice", "bob")
    tool.push()
    assert build(tool, stick, "--as", "bob") == folder, "it has expired by now: its place is free"
    assert not (folder / KIT_FILE).exists()


def test_after_a_rotation_a_kit_that_too_few_sign_by_now_is_signed_on(tool: ManagersTool, stick: Path) -> None:
    folder = build(tool, stick, "--as", "alice")
    sign(tool, stick, "bob")
    tool.run("keys", "rotate", "--manager", "bob")
    tool.sign("alice", "bob", "carol")
    tool.push()
    assert tool.invoke("kit", "verify", stick).exit_code == 4
    assert build(tool, stick) == folder
    assert not (folder / KIT_FILE).exists(), "machines that know of the rotation take it no more"
    assert len(read(folder).metadata.signatures) == 1
    sign(tool, stick, "bob")
    assert tool.run("kit", "verify", stick)["kits"][0]["signed"] == ["alice", "bob"]
    assert not list(stick.glob(f"{KITS_FOLDER}/*/{DRAFT_FILE}"))
