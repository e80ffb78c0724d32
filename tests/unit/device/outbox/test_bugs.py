"""A bug in the outbox's threads: it is logged, who waits hears of it, and the thread goes on. No thread dies unseen."""

import asyncio
import logging
import threading

import pytest

from device.day import Instant
from device.outbox import salvage, writer
from device.outbox.writer import Writer
from protocol.errors import StateError
from tests.unit.device.outbox.test_damage import opened, overwrite, salvaged

NOW = Instant("b", 0, None)


class Rows:
    """Numbers rows, unless a bug is planted."""

    def __init__(self) -> None:
        self.made = 0
        self.bug: BaseException | None = None

    def append(self, rows, frames):
        if self.bug is not None:
            raise self.bug
        self.made += len(rows)
        return list(range(self.made - len(rows), self.made))


@pytest.fixture
async def rows():
    return Rows()


@pytest.fixture
async def writes(rows):
    made = Writer(rows.append)
    made.start()
    yield made
    async with asyncio.timeout(10):
        await made.stop()
    assert not made._thread.is_alive()


async def in_time(waiting):
    return await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize("bug", [ValueError("a bug"), StopIteration(), SystemExit(1)])
async def test_a_bug_in_what_is_written_reaches_who_waits_and_the_log_and_rows_go_on(rows, writes, bug, caplog):
    def fail():
        raise bug

    rows.bug = bug
    for waiting in (
        writes.append([("results", b"one")]),
        writes.run(fail),
        asyncio.to_thread(writes.run_blocking, fail),
    ):
        caplog.clear()
        with pytest.raises((type(bug), StateError)):
            await in_time(waiting)
        assert caplog.records[-1].exc_info[1] is bug
    rows.bug = None
    assert await in_time(writes.append([("results", b"one")])) == [0]


async def test_a_bug_in_the_writer_itself_reaches_who_waits_and_it_goes_on(writes, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr(writer, "_outcome", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await in_time(writes.append([("results", b"one")]))
        with pytest.raises(ZeroDivisionError):
            await in_time(asyncio.to_thread(writes.run_blocking, int))
    assert all(record.exc_info[0] is ZeroDivisionError for record in caplog.records)
    assert len(caplog.records) == 2
    assert await in_time(writes.append([("results", b"one")])) == [0]


async def test_what_the_disk_says_is_no_bug(rows, writes, caplog):
    rows.bug = OSError("the disk is full")
    with pytest.raises(OSError, match="full"):
        await in_time(writes.append([("results", b"one")]))
    assert caplog.records == []


async def test_a_bug_ends_no_salvage_for_good(tmp_path, monkeypatch, caplog):
    path = tmp_path / "outbox.db"
    box = await opened(path)
    await box.enqueue_all([("results", b"%04d" % number * 250) for number in range(40)])
    await box.close()
    overwrite(path, 0, bytes(100))
    calls = []

    def carve(*_):
        calls.append(threading.current_thread().name)
        raise ValueError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(salvage, "carve", carve)
        box = await opened(path)
        await salvaged(box)
        assert calls == ["outbox-salvage"]
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.exc_info[0] is ValueError
        await box.enqueue("results", b"new")
        assert (await in_time(box.next_batch())).lanes[0].rows == (b"new",), "nobody waits for what is astray"
        for _ in range(8):
            await box.tend(NOW)
            await salvaged(box)
        assert len(calls) == 4, "begun anew, and seldom: after 1, 2 and 4 looks"
    for _ in range(8):
        await box.tend(NOW)
    await salvaged(box)
    assert box.counts()["results"].queued == 41
    await box.close()


async def test_where_no_thread_is_to_be_had_salvage_waits(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    box = await opened(path)
    await box.enqueue_all([("results", b"%04d" % number * 250) for number in range(40)])
    await box.close()
    overwrite(path, 0, bytes(100))
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "outbox-salvage":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        box = await opened(path)
        await box.enqueue("results", b"new")
        await box.tend(NOW)
        await salvaged(box)
    await box.tend(NOW)
    await salvaged(box)
    assert box.counts()["results"].queued == 41
    await box.close()
