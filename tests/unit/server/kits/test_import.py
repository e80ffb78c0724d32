"""`headland-server kit import` beside a running server: each piece once, bad ones in words, receipts on the stick."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from protocol.errors import StateError
from server import sealing_keys
from server.cli import main
from signing.kits.bringing import bring_home
from tests.fakes.pieces import lay, piece, report, sealing_key_of, signed_report
from tests.fakes.server_house import House, body_of, running


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


def found_in(stick: Path, pattern: str) -> list[Path]:
    return list(stick.rglob(pattern))


async def imported(house: House, stick: Path, *options: str) -> dict:
    arguments = ["kit", "import", "--state", str(house.state), str(stick), "--json", *options]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert result.exit_code == 0, result.output
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
    found = await imported(house, stick)
    assert (found["rows"], found["removed"], found["complaints"]) == (1, 1, 2)
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
    found = await imported(house, stick)
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


async def test_the_table_says_for_each_machine_what_came(house: House, stick: Path):
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    lay(stick, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    arguments = ["kit", "import", "--state", str(house.state), str(stick)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert "tractor-1" in result.output
    assert "new results" in result.output
