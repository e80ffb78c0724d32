"""The manager's tool brings a stick home to a running server, over TLS, and takes receipts along on the next one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from protocol.errors import LinkError, Reason, Refused
from server import sealing_keys
from server.kits.pieces import NOTED_MS
from signing.kits.bringing import Brought, TakenPiece, bring_home
from signing.kits.receipts import put_receipts
from signing.server_client import ServerClient
from signing.workspace import ServerAccess
from tests.fakes.pieces import lay, piece, report, sealing_key_of, signed_report
from tests.fakes.server_house import House, body_of, running, signed_by

PRODUCT = "pest-detector"

Client = Callable[[], ServerClient]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with running(tmp_path / "house") as house:
        await house.publish()
        yield house


@pytest.fixture
def client(house: House) -> Iterator[Callable[[], ServerClient]]:
    """Makes clients for where the server listens now."""
    made: list[ServerClient] = []

    def make() -> ServerClient:
        made.append(ServerClient(ServerAccess(url=house.running.operator_url, ca_pem=house.ca_pem, token=house.token)))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def brought(server: ServerClient, stick: Path) -> dict[str, Brought]:
    return await asyncio.to_thread(bring_home, stick, lambda data: server.send("/kits/results", data, TakenPiece))


async def test_a_stick_is_uploaded_each_piece_with_its_word(house: House, client: Client, tmp_path: Path) -> None:
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    good = piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a", b"b"]))
    lay(tmp_path, "tractor-1", good)
    lay(tmp_path, "tractor-1", piece(sealing_key, "tractor-1", "report", signed_report(machine, report(machine, 1))))
    forged = lay(tmp_path, "tractor-9", piece(sealing_key, "tractor-9", "batch", machine.batch("results", [b"x"])))
    found = await brought(client(), tmp_path)
    one = found["tractor-1"]
    assert (one.rows, one.reports, one.pieces, one.removed, one.complaints) == (2, 1, 2, 2, [])
    assert "no device tractor-9" in found["tractor-9"].complaints[0]
    assert forged.exists()
    (receipt,) = (tmp_path / "headland-results" / "tractor-1" / "receipts").iterdir()
    assert signed_by(receipt.read_text(), house, "receipts")
    lay(tmp_path, "tractor-1", good)
    assert (await brought(client(), tmp_path))["tractor-1"].known == 2


async def test_a_running_server_opens_what_was_sealed_to_a_key_that_was_made_since(
    house: House, client: Client, tmp_path: Path
) -> None:
    old = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    assert await asyncio.to_thread(partial(sealing_keys.make, house.state / "keys", after=old))
    for number, key in enumerate((old, await asyncio.to_thread(sealing_key_of, house.state))):
        lay(tmp_path, "tractor-1", piece(key, "tractor-1", "batch", machine.batch("results", [b"%d" % number])))
    found = (await brought(client(), tmp_path))["tractor-1"]
    assert (found.rows, found.complaints) == (2, [])


async def test_a_link_that_breaks_ends_the_upload_and_the_same_again_goes_on(
    house: House, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    lay(tmp_path, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"a"])))
    server = client()
    await house.stop()
    with pytest.raises(LinkError):
        await asyncio.to_thread(bring_home, tmp_path, lambda data: server.send("/kits/results", data, TakenPiece))
    await house.start()
    assert (await brought(client(), tmp_path))["tractor-1"].rows == 1


async def test_a_token_that_ended_ends_the_upload_with_one_word(house: House, client: Client, tmp_path: Path) -> None:
    for name in ("tractor-1", "tractor-2"):
        lay(tmp_path, name, piece("00" * 31 + "09", name, "batch", b"as long as it is whole"))
    house.token = "0" * 64
    with pytest.raises(Refused, match="0 of 2 pieces") as raised:
        await brought(client(), tmp_path)
    assert raised.value.reason is Reason.TOKEN


async def test_the_audit_says_whose_token_brought_it(house: House, client: Client, tmp_path: Path) -> None:
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machine = await house.enrol("tractor-1")
    for row in (b"a", b"b"):
        lay(tmp_path, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [row])))
        await brought(client(), tmp_path)
    [event] = await house.events("brought-home")
    assert (event["device"], event["who"], event["detail"]) == ("tractor-1", "operator", "on a stick")
    house.now_ms += NOTED_MS
    lay(tmp_path, "tractor-1", piece(sealing_key, "tractor-1", "batch", machine.batch("results", [b"c"])))
    await brought(client(), tmp_path)
    assert len(await house.events("brought-home")) == 2


async def test_the_next_stick_takes_receipts_along_for_its_machines(
    house: House, client: Client, tmp_path: Path
) -> None:
    sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
    machines = [await house.enrol(f"tractor-{number}") for number in (1, 2, 3)]
    for machine in machines[:2]:
        lay(tmp_path, machine.name, piece(sealing_key, machine.name, "batch", machine.batch("results", [b"a"])))
    await brought(client(), tmp_path)
    server = client()
    for stick, asked, named in (
        ("for one", ("tractor-2", "tractor-3"), {"tractor-2"}),
        ("for all", None, {"tractor-1", "tractor-2"}),
    ):
        out = tmp_path / stick
        await asyncio.to_thread(out.mkdir)
        for _ in range(2):  # a stick that was begun is gone on with
            assert await asyncio.to_thread(put_receipts, server, out, PRODUCT, asked) == len(named)
        found = await asyncio.to_thread(lambda out=out: list(out.rglob("*.json")))
        assert {each.parts[-3] for each in found} == {body_of(each.read_text())["device"] for each in found} == named
    assert await asyncio.to_thread(put_receipts, server, tmp_path, "another", None) == 0
