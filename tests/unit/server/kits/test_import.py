"""`headland-server kit import` beside a running server: each piece once, bad ones in words, receipts on the stick."""

import asyncio
import errno
import io
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from protocol.errors import LinkError, StateError
from protocol.ids import digest
from protocol.kits import PieceHeader, write_piece
from server import sealing_keys
from server.cli import main
from server.cli_state import opened
from signing.kits.bringing import Brought, TakenPiece, bring_home
from signing.kits.brought_shown import brought_table
from signing.stick import StickFolder
from tests.fakes.pieces import lay, piece, report, sealing_key_of, signed_report
from tests.fakes.server_house import House, body_of, running
from tests.fakes.stick_images import StickImage, need


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with running(tmp_path / "house") as house:
        await house.publish()
        yield house


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder


def shown(found: Brought) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(brought_table({"tractor-1": found}))
    return console.file.getvalue()


def served_last(house: House) -> None:
    """Notes the time, as a server that runs does each minute."""
    with opened(house.state) as at, at.catalog.write() as session:
        session.facts.put("known_ms", house.now_ms)


def found_in(stick: Path, pattern: str) -> list[Path]:
    return list(stick.rglob(pattern))


async def imported(house: House, stick: Path, *options: str, code: int = 0) -> dict:
    arguments = ["kit", "import", "--state", str(house.state), str(stick), "--json", *options]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


async def test_a_stick_of_several_machines_is_emptied_and_bears_their_receipts(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machines = [await house.enrol(f"tractor-{number}") for number in (1, 2)]
    for machine in machines:
        for rows in ([b"a", b"b"], [b"c"]):
            lay(stick, machine.name, piece(sealing_key, machine.name, "batch", machine.batch("results", rows)))
        lay(stick, machine.name, piece(sealing_key, machine.name, "report", signed_report(machine, report(machine, 1))))
    found = await imported(house, stick)
    assert (found["rows"], found["known"], found["reports"], found["removed"], found["complaints"]) == (6, 0, 2, 6, 0)
    assert not found_in(stick, "*.piece")
    for machine in machines:
        receipts = list((stick / "headland-results" / machine.name / "receipts").glob("*.json"))
        assert {body_of(each.read_text())["device"] for each in receipts} == {machine.name}
        assert len(receipts) == 2
    assert (await house.must("GET", "/api/v1/devices/tractor-1"))["ingested"]["results"] == 3
    assert (await imported(house, stick))["pieces"] == 0


async def test_bad_pieces_stop_no_other_one_stay_and_are_named_with_a_word(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    good = piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"]))
    lay(stick, "tractor-1", good)
    damaged = lay(stick, "tractor-1", good[:-1] + bytes([good[-1] ^ 1]))
    stranger = lay(stick, "tractor-9", piece(sealing_key, "tractor-9", "batch", machine.batch("results", [b"b"])))
    (stick / "headland-results" / "not a machine").mkdir()
    (stick / "headland-results" / "a-file").write_bytes(b"")
    (stick / "headland-results" / "a-link").symlink_to(stick)
    found = await imported(house, stick, code=4)
    assert (found["rows"], found["removed"], found["refused"], found["complaints"]) == (1, 1, 2, 2)
    assert set(found["machines"]) == {"tractor-1", "tractor-9"}
    [line] = found["machines"]["tractor-1"]["complaints"]
    assert damaged.name in line
    assert "damaged" in line
    assert "no device tractor-9" in found["machines"]["tractor-9"]["complaints"][0]
    assert damaged.exists()
    assert stranger.exists()


async def test_keep_leaves_the_stick_as_it_is_but_for_receipts_and_a_second_import_counts_nothing(
    house: House, stick: Path
):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    path = lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    assert (await imported(house, stick, "--keep"))["rows"] == 1
    assert path.exists()
    again = await imported(house, stick / "headland-results")
    assert (again["rows"], again["known"], again["removed"]) == (0, 1, 1)
    assert len(found_in(stick, "receipts/*.json")) == 1


async def test_a_piece_that_was_sealed_to_an_older_key_is_opened(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    assert await asyncio.to_thread(partial(sealing_keys.make, house.state / "keys", after=sealing_key))
    assert await asyncio.to_thread(sealing_key_of, house.state) != sealing_key
    lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    assert (await imported(house, stick))["rows"] == 1


async def test_conflicting_rows_keep_their_piece_on_the_stick(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    await machine.send(machine.batch("results", [b"a"]))
    batch = machine.batch("results", [b"other"], first=0)
    path = lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", batch))
    found = await imported(house, stick, code=4)
    assert (found["conflicting"], found["removed"]) == (1, 0)
    assert path.exists()


async def test_a_stick_that_cannot_be_written_to_is_brought_home_all_the_same(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    (stick / "headland-results" / "tractor-1" / "receipts").write_bytes(b"no folder")
    found = await imported(house, stick)
    assert (found["rows"], found["removed"]) == (1, 0)
    assert "taken, but the stick cannot be written to" in found["machines"]["tractor-1"]["complaints"][0]


def test_a_place_without_results_is_said_to_be_that(stick: Path):
    with pytest.raises(StateError, match="no folder headland-results"):
        bring_home(stick, lambda data: pytest.fail("nothing is there"))


def three_of(stick: Path, *machines: str, count: int = 3) -> None:
    for machine in machines:
        for number in range(count):
            sealed = b"%d" % number
            header = PieceHeader(format=1, device=machine, kind="batch", sealed_to="0" * 64, sha256=digest(sealed))
            lay(stick, machine, write_piece(header, sealed))


def test_a_folder_that_cannot_be_read_stops_no_other_machine(stick: Path, monkeypatch: pytest.MonkeyPatch):
    three_of(stick, "tractor-1", "tractor-2")
    names, asked = StickFolder.names, []

    def broken(self: StickFolder, suffix: str = "") -> list[str]:
        asked.append(suffix)
        if asked.count(".piece") in (1, 3):  # tractor-1's, to count and to bring
            raise OSError(errno.EIO, "Input/output error")
        return names(self, suffix)

    monkeypatch.setattr(StickFolder, "names", broken)
    found = bring_home(stick, lambda data: TakenPiece(device="tractor-2", kind="batch", whole=True))
    assert "its folder cannot be read: Input/output error" in found["tractor-1"].complaints[0]
    assert (found["tractor-1"].refused, found["tractor-2"].removed) == (1, 3)


def test_thousands_of_bad_pieces_are_counted_and_the_first_are_named(stick: Path):
    for number in range(1000):
        lay(stick, "tractor-1", b"%d" % number)
    found = bring_home(stick, lambda data: pytest.fail("none is a piece"))["tractor-1"]
    assert (found.refused, len(found.complaints), found.unsaid) == (1000, 100, 900)
    assert "and 900 more" in shown(found)


def test_two_imports_at_once_share_the_pieces(stick: Path):
    three_of(stick, "tractor-1")
    inner: list[Brought] = []

    def take(data: bytes) -> TakenPiece:
        if not inner:
            inner.append(Brought())
            inner[0] = bring_home(stick, take)["tractor-1"]
        return TakenPiece(device="tractor-1", kind="batch", whole=True)

    outer = bring_home(stick, take)["tractor-1"]
    assert (inner[0].pieces, outer.pieces, outer.complaints) == (3, 1, [])
    assert not found_in(stick, "*.piece")


def test_a_pulled_stick_ends_the_import_with_one_word(tmp_path: Path):
    need("fat32")
    image = StickImage(tmp_path / "image", "fat32")
    stick = image.plug(tmp_path / "mounted")
    try:
        three_of(stick, "tractor-1", "tractor-2")
        taken = []

        def take(data: bytes) -> TakenPiece:
            taken.append(data)
            if len(taken) == 2:
                image.pull()
            return TakenPiece(device="tractor-1", kind="batch", whole=True)

        with pytest.raises(LinkError, match=r"the stick at .* is gone \(1 of 6 pieces were done\)"):
            bring_home(stick, take)
        assert len(taken) == 2
    finally:
        image.unplug()


def test_a_mount_that_stays_and_gives_nothing_any_more_ends_the_import_with_one_word(
    stick: Path, monkeypatch: pytest.MonkeyPatch
):
    three_of(stick, "tractor-1", count=40)
    read = StickFolder.read
    asked = []

    def dies(folder: StickFolder, name: str, limit_bytes: int) -> bytes:
        asked.append(name)
        if len(asked) > 5:
            raise OSError(errno.EIO, "Input/output error")
        return read(folder, name, limit_bytes)

    monkeypatch.setattr(StickFolder, "read", dies)
    with pytest.raises(LinkError, match=r"gives nothing any more \(20 of 40 pieces were done\)"):
        bring_home(stick, lambda data: TakenPiece(device="tractor-1", kind="report", whole=True))


def test_a_server_that_fails_at_one_piece_takes_the_others_and_one_that_fails_at_all_is_left_alone(stick: Path):
    three_of(stick, "tractor-1", count=9)
    calls = []

    def fails_at_some(data: bytes) -> TakenPiece:
        calls.append(data)
        if len(calls) in {2, 3, 5, 6}:
            raise LinkError("the server answered 500", status=500)
        return TakenPiece(device="tractor-1", kind="report", whole=True)

    found = bring_home(stick, fails_at_some)["tractor-1"]
    assert (found.pieces, found.refused, found.removed) == (5, 4, 5)
    assert "the server answered 500" in found.complaints[0]

    def fails(data: bytes) -> TakenPiece:
        calls.append(data)
        raise LinkError("the server answered 500", status=500)

    calls.clear()
    with pytest.raises(LinkError, match=r"500 \(2 of 4 pieces"):
        bring_home(stick, fails)
    assert len(calls) == 3


async def test_the_folder_of_results_may_be_where_one_stands(
    house: House, stick: Path, monkeypatch: pytest.MonkeyPatch
):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    monkeypatch.chdir(stick / "headland-results")
    assert (await imported(house, Path()))["rows"] == 1


async def test_the_audit_says_who_brought_a_machines_results_once_for_a_stick(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    for row in (b"a", b"b"):
        lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [row])))
    await imported(house, stick)
    [event] = await house.events("brought-home")
    assert (event["device"], event["who"], event["detail"]) == (
        "tractor-1",
        "the operator of the server",
        "on a stick",
    )


async def test_a_clock_that_jumped_signs_no_receipt(house: House, stick: Path, monkeypatch: pytest.MonkeyPatch):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    await asyncio.to_thread(served_last, house)
    monkeypatch.setattr("server.kits.command.system_now_ms", lambda: house.now_ms + 9 * 365 * 86_400_000)
    assert (await imported(house, stick))["rows"] == 1
    [receipt] = found_in(stick, "receipts/*.json")
    assert json.loads(receipt.read_text())["signed"]["version"] < house.now_ms // 1000 + 86_400


async def test_the_table_says_for_each_machine_what_came(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    arguments = ["kit", "import", "--state", str(house.state), str(stick)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert "tractor-1" in result.output
    assert "new results" in result.output
