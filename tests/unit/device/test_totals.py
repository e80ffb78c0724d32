"""Frames' counts survive a kill: what was not kept is told by the rows that were."""

import asyncio
import threading

import pytest

from device.outbox.box import Outbox
from device.state_db import StateDb
from device.totals import Totals
from protocol.results import ResultRow
from protocol.wire import encode


def row(frame: str) -> bytes:
    return encode(
        ResultRow(
            at_ms=1,
            model="a" * 64,
            manifest="b" * 64,
            frame=frame,
            task="classify",
            accelerator="cpu",
            latency_ms=1.0,
            sure_of_time=True,
        )
    )


@pytest.fixture
def state(tmp_path):
    state = StateDb(tmp_path / "state.db")
    yield state
    state.close()


@pytest.fixture
async def outbox(tmp_path):
    box = await Outbox.opened(
        tmp_path / "outbox.db", "m", budget_bytes=1 << 20, now_ms=lambda: 0, draw_token=lambda: "e" * 32
    )
    yield box
    await box.close()


async def start(state: StateDb, outbox: Outbox) -> Totals:
    """As an agent does."""
    totals = Totals(state)
    mark = totals.last_mark(outbox.epoch)
    if mark is not None:
        totals.catch_up(await outbox.rows_since(mark))
    return totals


async def test_frames_whose_rows_outlived_a_kill_are_counted_once(state, outbox):
    first = await start(state, outbox)
    await outbox.enqueue("results", row("1"))
    first.saw(1, 0, 0, outbox.mark())
    first.keep()
    # Two frames more, one of them with two rows; then the process is killed.
    await outbox.enqueue_all([("results", row("2")), ("alarms", row("2")), ("alarms", row("3"))])
    for _ in range(2):  # and again before anything was kept
        second = await start(state, outbox)
        assert second.now(4).frames_inferred == 3
    second.saw(1, 0, 0, outbox.mark())
    second.keep()
    second.keep()
    assert second.now(4).frames_inferred == 4
    assert state.counters()["frames_inferred"] == 4
    assert (await start(state, outbox)).now(4).frames_inferred == 4


async def test_results_that_no_disk_took_are_counted_over_the_lives_of_the_agent(state, outbox):
    for life in range(1, 3):
        totals = await start(state, outbox)
        totals.saw(5, 0, 0, outbox.mark(), results_given_up=4)
        assert totals.now(0).results_given_up == 4 * life
        totals.keep()
        totals.keep()
    assert state.counters()["results_given_up"] == 8


async def test_a_kill_before_anything_was_ever_kept_forgets_no_frame(state, outbox):
    await outbox.enqueue("results", row("1"))
    assert (await start(state, outbox)).now(1).frames_inferred == 1


async def test_a_frame_whose_row_is_not_durable_yet_is_not_counted_twice(state, outbox):
    first = await start(state, outbox)
    first.saw(1, 0, 1, outbox.mark())
    assert first.now(0).frames_inferred == 1
    first.keep()
    await outbox.enqueue("results", row("1"))
    assert (await start(state, outbox)).now(1).frames_inferred == 1


async def test_rows_of_another_epoch_and_of_another_kind_count_no_frames(state, outbox):
    totals = await start(state, outbox)
    totals.saw(1, 0, 0, outbox.mark())
    totals.keep()
    await outbox.enqueue("results", b"something else")
    assert (await start(state, outbox)).now(1).frames_inferred == 1
    mark = totals.last_mark(outbox.epoch)
    assert await outbox.rows_since(type(mark)(epoch="f" * 32, next_seqs={"results": 0})) == []


async def test_frames_are_counted_once_where_the_end_comes_while_they_are_kept(state, outbox, monkeypatch):
    totals = await start(state, outbox)
    totals.saw(3, 0, 0, outbox.mark())
    begun, goes_on, count_all = threading.Event(), threading.Event(), state.count_all

    def slow(more, facts) -> None:
        begun.set()
        assert goes_on.wait(10)
        count_all(more, facts)

    monkeypatch.setattr(state, "count_all", slow)
    keeping = [threading.Thread(target=totals.keep) for _ in range(2)]
    for thread in keeping:
        thread.start()
        assert await asyncio.to_thread(begun.wait, 10)
    goes_on.set()
    for thread in keeping:
        await asyncio.to_thread(thread.join, 10)
    assert state.counters()["frames_inferred"] == 3
