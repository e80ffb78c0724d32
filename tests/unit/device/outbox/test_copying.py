"""Copies of what waits, for a stick: all of it, once, alarms first, whatever happens beside, and nothing is touched."""

import asyncio
import contextlib
import itertools
import sqlite3
from collections import Counter

import pytest

from device.outbox.box import MIN_BUDGET_BYTES, Outbox
from device.outbox.copying import NOWHERE, Elsewhere
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import BatchBody, Loss, rows_sha256
from protocol.spans import Spans
from protocol.wire import decode

GENERATION = "9" * 32
BIG = 64 << 20


@pytest.fixture
async def opened(tmp_path):
    tokens = (f"{number:032x}" for number in itertools.count(1))
    boxes = []

    async def open_(budget_bytes=BIG):
        box = await Outbox.opened(
            tmp_path / "outbox.db",
            "tractor-1",
            budget_bytes=budget_bytes,
            now_ms=lambda: 1,
            draw_token=lambda: next(tokens),
        )
        await box.meet_generation(GENERATION)
        boxes.append(box)
        return box

    open_.path = tmp_path / "outbox.db"
    yield open_
    for box in boxes:
        await box.close()


async def copied(box: Outbox, elsewhere=NOWHERE, limit_bytes=10_000) -> list[BatchBody]:
    copies = box.copies(elsewhere)
    found = []
    while (batch := await box.next_copy(copies, limit_bytes)) is not None:
        found.append(batch)
    return found


def rows(batches: list[BatchBody]) -> dict[tuple[str, str, int], bytes]:
    found = {}
    for batch in batches:
        for part in batch.lanes:
            for seq, body in enumerate(part.rows, part.first):
                assert (batch.epoch, part.lane, seq) not in found, "copied twice"
                found[batch.epoch, part.lane, seq] = body
    return found


def lost(batches: list[BatchBody]) -> list[Loss]:
    return [decode(raw, Loss, limit=1000) for batch in batches for raw in batch.losses]


def receipt(batch: BatchBody) -> ReceiptsBody:
    return ReceiptsBody(
        device="tractor-1",
        epoch=batch.epoch,
        generation=GENERATION,
        rows=tuple(
            RowRange(
                lane=part.lane,
                first=part.first,
                last=part.first + len(part.rows) - 1,
                rows_sha256=rows_sha256(part.rows),
            )
            for part in batch.lanes
        ),
    )


def content(path):
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [line for line in connection.iterdump() if "INSERT" in line]


async def test_all_that_waits_is_copied_once_alarms_of_every_epoch_first_and_nothing_is_touched(opened):
    box = await opened()
    for number in range(30):
        await box.enqueue("results", b"a%d" % number + b"." * 900)
    await box.enqueue("alarms", b"fire")
    old = box.epoch
    await box.begin_epoch()
    await box.enqueue_all([("results", b"new"), ("alarms", b"smoke")])
    before = content(opened.path)
    batches = await copied(box)
    assert content(opened.path) == before
    assert [(batch.epoch, batch.lanes[0].lane) for batch in batches[:2]] == [(old, "alarms"), (box.epoch, "alarms")]
    assert len(batches) > 5
    assert Counter(rows(batches).values()) == Counter(
        [b"a%d" % number + b"." * 900 for number in range(30)] + [b"fire", b"smoke", b"new"]
    )
    assert box.queued() == 33


async def test_what_lies_elsewhere_is_left_out_and_what_a_receipt_covers_too(opened):
    box = await opened()
    await box.enqueue_all([("results", b"%d" % number) for number in range(20)])
    await box.apply_receipt(receipt(await box.next_batch(5)))  # one digit each: rows 0 to 4
    elsewhere = Elsewhere(rows={(box.epoch, "results"): Spans(((8, 9), (15, 15)))})
    assert [seq for _, _, seq in rows(await copied(box, elsewhere))] == [5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 18, 19]


async def test_losses_are_copied_before_results_and_those_elsewhere_are_not(opened):
    box = await opened(MIN_BUDGET_BYTES)
    for number in range(40):
        await box.enqueue("results", bytes([number]) * 20_000)
    batches = await copied(box)
    assert batches[0].losses
    told = lost(batches)
    gone = Spans.of((loss.first, loss.last) for loss in told)
    assert len(gone) == box.lost() > 0
    assert {seq for _, _, seq in rows(batches)} == set(range(40)) - {n for n in range(40) if n in gone}
    assert not lost(await copied(box, Elsewhere(losses={(box.epoch, "results"): gone})))


async def test_a_drain_that_receipts_and_a_budget_that_drops_go_on_beside_a_copy(opened):
    box = await opened(MIN_BUDGET_BYTES)
    for number in range(8):
        await box.enqueue("results", bytes([number]) * 20_000)
    copies = box.copies()
    first = await box.next_copy(copies, 40_000)
    assert [part.first for part in first.lanes] == [0]
    await box.apply_receipt(receipt(await box.next_batch(100_000)))  # five of them
    for number in range(8, 40):
        await box.enqueue("results", bytes([number]) * 20_000)  # drops what was just to be copied
    dropped = box.lost()
    assert dropped > 0
    rest = []
    while (batch := await box.next_copy(copies, 40_000)) is not None:
        rest.append(batch)
    for (_, _, seq), body in rows([first, *rest]).items():
        assert body == bytes([seq]) * 20_000
    assert max(seq for _, _, seq in rows([first, *rest])) <= 7, "rows that came later are not of this copy"


async def test_a_damaged_row_is_left_out_of_a_copy_and_the_rows_around_it_keep_their_numbers(opened):
    box = await opened()
    await box.enqueue_all([("results", b"row %d" % number) for number in range(5)])
    await box.close()
    with contextlib.closing(sqlite3.connect(opened.path)) as connection:
        connection.execute("UPDATE rows SET body = x'00' WHERE body = CAST('row 2' AS BLOB)")
        connection.commit()
    box = await opened()
    assert {seq: body for (_, _, seq), body in rows(await copied(box)).items()} == {
        seq: b"row %d" % seq for seq in (0, 1, 3, 4)
    }


async def test_settled_is_what_the_server_receipted_and_not_what_was_dropped_here(opened):
    box = await opened()
    await box.enqueue_all([("results", b"%d" % number) for number in range(10)])
    epoch, few, all_ = box.epoch, {"results": Spans(((0, 4),))}, {"results": Spans(((0, 9),))}
    assert not await box.is_settled(epoch, few, {})
    await box.apply_receipt(receipt(await box.next_batch(5)))
    assert await box.is_settled(epoch, few, {})
    assert not await box.is_settled(epoch, all_, {})
    assert not await box.is_settled("f" * 32, {}, {}), "an epoch that nobody remembers may be all that there is"


async def test_rows_that_were_dropped_are_not_settled_however_often_the_loss_was_receipted(opened):
    box = await opened(MIN_BUDGET_BYTES)
    for number in range(40):
        await box.enqueue("results", bytes([number]) * 20_000)
    told = lost(await copied(box))[0]
    span = {"results": Spans(((told.first, told.last),))}
    assert not await box.is_settled(box.epoch, {}, span)
    while (batch := await box.next_batch()) is not None:
        losses = tuple(
            RowRange(lane=loss.lane, first=loss.first, last=loss.last, rows_sha256=_sha256(raw))
            for raw, loss in zip(batch.losses, lost([batch]), strict=True)
        )
        body = receipt(batch)
        await box.apply_receipt(ReceiptsBody(**{**_fields(body), "losses": losses}))
    assert await box.is_settled(box.epoch, {}, span)
    assert not await box.is_settled(box.epoch, span, {})


async def test_new_rows_are_not_held_up_by_a_copy_that_is_under_way(opened):
    box = await opened()
    await box.enqueue_all([("results", b"x" * 1000) for _ in range(50)])
    copies = box.copies()
    while await box.next_copy(copies, 5000) is not None:
        async with asyncio.timeout(5):
            await box.enqueue("alarms", b"now")


def _sha256(raw: bytes) -> str:
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def _fields(body: ReceiptsBody) -> dict:
    return {"device": body.device, "epoch": body.epoch, "generation": body.generation, "rows": body.rows}
