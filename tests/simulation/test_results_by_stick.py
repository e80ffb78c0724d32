"""Many machines, two sticks and copies of them, contacts in between, drops, new epochs, a restored server: in the end
the server's count is exact, whatever the order. What was ingested and what was lost is what was produced, each once."""

import asyncio
import random
import secrets
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from device.kits.export import Export
from device.outbox.batch import sign_batch
from device.outbox.box import MIN_BUDGET_BYTES, Outbox
from device.state_db import StateDb
from protocol import limits
from protocol.kits import StickReport
from protocol.objects import ReceiptsBody
from protocol.wire import decode, encode
from server.app import open_pieces
from server.storage.catalog import Catalog
from signing.kits.bringing import bring_home
from tests.fakes.pieces import report, sealing_key_of
from tests.fakes.server_house import House, Machine, body_of, no_secret, running
from tests.fakes.trust import FakeTrust

STEPS: Final = 40
BIG: Final = 64 * limits.MIB


class BelievingTrust(FakeTrust):
    """Takes what a signed receipt says without the director's metadata."""

    async def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        return tuple(decode(encode(body_of(text)), ReceiptsBody, limit=limits.OBJECT_BYTES) for text in texts)


class Tractor:
    """A machine with a real outbox."""

    def __init__(self, machine: Machine, folder: Path, budget_bytes: int) -> None:
        self.machine, self.folder, self.budget_bytes = machine, folder, budget_bytes
        self.produced: set[bytes] = set()
        self.trust = BelievingTrust()

    async def open(self, sealing_key: str) -> None:
        await asyncio.to_thread(self.folder.mkdir)
        self.box = await Outbox.opened(
            self.folder / "outbox.db",
            self.machine.name,
            budget_bytes=self.budget_bytes,
            now_ms=lambda: 1,
            draw_token=lambda: secrets.token_hex(16),
        )
        self.state = await asyncio.to_thread(StateDb, self.folder / "state.db")
        self.export = Export(
            self.machine.name,
            outbox=self.box,
            key=self.machine.key,
            state=self.state,
            trust=self.trust,
            report=self._report,
            sealing_key=lambda: sealing_key,
        )

    async def _report(self, number: int) -> StickReport:
        self.machine.epoch = self.box.epoch
        return report(self.machine, number)

    async def produce(self, rng: random.Random) -> None:
        for _ in range(rng.randrange(1, 8)):
            row = rng.randbytes(rng.choice((40, 3000, 60_000))) + secrets.token_bytes(8)
            self.produced.add(row)
            await self.box.enqueue(rng.choice(("alarms", "results", "results")), row)

    async def contact(self) -> None:
        self.machine.epoch = self.box.epoch
        answer = await self.machine.sync(lanes=dict(self.box.positions()))
        await self.box.meet_generation(answer.generation)
        for receipt in await self.trust.receipts(answer.receipts):
            await self.box.apply_receipt(receipt)

    async def drain(self, most: int = 1000) -> None:
        for _ in range(most):
            batch = await self.box.next_batch(50_000)
            if batch is None:
                return
            code, receipt = await self.machine.send(sign_batch(batch, self.machine.key))
            assert code == 200, receipt
            for each in await self.trust.receipts((encode(receipt).decode(),)):
                assert await self.box.apply_receipt(each)


def brought(house: House, stick: Path, *, keep: bool) -> None:
    catalog = Catalog(f"sqlite:///{house.state / 'catalog.db'}", migrate=False)
    try:
        pieces = open_pieces(house.state, catalog, lambda: house.now_ms, no_secret)
        for found in bring_home(stick, partial(pieces.take, who="ada"), keep=keep).values():
            assert not found.complaints, found
    finally:
        catalog.close()


def stored(state: Path, device: str) -> list[bytes]:
    with sqlite3.connect(state / "catalog.db") as connection:
        return [body for (body,) in connection.execute("SELECT body FROM results WHERE device = ?", (device,))]


async def restored(house: House, backup: Path) -> None:
    """The server comes out of a backup, in another life."""
    await house.stop()

    def put_back() -> None:
        for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
            (house.state / name).unlink(missing_ok=True)
        shutil.copy(backup, house.state / "catalog.db")
        with sqlite3.connect(house.state / "catalog.db") as connection:
            connection.execute("UPDATE facts SET value = ? WHERE name = 'generation'", (secrets.token_hex(16),))

    await asyncio.to_thread(put_back)
    await house.start()


def back_up(state: Path, backup: Path) -> None:
    with sqlite3.connect(state / "catalog.db") as source, sqlite3.connect(backup) as target:
        source.backup(target)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("seed", "kind"), [(1, "drops"), (2, "drops"), (3, "restore"), (4, "restore")])
async def test_ingested_and_lost_are_what_was_produced_in_any_order(tmp_path: Path, seed: int, kind: str):
    rng = random.Random(seed)
    async with running(tmp_path / "house") as house:
        await house.publish()
        sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
        budget_bytes = MIN_BUDGET_BYTES if kind == "drops" else BIG
        tractors = [
            Tractor(await house.enrol(f"tractor-{n}"), tmp_path / f"tractor-{n}", budget_bytes) for n in range(3)
        ]
        for tractor in tractors:
            await tractor.open(sealing_key)
            if rng.random() < 0.7:
                await tractor.contact()
        sticks = [tmp_path / "stick-a", tmp_path / "stick-b"]
        for stick in sticks:
            await asyncio.to_thread(stick.mkdir)
        backup = tmp_path / "backup.db"
        for step in range(STEPS):
            tractor, stick = rng.choice(tractors), rng.choice(sticks)
            if kind == "restore" and step in (STEPS // 3, STEPS * 2 // 3):
                await (
                    asyncio.to_thread(back_up, house.state, backup) if step < STEPS // 2 else restored(house, backup)
                )
            has_results = await asyncio.to_thread((stick / "headland-results").exists)
            match rng.choices(
                ("produce", "export", "import", "copy", "contact", "drain", "epoch"), (8, 8, 3, 2, 3, 2, 1)
            )[0]:
                case "produce":
                    await tractor.produce(rng)
                case "export":
                    assert (await tractor.export.to(stick)).end == "complete"
                case "import" if has_results:
                    await asyncio.to_thread(brought, house, stick, keep=rng.random() < 0.5)
                case "copy" if has_results:
                    sticks.append(tmp_path / f"copy-{step}")
                    await asyncio.to_thread(shutil.copytree, stick, sticks[-1])
                case "contact":
                    await tractor.contact()
                case "drain":
                    await tractor.contact()
                    await tractor.drain(rng.randrange(1, 5))
                case "epoch":
                    await tractor.box.begin_epoch()
                case _:
                    pass
        assert kind != "drops" or any(tractor.box.lost() for tractor in tractors)
        # In the end everybody comes home: the first machine by stick alone, the sticks in any order.
        for tractor in tractors:
            await tractor.contact()
        for tractor in tractors[1:]:
            await tractor.drain()
        assert (await tractors[0].export.to(sticks[0])).end == "complete"
        rng.shuffle(sticks)
        for stick in sticks:
            if await asyncio.to_thread((stick / "headland-results").exists):
                await asyncio.to_thread(brought, house, stick, keep=True)
        await tractors[0].contact()  # brings the receipts
        for tractor in tractors:
            shown = await house.must("GET", f"/api/v1/devices/{tractor.machine.name}")
            kept = await asyncio.to_thread(stored, house.state, tractor.machine.name)
            assert len(kept) == len(set(kept)) == sum(shown["ingested"].values()), "nothing is there twice"
            assert set(kept) <= tractor.produced
            assert len(kept) + sum(shown["lost"].values()) == len(tractor.produced) == tractor.box.produced()
            assert shown["conflicts"] == 0
            assert not shown["set_apart"]
            assert tractor.box.queued() == 0
            if kind == "drops":
                assert sum(shown["lost"].values()) <= tractor.box.lost()
            else:
                assert set(kept) == tractor.produced
        for tractor in tractors:
            await tractor.box.close()
            await asyncio.to_thread(tractor.state.close)
