"""What machines do not look at is not built, and what a stick or a server gives without end is not read to its end."""

from pathlib import Path

import pytest

from protocol.errors import LinkError
from protocol.kits import KITS_FOLDER
from tests.fakes.kit_offers import offer_kit
from tests.fakes.managers_tool import ManagersTool


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    tool.publish("1.0.0", 1)
    offer_kit(tool, "1.0.0", machines=("tractor-1", "tractor-2"))
    return tool


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    stick = tmp_path / "stick"
    stick.mkdir()
    return stick


def build(tool: ManagersTool, stick: Path, *more: str) -> Path:
    return Path(tool.run("kit", "build", stick, "--yes", *more)["path"])


@pytest.mark.parametrize(
    ("limit", "most", "what"),
    [
        ("KIT_MACHINES", 1, "2 machines; machines take 1"),
        ("KIT_RELEASES", 0, "1 releases"),
        ("KIT_STEPS", 2, "3 steps in one release; machines take 2"),
        ("KIT_METADATA_FILES", 7, "files of metadata"),
        ("KIT_METADATA_BYTES", 5_000, "bytes of metadata; machines take 5,000"),
        ("KIT_BYTES", 16_500, "bytes of kit.json; machines take 16,500"),
    ],
)
def test_more_than_machines_look_at_is_said_in_the_plan(
    tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int, what: str
) -> None:
    assert tool.run("kit", "build", stick, "--dry-run")["plan"]["machines"] == ["tractor-1", "tractor-2"]
    monkeypatch.setattr(f"protocol.limits.{limit}", most)
    said = tool.fail("kit", "build", stick, "--dry-run", code=6)
    assert what in said and "several kits" in said
    assert not list(stick.iterdir())


def test_roots_without_end_from_a_server_are_not_followed(
    tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tool.server.metadata
    asked: list[str] = []

    def endless(kind: str, name: str) -> bytes:
        asked.append(name)
        return bytes(1000) if name.endswith(".root.json") else real(kind, name)

    monkeypatch.setattr(tool.server, "metadata", endless)
    monkeypatch.setattr("protocol.limits.KIT_METADATA_FILES", 20)
    assert "more roots" in tool.fail("kit", "build", stick, "--dry-run", code=4)
    monkeypatch.undo()
    monkeypatch.setattr(tool.server, "metadata", endless)
    monkeypatch.setattr("protocol.limits.KIT_METADATA_BYTES", 20_000)
    assert "more roots" in tool.fail("kit", "build", stick, "--dry-run", code=4)
    assert len(asked) < 60


def test_metadata_without_end_on_a_stick_is_not_read_to_its_end(
    tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tool, stick, "--as", "alice")
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    assert tool.run("kit", "verify", stick)["kits"][0]["whole"]
    monkeypatch.setattr("protocol.limits.KIT_METADATA_BYTES", 5_000)
    assert "is longer than" in tool.invoke("kit", "verify", stick).output


def test_links_on_a_stick_are_not_followed(tool: ManagersTool, stick: Path, tmp_path: Path) -> None:
    folder = build(tool, stick, "--as", "alice")
    (folder / "blobs" / "photo").symlink_to(tmp_path / "nowhere")
    (folder.parent / "kit-linked").symlink_to(folder)
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    (kit,) = tool.run("kit", "verify", stick)["kits"]
    assert kit["whole"] and "blobs/photo" in kit["notes"][0]
    assert build(tool, stick) == folder

    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / KITS_FOLDER).symlink_to(stick / KITS_FOLDER)
    for command in (("sign", "--as", "carol"), ("verify",), ("show",)):
        assert "is a link" in tool.fail("kit", command[0], linked, *command[1:], code=6)


def test_of_several_kits_those_that_are_not_signed_are_said(tool: ManagersTool, stick: Path) -> None:
    first = build(tool, stick, "--as", "alice")
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    offer_kit(tool, "1.0.0", machines=("tractor-1",))
    second = build(tool, stick, "--machine", "tractor-1")
    signed = tool.run("kit", "sign", stick, "--as", "carol", "--yes")
    assert [each["kit"] for each in signed["kits"]] == [second.name]
    assert signed["left"] == [{"kit": first.name, "readable": True, "why": "it is signed by enough"}]

    (first / "kit.json").write_text("{")
    done = tool.invoke("kit", "sign", stick, "--as", "bob", "--yes")
    assert done.exit_code == 4
    assert f"{first.name} was left as it is: " in done.output
    assert tool.run("kit", "show", second)["kits"][0]["draft"] is False, "the other was signed all the same"


def test_more_kits_than_machines_look_at_are_not_passed_by_in_silence(
    tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tool, stick)
    (stick / KITS_FOLDER / "kit-old").mkdir()
    monkeypatch.setattr("protocol.limits.KITS_LOOKED_AT", 1)
    assert "2 kits lie at" in tool.fail("kit", "verify", stick, code=6)


def test_receipts_that_do_not_come_cost_no_kit(
    tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tool.server.get

    def get(path: str, *rest: object) -> object:
        if path.endswith("/receipts"):
            raise LinkError("the server is gone")
        return real(path, *rest)

    monkeypatch.setattr(tool.server, "get", get)
    done = tool.run("kit", "build", stick, "--yes", "--as", "alice")
    assert done["receipts"] is None
    assert "the server is gone" in tool.invoke("kit", "build", stick, "--yes").output
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    assert tool.run("kit", "verify", stick)["kits"][0]["whole"]
