"""O26 in the outbox: a receipt for other rows, another machine, epoch or generation deletes nothing, ever."""

import hashlib
from collections.abc import Callable

import msgspec
import pytest

from device.outbox.box import MIN_BUDGET_BYTES
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import rows_sha256
from tests.fakes.contact_machine import opened

ROWS = [b"row %d" % number for number in range(10)]


def genuine(epoch: str, generation: str) -> ReceiptsBody:
    covered = RowRange(lane="results", first=0, last=9, rows_sha256=rows_sha256(ROWS))
    return ReceiptsBody(device="tractor-1", epoch=epoch, generation=generation, rows=(covered,))


def ranged(receipt: ReceiptsBody, **changes: object) -> ReceiptsBody:
    return msgspec.structs.replace(receipt, rows=(msgspec.structs.replace(receipt.rows[0], **changes),))


FORGERIES: dict[str, Callable[[ReceiptsBody], ReceiptsBody]] = {
    "another machine": lambda receipt: msgspec.structs.replace(receipt, device="tractor-2"),
    "another epoch": lambda receipt: msgspec.structs.replace(receipt, epoch="f" * 32),
    "another generation": lambda receipt: msgspec.structs.replace(receipt, generation="f" * 32),
    "another lane": lambda receipt: ranged(receipt, lane="alarms"),
    "other rows": lambda receipt: ranged(receipt, rows_sha256=rows_sha256([*ROWS[:-1], b"other"])),
    "rows in another order": lambda receipt: ranged(receipt, rows_sha256=rows_sha256(ROWS[::-1])),
    "the hash of the bytes run together": lambda receipt: ranged(
        receipt, rows_sha256=hashlib.sha256(b"".join(ROWS)).hexdigest()
    ),
    "fewer rows under the whole hash": lambda receipt: ranged(receipt, last=8),
    "shifted": lambda receipt: ranged(receipt, first=1),
    "more rows than there are": lambda receipt: ranged(receipt, last=10),
    "a range turned round": lambda receipt: ranged(receipt, first=9, last=0),
    "everything there could be": lambda receipt: ranged(receipt, first=0, last=1 << 53),
    "no rows": lambda receipt: msgspec.structs.replace(receipt, rows=()),
    "a loss that never was": lambda receipt: msgspec.structs.replace(receipt, rows=(), losses=receipt.rows),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_attack_o26_a_forged_receipt_deletes_nothing(tmp_path, name):
    async with opened(tmp_path) as machine:
        await machine.meets()
        box = machine.outbox
        for row in ROWS:
            await box.enqueue("results", row)
        receipt = genuine(box.epoch, machine.server.generation)
        assert await box.apply_receipt(FORGERIES[name](receipt)) == 0
        assert box.counts()["results"].queued == 10
        assert await box.apply_receipt(receipt) == 10, "the genuine one still counts"


async def test_attack_o26_a_receipt_that_is_replayed_covers_what_it_covered_and_nothing_of_a_new_life(tmp_path):
    """Trust takes receipts in any order, old ones too: it is the rows' hash, epoch and generation that hold them."""
    async with opened(tmp_path) as machine:
        await machine.meets()
        box = machine.outbox
        await box.enqueue_all([("results", row) for row in ROWS])
        old = genuine(box.epoch, machine.server.generation)
        assert await box.apply_receipt(old) == 10
        await box.enqueue_all([("results", row) for row in ROWS])
        assert await box.apply_receipt(old) == 0, "the same bytes under other numbers"
        await box.begin_epoch()
        await box.enqueue_all([("results", row) for row in ROWS])
        assert await box.apply_receipt(old) == 0, "the same bytes under the same numbers of another epoch"
        machine.server.generation = "b" * 32
        await machine.meets()
        assert box.counts()["results"].queued == 30, "a server that was set back may have lost what it had receipted"
        assert await box.apply_receipt(old) == 0
        assert box.counts()["results"].queued == 30


async def test_attack_o26_receipted_rows_are_deleted_only_when_space_is_needed_and_others_stay(tmp_path):
    async with opened(tmp_path, budget_bytes=MIN_BUDGET_BYTES) as machine:
        await machine.meets()
        box = machine.outbox
        for number in range(60):
            await box.enqueue("results", b"%d " % number * 300)
        whole = await box.next_batch()
        forged = RowRange(lane="results", first=0, last=59, rows_sha256="0" * 64)
        await box.apply_receipt(
            ReceiptsBody(device="tractor-1", epoch=box.epoch, generation=machine.server.generation, rows=(forged,))
        )
        for _ in range(60):
            await box.enqueue("alarms", b"x" * 1000)
        assert await box.next_batch(len(whole.lanes[0].rows[0])) is not None
        counts = box.counts()
        assert counts["results"].queued + counts["results"].lost == 60, "dropped rows are counted, never receipted"
        assert counts["results"].receipted == 0
