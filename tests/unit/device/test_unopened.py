"""An outbox that its disk does not let open: what takes its place refuses rows, and the real one is left as it is."""

import sqlite3

import pytest

from device.outbox import schema
from device.outbox.box import Mark, Outbox, read_counts
from device.outbox.damage import why_damaged
from device.unopened import UnopenedOutbox, opened_or_not, why_unopenable
from protocol import limits
from protocol.errors import StateError


def refuse(monkeypatch, code):
    def full(path):
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(schema, "open_reader", full)


async def opened(tmp_path, remembered=None):
    return await opened_or_not(
        lambda: Outbox(
            tmp_path / "outbox.db",
            "tractor-1",
            budget_bytes=limits.MIB,
            now_ms=lambda: 5,
            draw_token=lambda: "a" * 32,
            remembered=remembered,
        ),
        remembered,
    )


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_CANTOPEN])
async def test_a_full_disk_at_the_start_costs_rows_that_cannot_be_kept_and_no_others(tmp_path, monkeypatch, code):
    box = await opened(tmp_path)
    await box.enqueue_all([("results", b"before")], done_frames=[("1.jpg", "aa")])
    mark = box.mark()
    await box.close()
    with monkeypatch.context() as patch:
        refuse(patch, code)
        assert why_unopenable(tmp_path / "outbox.db")
        away = await opened(tmp_path, mark)
        assert isinstance(away, UnopenedOutbox)
        with pytest.raises(StateError, match="cannot be opened"):
            await away.enqueue("results", b"lost")
        assert away.mark() == mark, "what totals remember of the real one must not be overwritten"
        assert (away.done_frames, await away.rows_since(mark), await away.give_back(1)) == ({}, [], 0)
        await away.close()
    assert why_unopenable(tmp_path / "outbox.db") == ""
    box = await opened(tmp_path, mark)
    assert box.is_done(("1.jpg", "aa"))
    assert await box.enqueue("results", b"after") == 1
    assert [row for lane in (await box.next_batch()).lanes for row in lane.rows] == [b"before", b"after"]
    await box.close()


async def test_a_disk_that_takes_no_new_file_is_one_too(tmp_path, monkeypatch):
    def no_room(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(schema, "open_writer", no_room)
    away = await opened(tmp_path)
    assert isinstance(away, UnopenedOutbox)
    assert away.mark() == Mark(epoch="", next_seqs={})


async def test_what_is_not_the_disks_fault_ends_the_agent_as_before(tmp_path, monkeypatch):
    await (await opened(tmp_path)).close()
    monkeypatch.setattr(schema, "VERSION", 0)
    with pytest.raises(StateError, match="newer agent"):
        await opened(tmp_path)


async def test_a_damaged_outbox_whose_schema_is_no_text_can_be_begun_anew_and_is_told_of(tmp_path):
    """SQLite puts the words of a damaged schema into its error, and they do not even decode."""
    path = tmp_path / "outbox.db"
    box = await opened(tmp_path)
    await box.enqueue("results", b"row")
    await box.close()
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"CREATE \xb9ABLE"))
    assert why_unopenable(path) == ""
    with pytest.raises(StateError, match="cannot be read"):
        read_counts(path)
    assert why_damaged(path)
    box = await opened(tmp_path)
    await box.enqueue("results", b"another")
    await box.close()
