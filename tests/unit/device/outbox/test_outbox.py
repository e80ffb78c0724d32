"""The outbox: durable rows, receipts that must match, drops that are counted, epochs that tell its lives apart."""

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from device.outbox import core
from device.outbox.box import MIN_BUDGET_BYTES, LaneCounts, Outbox, read_counts
from device.outbox.core import Core
from device.outbox.room import record_loss
from protocol import limits
from protocol.errors import Refused, StateError
from protocol.ids import digest
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import BatchBody, Loss, rows_sha256
from protocol.spans import Spans
from protocol.wire import decode

GENERATION = "9" * 32
BIG_BUDGET = 64 * limits.MIB


class Opener:
    """Opens outboxes of one file and closes what a test left open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[str] = []
        self._tokens = (f"{number:032x}" for number in itertools.count(1))
        self._open: list[Outbox] = []

    async def __call__(self, budget_bytes: int = BIG_BUDGET, path: Path | None = None) -> Outbox:
        box = await Outbox.opened(
            path or self.path,
            "tractor-1",
            budget_bytes=budget_bytes,
            now_ms=lambda: 1_700_000_000_000,
            draw_token=lambda: next(self._tokens),
            on_damage=self.damage.append,
        )
        self._open.append(box)
        return box

    async def close_all(self) -> None:
        for box in self._open:
            await box.close()


@pytest.fixture
async def opened(tmp_path):
    opener = Opener(tmp_path / "outbox.db")
    yield opener
    await opener.close_all()


def receipt(batch: BatchBody, *, generation: str = GENERATION, device: str = "tractor-1") -> ReceiptsBody:
    losses = [decode(record, Loss, limit=1000) for record in batch.losses]
    return ReceiptsBody(
        device=device,
        epoch=batch.epoch,
        generation=generation,
        rows=tuple(
            RowRange(
                lane=part.lane,
                first=part.first,
                last=part.first + len(part.rows) - 1,
                rows_sha256=rows_sha256(part.rows),
            )
            for part in batch.lanes
        ),
        losses=tuple(
            RowRange(lane=loss.lane, first=loss.first, last=loss.last, rows_sha256=digest(record))
            for loss, record in zip(losses, batch.losses, strict=True)
        ),
    )


def rows_of(batch: BatchBody) -> list[tuple[str, int, bytes]]:
    return [(part.lane, number, row) for part in batch.lanes for number, row in enumerate(part.rows, start=part.first)]


async def fill(box: Outbox, lane: str, rows: Iterable[bytes]) -> None:
    """Enqueues a few rows at a time, so that a test does not wait for a flush a row."""
    waiting = list(rows)
    for start in range(0, len(waiting), 20):
        await asyncio.gather(*(box.enqueue(lane, row) for row in waiting[start : start + 20]))


async def drain(box: Outbox, limit_bytes: int = 4096) -> list[BatchBody]:
    batches = []
    while (batch := await box.next_batch(limit_bytes)) is not None:
        batches.append(batch)
        assert await box.apply_receipt(receipt(batch)) > 0
    return batches


async def test_rows_are_numbered_by_lane_without_gaps_and_come_out_alarms_first_and_alone(opened):
    box = await opened()
    assert [await box.enqueue("results", b"r%d" % n) for n in range(3)] == [0, 1, 2]
    assert [await box.enqueue("alarms", b"a%d" % n) for n in range(2)] == [0, 1]
    batch = await box.next_batch()
    assert rows_of(batch) == [("alarms", 0, b"a0"), ("alarms", 1, b"a1")]
    assert batch.device == "tractor-1"
    assert batch.epoch == box.epoch
    assert box.positions()["results"].next_seq == 3
    assert box.positions()["alarms"].queued == 2
    await box.meet_generation(GENERATION)
    await box.apply_receipt(receipt(batch))
    assert rows_of(await box.next_batch()) == [("results", n, b"r%d" % n) for n in range(3)]


async def test_many_waiting_rows_share_a_transaction_and_keep_their_order(opened):
    box = await opened()
    numbers = await asyncio.gather(*(box.enqueue("results", b"%d" % n) for n in range(5000)))
    assert numbers == list(range(5000))
    assert [row for _, _, row in rows_of(await box.next_batch())] == [b"%d" % n for n in range(5000)]


async def test_rows_that_are_enqueued_together_are_kept_together_or_not_at_all(opened):
    box = await opened()
    rows = [("results", b"r0"), ("alarms", b"a0"), ("results", b"r1")]
    with pytest.raises(Refused):
        await box.enqueue_all([*rows, ("results", b"x" * (limits.ROW_BYTES + 1))])
    numbers, single = await asyncio.gather(box.enqueue_all(rows), box.enqueue("alarms", b"a1"))
    assert (numbers, single) == ([0, 0, 1], 1)
    assert await box.enqueue_all([]) == []


async def test_rows_and_epoch_survive_the_process(opened):
    box = await opened()
    for number in range(10):
        await box.enqueue("results", b"%d" % number)
    epoch = box.epoch
    await box.close()
    again = await opened()
    assert again.epoch == epoch
    assert await again.enqueue("results", b"10") == 10
    assert [number for _, number, _ in rows_of(await again.next_batch())] == list(range(11))


async def test_a_killed_process_loses_no_acknowledged_row(tmp_path):
    program = """
import asyncio, sys, itertools
from pathlib import Path
from device.outbox.box import Outbox
async def main():
    path = Path(sys.argv[1])
    box = await Outbox.opened(path, "d", budget_bytes=1 << 26, now_ms=lambda: 0, draw_token=lambda: "a" * 32)
    for n in itertools.count():
        number = await box.enqueue("results", b"row %d" % n)
        sys.stdout.write(f"{number}\\n"); sys.stdout.flush()
asyncio.run(main())
"""
    path = tmp_path / "outbox.db"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)  # noqa: ASYNC220  (nothing else runs in this loop)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = [*lines, *process.stdout.read().splitlines(keepends=True)]
    process.wait(10)
    process.stdout.close()
    complete = [line for line in acknowledged if line.endswith(b"\n")]
    assert read_counts(path)["results"].produced >= len(complete) >= 200
    box = Outbox(path, "d", budget_bytes=1 << 26, now_ms=lambda: 0, draw_token=lambda: "b" * 32)
    batch = await box.next_batch()
    await box.close()
    assert [row for _, _, row in rows_of(batch)][: len(complete)] == [b"row %d" % n for n in range(len(complete))]


async def test_no_call_blocks_the_event_loop(opened):
    await opened()  # what is imported late is imported now
    with blockbuster_ctx("device"):
        box = await opened(path=opened.path.with_name("other.db"))
        await box.enqueue("results", b"x")
        await box.meet_generation(GENERATION)
        batch = await box.next_batch()
        assert await box.apply_receipt(receipt(batch)) == 1
        await box.close()


async def test_a_receipt_settles_rows_and_they_are_kept_until_space_is_needed(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    await fill(box, "results", (b"%d" % number for number in range(100)))
    await drain(box, 50)
    assert box.counts()["results"] == LaneCounts(produced=100, queued=0, receipted=100)
    assert await box.next_batch() is None
    with sqlite3.connect(opened.path) as connection:
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (100,)
    connection.close()


async def test_receipts_are_a_union_and_may_come_in_any_order_and_twice(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    await fill(box, "results", (b"%d" % number for number in range(30)))
    whole = await box.next_batch()
    [part] = whole.lanes

    def ranged(first: int, last: int) -> ReceiptsBody:
        rows = part.rows[first : last + 1]
        covered = RowRange(lane="results", first=first, last=last, rows_sha256=rows_sha256(rows))
        return ReceiptsBody(device="tractor-1", epoch=whole.epoch, generation=GENERATION, rows=(covered,))

    assert await box.apply_receipt(ranged(20, 29)) == 10
    assert await box.apply_receipt(ranged(5, 24)) == 15
    assert await box.apply_receipt(ranged(5, 24)) == 0
    assert [number for _, number, _ in rows_of(await box.next_batch())] == [0, 1, 2, 3, 4]
    assert await box.apply_receipt(ranged(0, 29)) == 5
    assert box.queued() == 0


async def test_a_new_generation_gets_all_kept_rows_again(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    for number in range(10):
        await box.enqueue("alarms", b"%d" % number)
    [first] = await drain(box)
    assert await box.meet_generation("8" * 32)
    assert rows_of(await box.next_batch()) == rows_of(first)
    assert await box.apply_receipt(receipt(first)) == 0, "a receipt of the generation that was lost"
    assert await box.apply_receipt(receipt(first, generation="8" * 32)) == 10
    assert not await box.meet_generation("8" * 32)


async def test_rows_that_made_room_are_not_missed_when_a_new_generation_asks_again(opened):
    box = await opened(MIN_BUDGET_BYTES)
    await box.meet_generation(GENERATION)
    await fill(box, "results", (b"x" * 1000 for _ in range(150)))
    await drain(box, 50_000)
    await fill(box, "results", (b"y" * 1000 for _ in range(100)))
    await box.meet_generation("8" * 32)
    counts = box.counts()["results"]
    assert 100 < counts.queued < 250, "some of the receipted rows are still held, some made room"
    assert counts == LaneCounts(produced=250, queued=counts.queued, receipted=250 - counts.queued)
    while (batch := await box.next_batch(50_000)) is not None:
        assert not batch.losses
        await box.apply_receipt(receipt(batch, generation="8" * 32))
    assert box.lost() == 0


async def test_beyond_the_budget_receipted_rows_go_first_then_results_and_alarms_last(opened):
    box = await opened(MIN_BUDGET_BYTES)
    await box.meet_generation(GENERATION)
    row = b"x" * 1000
    await fill(box, "results", (row for _ in range(100)))
    await drain(box, 20_000)
    await fill(box, "alarms", (row for _ in range(50)))
    await fill(box, "results", (row for _ in range(50)))
    assert box.lost() == 0, "receipted rows made room"
    await fill(box, "results", (row for _ in range(150)))
    counts = box.counts()
    assert counts["alarms"] == LaneCounts(produced=50, queued=50)
    assert counts["results"].produced == 300
    assert counts["results"].lost > 0
    assert counts["results"].produced == sum(
        (counts["results"].queued, counts["results"].receipted, counts["results"].lost)
    )
    await fill(box, "alarms", (row for _ in range(300)))
    counts = box.counts()
    assert counts["results"].queued == 0
    assert counts["alarms"].lost > 0
    assert counts["alarms"].produced == 350 == counts["alarms"].queued + counts["alarms"].lost
    assert opened.path.stat().st_size <= MIN_BUDGET_BYTES + 64 * limits.KIB


async def test_each_drop_is_in_a_merged_loss_record_that_is_receipted_like_rows(opened):
    box = await opened(MIN_BUDGET_BYTES)
    await box.meet_generation(GENERATION)
    await fill(box, "results", (b"x" * 1000 for _ in range(600)))
    lost = box.lost()
    batch = await box.next_batch()
    [loss] = [decode(record, Loss, limit=1000) for record in batch.losses]
    assert (loss.lane, loss.first, loss.last, loss.reason, loss.exact) == ("results", 0, lost - 1, "budget", True)
    await fill(box, "results", (b"x" * 1000 for _ in range(200)))
    second = await box.next_batch()
    assert second.losses[0] == batch.losses[0], "a record that was sent once stays as it is"
    batches = await drain(box, limits.MIB)
    counts = box.counts()["results"]
    records = {record for each in batches for record in each.losses}
    spans = [decode(record, Loss, limit=1000) for record in records]
    assert sum(span.last - span.first + 1 for span in spans) == counts.lost
    assert counts.produced == counts.receipted + counts.lost == 800


async def test_rows_that_were_sent_once_are_dropped_after_those_that_were_not(opened):
    box = await opened(MIN_BUDGET_BYTES)
    await fill(box, "results", (b"x" * 1000 for _ in range(60)))
    sent = await box.next_batch(20_000)
    await fill(box, "results", (b"x" * 1000 for _ in range(400)))
    assert box.lost() > 0
    assert rows_of(await box.next_batch(20_000)) == rows_of(sent), "the server may have them: they are still there"


async def test_a_row_that_is_dropped_while_its_batch_is_read_does_not_go_out(opened, monkeypatch):
    box = await opened()
    for number in range(3):
        await box.enqueue("results", b"row %d" % number)
    loop, real, raced = asyncio.get_running_loop(), box._core.read, []

    def read(*arguments, **more):
        pick = real(*arguments, **more)
        if not raced:
            raced.append(pick)
            drop = box._change(lambda draft: record_loss(draft, (1, "results"), Spans(((0, 0),)), "budget", 7))
            asyncio.run_coroutine_threadsafe(drop, loop).result(10)
        return pick

    monkeypatch.setattr(box._core, "read", read)
    batch = await box.next_batch()
    assert len(raced[0].lanes[0].rows) == 3
    assert [row for _, _, row in rows_of(batch)] == [b"row 1", b"row 2"]
    assert len(batch.losses) == 1, "a row is sent or told as lost, never both"


async def test_a_row_over_the_limit_is_refused_and_takes_no_number(opened):
    box = await opened()
    with pytest.raises(Refused):
        await box.enqueue("results", b"x" * (limits.ROW_BYTES + 1))
    with pytest.raises(ValueError, match="no lane"):
        await box.enqueue("gossip", b"x")
    assert await box.enqueue("results", b"x") == 0


async def test_a_full_disk_drops_older_results_for_newer_rows(opened):
    box = await opened()
    await fill(box, "results", (b"x" * 1000 for _ in range(500)))
    pages = box._core.connection.execute("PRAGMA page_count").fetchone()[0]
    box._core.connection.execute(f"PRAGMA max_page_count={pages}")
    await fill(box, "alarms", (b"y" * 1000 for _ in range(100)))
    counts = box.counts()
    assert counts["alarms"] == LaneCounts(produced=100, queued=100)
    assert counts["results"].queued + counts["results"].lost == 500
    assert counts["results"].lost > 0


async def test_on_a_full_disk_no_result_drives_out_an_alarm(opened):
    box = await opened()
    await fill(box, "alarms", (b"y" * 1000 for _ in range(100)))
    box._core.connection.execute("PRAGMA max_page_count=1")  # no more than there are
    with pytest.raises(StateError, match="full"):
        await fill(box, "results", (b"x" * 1000 for _ in range(10)))
    assert box.counts()["alarms"] == LaneCounts(produced=100, queued=100)
    await fill(box, "alarms", (b"z" * 1000 for _ in range(10)))
    assert box.counts()["alarms"].lost > 0, "a newer one does"


async def test_a_row_that_a_full_disk_did_not_take_has_no_number(opened, monkeypatch):
    box = await opened()
    await box.enqueue("results", b"0")
    real = Core._transact

    def full(self, change):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(Core, "_transact", full)
    for _ in range(3):
        with pytest.raises(StateError, match="disk is full"):
            await box.enqueue("results", b"1")
    monkeypatch.setattr(Core, "_transact", real)
    assert await box.enqueue("results", b"1") == 1
    assert box.counts()["results"] == LaneCounts(produced=2, queued=2)


async def test_a_backlog_is_read_batch_by_batch(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    row = b"x" * 10_000
    await fill(box, "results", (row for _ in range(200)))
    sizes = [sum(len(row) for _, _, row in rows_of(batch)) for batch in await drain(box, 100_000)]
    assert sum(sizes) == 2_000_000
    assert max(sizes) <= 100_000


async def test_a_short_row_behind_a_hole_does_not_overtake_a_long_one_before_it(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    for row in (b"x" * 900, b"y" * 900, b"gone", b"z"):
        await box.enqueue("results", row)
    await box._change(lambda draft: record_loss(draft, (1, "results"), Spans(((2, 2),)), "budget", 7))
    assert [number for batch in await drain(box, 1000) for _, number, _ in rows_of(batch)] == [0, 1, 3]


async def test_a_row_longer_than_the_batch_still_travels(opened):
    box = await opened()
    await box.enqueue("results", b"x" * 100_000)
    await box.enqueue("results", b"y" * 100_000)
    batch = await box.next_batch(50_000)
    assert [number for _, number, _ in rows_of(batch)] == [0]


async def test_a_receipt_beyond_our_numbering_begins_a_new_epoch(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    await box.enqueue("results", b"0")
    epoch = box.epoch
    beyond = RowRange(lane="results", first=0, last=7, rows_sha256="0" * 64)
    await box.apply_receipt(ReceiptsBody(device="tractor-1", epoch=epoch, generation=GENERATION, rows=(beyond,)))
    assert box.epoch != epoch
    assert await box.enqueue("results", b"fresh") == 0
    first, second = await drain(box)
    assert (first.epoch, second.epoch) == (epoch, box.epoch)
    assert [row for _, _, row in rows_of(second)] == [b"fresh"]


async def test_rows_in_conflict_are_numbered_anew_in_a_fresh_epoch(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    for number in range(5):
        await box.enqueue("results", b"%d" % number)
    batch = await box.next_batch()
    [part] = batch.lanes
    covered = RowRange(lane="results", first=0, last=1, rows_sha256=rows_sha256(part.rows[:2]))
    await box.apply_receipt(ReceiptsBody(device="tractor-1", epoch=batch.epoch, generation=GENERATION, rows=(covered,)))
    assert await box.renumber(batch) == 3
    assert await box.renumber(batch) == 0
    again = await box.next_batch()
    assert again.epoch == box.epoch != batch.epoch
    assert rows_of(again) == [("results", 0, b"2"), ("results", 1, b"3"), ("results", 2, b"4")]
    assert box.counts()["results"] == LaneCounts(produced=5, queued=3, receipted=2)
    await box.close()
    assert read_counts(opened.path)["results"] == LaneCounts(produced=5, queued=3, receipted=2)


async def test_a_row_that_the_disk_changed_is_lost_and_counted_and_the_rest_goes(opened):
    box = await opened()
    await box.meet_generation(GENERATION)
    for number in range(5):
        await box.enqueue("results", b"row %d" % number)
    await box.close()
    connection = sqlite3.connect(opened.path)
    connection.execute("UPDATE rows SET body = x'00' WHERE id & 15 = 1")
    connection.execute("UPDATE rows SET seal = seal + 1 WHERE id & 15 = 3")
    connection.commit()
    connection.close()
    box = await opened()
    [batch] = await drain(box)
    assert [row for _, _, row in rows_of(batch)] == [b"row 0", b"row 2", b"row 4"]
    losses = [decode(record, Loss, limit=1000) for record in batch.losses]
    assert [(loss.first, loss.last, loss.reason, loss.exact) for loss in losses] == [
        (1, 1, "damage", True),
        (3, 3, "damage", True),
    ]
    assert box.counts()["results"] == LaneCounts(produced=5, receipted=3, lost=2)


@pytest.mark.parametrize(("value", "goes"), [("CAST(body AS TEXT)", True), ("NULL", False)])
async def test_a_row_whose_bytes_became_of_another_type_holds_up_no_other(opened, monkeypatch, value, goes):
    monkeypatch.setattr(core, "CHECKED_BYTES", 0)  # as of a long file, of which the rows are not looked at before
    box = await opened()
    await box.meet_generation(GENERATION)
    mark = box.mark()
    for number in range(3):
        await box.enqueue("results", b"row %d" % number)
    await box.close()
    with contextlib.closing(sqlite3.connect(opened.path)) as connection:
        (schema,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'rows'").fetchone()
        lenient = schema.replace("NOT NULL", "").replace("STRICT", "")
        connection.execute("PRAGMA writable_schema = ON")
        for sql in (lenient, schema):
            connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'rows'", (sql,))
            connection.execute("PRAGMA writable_schema = RESET")
            connection.execute("PRAGMA writable_schema = ON")
            if sql == lenient:
                connection.execute(f"UPDATE rows SET body = {value} WHERE id & 15 = 1")
            connection.commit()
    box = await opened()
    assert len(await box.rows_since(mark)) == 3
    [batch] = await drain(box)
    sent = [row for _, _, row in rows_of(batch)]
    assert sent == ([b"row 0", b"row 1", b"row 2"] if goes else [b"row 0", b"row 2"])
    assert box.counts()["results"] == LaneCounts(produced=3, receipted=len(sent), lost=3 - len(sent))


async def test_counts_can_be_read_beside_the_agent_and_without_it(opened, tmp_path):
    box = await opened()
    await box.enqueue("alarms", b"x")
    assert read_counts(opened.path)["alarms"] == LaneCounts(produced=1, queued=1)
    await box.close()
    assert read_counts(opened.path)["alarms"] == LaneCounts(produced=1, queued=1)
    with pytest.raises(StateError):
        read_counts(tmp_path / "nothing.db")


async def test_what_comes_after_closing_is_refused(opened):
    box = await opened()
    await box.close()
    with pytest.raises(StateError, match="closed"):
        await box.enqueue("results", b"x")


async def test_durability_is_checked_not_hoped_for(opened):
    box = await opened()
    assert box._core.connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert box._core.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
