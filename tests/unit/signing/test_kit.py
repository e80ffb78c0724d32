"""`headland kit`, from an empty stick to a kit that two managers signed, and whatever a stick does to it."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Targets

from protocol.errors import StateError
from protocol.ids import digest
from protocol.kits import KITS_FOLDER, PART_BYTES
from protocol.objects import KITS
from signing.kits import building
from signing.kits.blobs import check_blob, part_names, write_blob
from signing.kits.checking import check_kit, find_kits
from signing.kits.kit_file import kit_keys
from signing.metadata import parse
from signing.repository import RepositoryKind
from signing.stick import stick_folder
from tests.fakes.kit_offers import offer_kit
from tests.fakes.managers import Managers
from tests.fakes.managers_tool import ManagersTool
from tests.fakes.stick_images import FILE_SYSTEMS, FileSystem, StickImage, need


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    tool.publish("1.0.0", 1)
    tool.publish("1.1.0", 2)
    offer_kit(tool, "1.1.0", deltas={"small patch": 5, "rare patch": 1})
    return tool


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "photos").mkdir()
    return stick


def build(tool: ManagersTool, stick: Path, *more: str) -> Path:
    return Path(tool.run("kit", "build", stick, "--yes", *more)["path"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_managers_make_a_kit_that_machines_take(tool: ManagersTool, stick: Path) -> None:
    built = tool.run("kit", "build", stick, "--yes", "--as", "alice")
    folder = Path(built["path"])
    assert (folder / "kit.draft.json").exists() and not (folder / "kit.json").exists()
    assert (built["ready"], built["signed"], built["threshold"]) == (False, ["alice"], 2)
    assert folder.name.startswith("kit-pest-detector-20260504-")
    (signed,) = tool.run("kit", "sign", stick, "--as", "bob", "--yes")["kits"]
    assert signed["ready"] and signed["signed"] == ["alice", "bob"]
    assert (folder / "kit.json").exists() and not (folder / "kit.draft.json").exists()
    verified = tool.run("kit", "verify", stick)
    assert verified["trusted"] and verified["kits"][0]["whole"], verified
    (release,) = verified["kits"][0]["body"]["releases"]
    assert sorted(step["method"] for step in release["steps"]) == ["delta", "delta", "full", "full", "full"]
    assert {name for name in files(folder) if name.startswith("director")} >= {
        "director/1.root.json",
        "director/timestamp.json",
        "director/1.technicians.json",
    }


def test_one_manager_signing_twice_makes_no_kit(tool: ManagersTool, stick: Path) -> None:
    build(tool, stick, "--as", "alice")
    (again,) = tool.run("kit", "sign", stick, "--as", "alice", "--yes")["kits"]
    assert not again["ready"]
    tool.run("kit", "sign", stick, "--as", "carol", "--yes")
    assert "is no draft" in tool.fail("kit", "sign", stick, "--as", "bob", code=6)


def test_the_plan_is_shown_and_nothing_written(tool: ManagersTool, stick: Path) -> None:
    plan = tool.run("kit", "build", stick, "--dry-run")["plan"]
    assert (plan["releases"][0]["full"], plan["releases"][0]["deltas"], plan["left_out"]) == (3, 2, 0)
    assert plan["delta_bytes"] == len("small patch") + len("rare patch")
    assert [path.name for path in stick.iterdir()] == ["photos"]


def test_what_must_fit_leaves_out_the_patches_that_fewest_machines_use(tool: ManagersTool, stick: Path) -> None:
    offer_kit(tool, "1.1.0", deltas={"s" * 50_000: 5, "r" * 50_000: 1})
    whole = tool.run("kit", "build", stick, "--dry-run")["plan"]
    assert tool.run("kit", "build", stick, "--dry-run", "--fit", str(whole["needs_bytes"]))["plan"]["left_out"] == 0
    room = str(whole["needs_bytes"] - 1)
    plan = tool.run("kit", "build", stick, "--dry-run", "--fit", room)["plan"]
    assert (plan["left_out"], plan["delta_bytes"]) == (1, 50_000)
    folder = build(tool, stick, "--fit", room)
    assert (folder / "blobs" / digest(b"s" * 50_000)).exists()
    assert not (folder / "blobs" / digest(b"r" * 50_000)).exists()
    assert "bytes too large" in tool.fail("kit", "build", stick, "--yes", "--fit", "10k", code=6)


def test_a_link_that_breaks_is_gone_on_with(tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.time, "sleep", lambda seconds: None)
    offer_kit(tool, "1.1.0", deltas={"x" * 90_000: 1})
    tool.server.link_bytes = 50_000
    folder = build(tool, stick)
    assert tool.server.link_bytes is None
    assert (folder / "blobs" / digest(b"x" * 90_000)).stat().st_size == 90_000


def test_a_stick_pulled_at_any_write_holds_no_kit_and_the_same_command_repairs_it(
    tool: ManagersTool, stick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = building.DISK
    effects: list[str] = []
    ends_at: list[int] = []

    def before(effect: str, path: Path) -> None:
        if not str(path).startswith("/proc/self/fd/"):
            return
        effects.append(effect)
        if ends_at and len(effects) >= ends_at[0]:
            raise OSError(errno.EIO, "the stick is gone")

    monkeypatch.setattr(real, "before", before)
    made = tmp_path / "whole"
    made.mkdir()
    build(tool, made, "--as", "alice")
    tool.run("kit", "sign", made, "--as", "bob", "--yes")
    count = len(effects)
    assert count > 60
    for number in range(1, count + 1):
        fresh = tmp_path / f"stick-{number}"
        fresh.mkdir()
        effects.clear()
        ends_at[:] = [number]
        broke = tool.invoke("kit", "build", fresh, "--yes", "--as", "alice")
        if broke.exit_code == 0:
            broke = tool.invoke("kit", "sign", fresh, "--as", "bob", "--yes")
        ends_at.clear()
        assert broke.exit_code == 5, (number, broke.stderr)
        ready = list(fresh.glob(f"{KITS_FOLDER}/*/kit.json"))
        if ready:  # the very last effects: the name is there, and so is all else
            assert not check_kit(ready[0].parent, tool.workspace, tool.now, lambda _: None).faults
        tool.run("kit", "build", fresh, "--yes", "--as", "alice")
        if not list(fresh.glob(f"{KITS_FOLDER}/*/kit.json")):
            tool.run("kit", "sign", fresh, "--as", "bob", "--yes")
        (folder,) = find_kits(fresh)
        report = check_kit(folder, tool.workspace, tool.now, lambda _: None)
        assert not report.faults and not report.draft and not report.notes, (number, report)
        assert not list(folder.rglob(".tmp-*"))


def test_every_harm_to_a_kit_is_found_and_building_again_repairs_it(tool: ManagersTool, stick: Path) -> None:
    folder = build(tool, stick, "--as", "alice")
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    whole = files(folder)
    for name, content in whole.items():
        path = folder / name
        for harmed in (content[:-1], bytes([content[0] ^ 1]) + content[1:], None):
            path.unlink() if harmed is None else path.write_bytes(harmed)
            assert tool.invoke("kit", "verify", stick).exit_code == 4, (name, harmed is None)
            path.write_bytes(content)
    for name in whole:
        if name != "kit.json":
            (folder / name).write_bytes(b"x" * len(whole[name]))
    build(tool, stick)
    assert files(folder) == whole
    assert tool.invoke("kit", "verify", stick).exit_code == 0


def test_what_nobody_needs_is_named_and_does_no_harm(tool: ManagersTool, stick: Path) -> None:
    folder = build(tool, stick, "--as", "alice")
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    (folder / "blobs" / "holiday.jpg").write_bytes(b"x")
    (kit,) = tool.run("kit", "verify", stick)["kits"]
    assert kit["whole"] and "holiday.jpg" in kit["notes"][0]


def test_without_a_workspace_a_kit_is_only_held_against_itself(tool: ManagersTool, stick: Path) -> None:
    build(tool, stick, "--as", "alice")
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    tool.app.workspace_path = stick / "photos"
    result = tool.invoke("kit", "verify", stick)
    assert result.exit_code == 7 and "not who made them" in result.stdout
    assert "pest-detector" in tool.invoke("kit", "show", stick).stdout


def test_another_workspace_takes_no_kit_of_strangers(tool: ManagersTool, stick: Path, tmp_path: Path) -> None:
    build(tool, stick, "--as", "alice")
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    (tmp_path / "others").mkdir()
    others = ManagersTool(tmp_path / "others")
    others.begin()
    assert others.invoke("kit", "verify", stick).exit_code == 4


def test_a_kit_that_expired_or_whose_release_was_delisted_is_said_to_be(tool: ManagersTool, stick: Path) -> None:
    build(tool, stick, "--as", "alice", "--days", "30")
    tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    tool.run("release", "delist", "1.1.0")
    tool.sign("alice", "bob")
    tool.push()
    assert "delisted" in tool.invoke("kit", "verify", stick).stdout
    tool.later(days=31)
    assert "expired" in tool.invoke("kit", "verify", stick).stdout


@pytest.mark.parametrize("kind", ["image", "director"])
def test_a_server_that_was_set_back_fills_no_kit(tool: ManagersTool, stick: Path, kind: RepositoryKind) -> None:
    """It offers a release that was delisted, or a technician who was revoked."""
    tool.run("technicians", "add", "tom", "--key", "1" * 64)
    tool.sign("alice", "bob")
    tool.push()
    before = dict(tool.server.sets)
    built = build(tool, stick)
    other = build(tool, stick, "--days", "20", "--as", "alice")
    tool.run("kit", "sign", other, "--as", "bob", "--yes")
    tool.run("release", "delist", "1.1.0") if kind == "image" else tool.run("technicians", "remove", "tom")
    tool.sign("alice", "bob")
    tool.push()
    tool.server.sets[kind] = before[kind]
    said = tool.fail("kit", "build", stick, "--yes", code=4)
    assert "is published" in said and "push --again" in said
    assert "is published" in tool.fail("kit", "sign", built, "--as", "alice", "--yes", code=6)
    (seen,) = tool.invoke("kit", "verify", other, "--json").stdout.splitlines()
    (report,) = msgspec.json.decode(seen)["kits"]
    assert report["whole"] == (kind == "director")
    assert any(f"{kind}/" in note and "is published" in note for note in report["notes"])


def test_another_list_of_the_same_version_than_was_published_is_refused(tool: ManagersTool, stick: Path) -> None:
    published = tool.path / "signed" / "director" / "1.technicians.json"
    published.write_bytes(published.read_bytes() + b" ")
    assert "with other bytes" in tool.fail("kit", "build", stick, "--yes", code=4)


def test_several_kits_lie_beside_each_other(tool: ManagersTool, stick: Path) -> None:
    first = build(tool, stick)
    assert build(tool, stick) == first, "the same again goes on with the same"
    offer_kit(tool, "1.0.0", "1.1.0", machines=("tractor-1",))
    second = build(tool, stick, "--release", "1.0.0", "--release", "1.1.0", "--machine", "tractor-1")
    shown = tool.run("kit", "show", stick)["kits"]
    assert {each["kit"] for each in shown} == {first.name, second.name} and len(shown) == 2
    assert tool.server.posted[-1][1].machines == ("tractor-1",)
    tool.run("kit", "sign", stick, "--as", "alice", "--yes")
    tool.run("kit", "sign", stick, "--as", "carol", "--yes")
    assert tool.run("kit", "verify", stick)["kits"][1]["whole"]


def test_payloads_that_are_not_ready_are_waited_for_or_said(
    tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_kit(tool, "1.1.0", waiting=("a" * 64,))
    assert "still making 1" in tool.fail("kit", "build", stick, "--dry-run", code=6)

    def finish(seconds: float) -> None:
        offer_kit(tool, "1.1.0")

    monkeypatch.setattr("signing.commands.kit.time.sleep", finish)
    build(tool, stick)


def test_a_server_that_lies_about_a_release_is_refused(tool: ManagersTool, stick: Path) -> None:
    offer = offer_kit(tool, "1.0.0")
    tool.server.answers["/kits/plan"] = {
        "product": "pest-detector",
        "machines": None,
        "releases": [{"release": "1.1.0", "manifest": offer.releases[0].manifest, "steps": offer.releases[0].steps}],
    }
    assert "than the managers signed" in tool.fail("kit", "build", stick, "--yes", code=4)
    offer = offer_kit(tool, "1.1.0")
    blob = offer.releases[0].steps[0].step.payload
    assert blob is not None
    tool.server.blobs[blob.sha256] = b"x" * blob.length_bytes
    assert "another hash" in tool.fail("kit", "build", stick, "--yes", code=4)
    assert not list(stick.glob(f"{KITS_FOLDER}/*/kit*.json"))


def test_a_blob_above_the_limit_of_a_file_lies_in_parts(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    sha256 = digest(content)
    asked: list[int] = []

    def fetch(first: int) -> Iterator[bytes]:
        asked.append(first)
        return (content[at : at + 700] for at in range(first, len(content), 700))

    with stick_folder(tmp_path) as folder:
        for broken in (None, 0, 1, 2):
            if broken is not None:
                path = tmp_path / f"{sha256}.{broken}"
                path.write_bytes(path.read_bytes()[:100])
            assert write_blob(folder, sha256, len(content), fetch, lambda _: None, part_bytes=4096)
            assert sorted(path.name for path in tmp_path.iterdir()) == [f"{sha256}.{n}" for n in range(3)]
            assert check_blob(folder, sha256, len(content), lambda _: None, part_bytes=4096) == ""
        assert asked == [0, 0, 4096, 8192]
        assert not write_blob(folder, sha256, len(content), fetch, lambda _: None, part_bytes=4096)
    assert [length for _, length in part_names(sha256, 2 * PART_BYTES + 1)] == [PART_BYTES, PART_BYTES, 1]


def test_a_stick_leads_nowhere_else(tool: ManagersTool, stick: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (stick / KITS_FOLDER).symlink_to(precious)
    assert "something else lies where headland-kits belongs" in tool.fail("kit", "build", stick, "--yes", code=6)
    assert not list(precious.iterdir())


def test_what_lies_in_the_way_on_a_stick_is_named(tool: ManagersTool, stick: Path) -> None:
    folder = build(tool, stick)
    (folder / "kit.draft.json").unlink()
    (folder / "kit.draft.json").mkdir()
    assert "something else lies where kit.draft.json belongs" in tool.fail("kit", "build", stick, "--yes", code=6)
    (folder / "kit.draft.json").rmdir()
    build(tool, stick)
    shutil.rmtree(folder / "blobs")
    (folder / "blobs").write_bytes(b"")
    assert "blobs/ is missing" in tool.invoke("kit", "verify", stick).output
    assert "something else lies where blobs belongs" in tool.fail("kit", "build", stick, "--yes", code=6)


def test_two_builds_at_once_do_not_write_into_each_others_files(tool: ManagersTool, stick: Path) -> None:
    with stick_folder(stick) as root, root.below(KITS_FOLDER, make=True) as kits:
        kits.alone()
        assert "another command is writing to this stick" in tool.fail("kit", "build", stick, "--yes", code=6)
    build(tool, stick)


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_a_kit_on_a_stick_as_one_buys_it(kind: FileSystem, tool: ManagersTool, tmp_path: Path) -> None:
    need(kind)
    image = StickImage(tmp_path / "stick.img", kind)
    with image.plugged(tmp_path / "mount") as stick:
        build(tool, stick, "--as", "alice")
        tool.run("kit", "sign", stick, "--as", "bob", "--yes")
    with image.plugged(tmp_path / "mount") as stick:
        (kit,) = tool.run("kit", "verify", stick)["kits"]
        assert kit["whole"] and not kit["notes"]
        folder = stick / KITS_FOLDER / kit["kit"]
        harmed = next((folder / "blobs").iterdir())
        with harmed.open("r+b") as file:
            file.write(b"x")
        assert tool.invoke("kit", "verify", stick).exit_code == 4
        build(tool, stick)
    with image.plugged(tmp_path / "mount", read_only=True) as stick:
        assert tool.run("kit", "verify", stick)["kits"][0]["whole"]


def test_an_older_director_says_how_to_name_who_signs_kits(tool: ManagersTool) -> None:
    old = Managers(tool.now, kits=False)
    with pytest.raises(StateError, match="before there were any") as raised:
        kit_keys(parse(old.director.targets, Targets, KITS).signed)
    assert "headland keys kits" in raised.value.hint


def test_two_keys_of_one_owner_count_for_no_kit(tool: ManagersTool, stick: Path) -> None:
    build(tool, stick, "--as", "alice")
    bob = tool.workspace.path / "managers" / "bob.json"
    alice = tool.workspace.path / "managers" / "alice.json"
    key = msgspec.json.decode(bob.read_bytes())["key"]
    alice.write_bytes(msgspec.json.encode({**msgspec.json.decode(alice.read_bytes()), "former_keys": [key]}))
    bob.unlink()
    assert "two keys of alice" in tool.fail("kit", "sign", stick, "--as", "carol", "--yes", code=6)


def test_a_stick_that_is_too_small_is_left_alone(
    tool: ManagersTool, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(stick)
    monkeypatch.setattr("signing.commands.kit.shutil.disk_usage", lambda path: real._replace(free=10_000))
    assert "bytes too little" in tool.fail("kit", "build", stick, "--yes", code=6)
    assert [path.name for path in stick.iterdir()] == ["photos"]
    another = stick / KITS_FOLDER / "kit-other" / "blobs"
    another.mkdir(parents=True)
    (another / "model").write_bytes(bytes(10_000_000))
    assert "bytes too little" in tool.fail("kit", "build", stick, "--yes", code=6), "another kit makes no room"
