"""Marks of frames: durable with the frame's rows or not at all, for as long as the frame may be met again."""

import sqlite3
from pathlib import Path

import pytest

from device.outbox import changes
from device.outbox.book import FRAMES_KEPT
from device.outbox.box import LaneCounts, Outbox
from protocol import limits
from protocol.errors import StateError

ROWS = [("results", b"r"), ("alarms", b"a")]


async def opened(folder: Path) -> Outbox:
    return await Outbox.opened(
        folder / "outbox.db",
        "tractor-1",
        budget_bytes=64 * limits.MIB,
        now_ms=lambda: 5,
        draw_token=iter(f"{number:032x}" for number in range(100)).__next__,
    )


async def test_a_frame_is_marked_in_the_transaction_of_its_rows(tmp_path, monkeypatch):
    box = await opened(tmp_path)
    real = changes.insert

    def full(*_):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(changes, "insert", full)
    with pytest.raises(StateError, match="disk is full"):
        await box.enqueue_all(ROWS, done_frames=[("1.jpg", "aa")])
    assert not box.is_done(("1.jpg", "aa"))
    monkeypatch.setattr(changes, "insert", real)
    await box.enqueue_all(ROWS, done_frames=[("1.jpg", "aa")])
    await box.close()
    box = await opened(tmp_path)
    assert box.is_done(("1.jpg", "aa"))
    assert not box.is_done(("1.jpg", "bb")), "the name was used again"
    assert not box.is_done(("2.jpg", "aa"))
    await box.close()


async def test_a_mark_goes_when_it_is_let_go_of_and_not_when_its_name_stands_for_another_frame(tmp_path):
    box = await opened(tmp_path)
    await box.enqueue_all(ROWS, done_frames=[("1.jpg", "aa"), ("2.jpg", "aa")])
    await box.enqueue_all(ROWS, done_frames=[("2.jpg", "bb")])
    await box.forget_frames([("1.jpg", "aa"), ("2.jpg", "aa"), ("3.jpg", "aa")])
    for _ in range(2):
        assert box.done_frames == {"2.jpg": "bb"}
        await box.close()
        box = await opened(tmp_path)
    await box.close()


async def test_marks_outlive_damage_that_shows_while_the_outbox_is_in_use(tmp_path):
    box = await opened(tmp_path)
    await box.enqueue_all(ROWS, done_frames=[("1.jpg", "aa")])
    await box._writer.run(lambda: box._begin_anew("it was damaged"))
    await box.salvaged()
    assert box.is_done(("1.jpg", "aa"))
    assert box.counts()["results"] == LaneCounts(produced=1, queued=1)
    await box.close()


async def test_the_number_of_marks_is_bounded_and_the_oldest_go(tmp_path):
    box = await opened(tmp_path)
    await box.enqueue_all([], done_frames=[(f"{number}", "aa") for number in range(FRAMES_KEPT)])
    await box.enqueue_all([], done_frames=[("0", "bb"), ("new", "aa")])
    marks = box.done_frames
    assert len(marks) == FRAMES_KEPT
    assert "1" not in marks
    assert (marks["0"], marks["2"]) == ("bb", "aa")
    await box.close()
    box = await opened(tmp_path)
    assert box.done_frames == marks
    await box.close()
