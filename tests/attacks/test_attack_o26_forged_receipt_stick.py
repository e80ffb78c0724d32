"""O25, O26 by stick: a receipt there deletes nothing unless the server signed it for these very rows of this machine.

The trust that judges is the real one, under metadata that real managers signed.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace
from securesystemslib.signer import CryptoSigner

from protocol.objects import ReceiptsBody, RowRange
from protocol.results import rows_sha256
from signing.objects import sign_object
from tests.fakes.contact_machine import opened
from tests.fakes.field import DEVICE, Field
from tests.unit.device.kits.test_export import BIG, KEY, Place

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
GENERATION = "9" * 32
ROWS = [b"row %d" % number for number in range(10)]

FORGERIES: dict[str, Callable[[ReceiptsBody], ReceiptsBody]] = {
    "another machine": lambda body: replace(body, device="tractor-2"),
    "another epoch": lambda body: replace(body, epoch="f" * 32),
    "another life of the server": lambda body: replace(body, generation="f" * 32),
    "other rows": lambda body: replace(body, rows=(replace(body.rows[0], rows_sha256=rows_sha256(ROWS[::-1])),)),
}


class StickTrust:
    """The real judge, as the agent has it."""

    def __init__(self, field: Field) -> None:
        self.field = field

    async def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        return await asyncio.to_thread(lambda: self.field.judge().receipts(texts))


@pytest.mark.parametrize("what", [*FORGERIES, "another key"])
async def test_attack_o26_a_receipt_from_a_stick_deletes_only_what_the_server_says_it_has(
    tmp_path: Path, what: str
) -> None:
    field = await asyncio.to_thread(Field, tmp_path / "field", NOW)
    await asyncio.to_thread(field.contact)
    (tmp_path / "stick").mkdir()
    async with opened(tmp_path, budget_bytes=BIG, key=KEY) as machine:
        machine.trust = StickTrust(field)
        place = Place(machine, tmp_path / "stick")
        await machine.outbox.meet_generation(GENERATION)
        await machine.outbox.enqueue_all([("results", row) for row in ROWS])
        await place.put_in()
        covered = RowRange(lane="results", first=0, last=9, rows_sha256=rows_sha256(ROWS))
        genuine = ReceiptsBody(device=DEVICE, epoch=machine.outbox.epoch, generation=GENERATION, rows=(covered,))
        signer = field.house.online["director"]["receipts"]
        version, expires = int(field.now.timestamp()), field.now + timedelta(days=1)
        folder = place.results / "receipts"
        folder.mkdir()
        forged = (
            sign_object(genuine, CryptoSigner.generate_ed25519(), version, expires)
            if what == "another key"
            else sign_object(FORGERIES[what](genuine), signer, version, expires)
        )
        (folder / "forged.json").write_text(forged)
        done = await place.put_in()
        assert (done.settled, done.removed, machine.outbox.queued()) == (0, 0, 10)
        (folder / "genuine.json").write_text(sign_object(genuine, signer, version, expires))
        assert (await place.put_in()).settled == 10, "the genuine one still counts"
