"""A disk that errs or is full once: the same rows are tried again before any is given up, and none is kept twice."""

import asyncio
import itertools
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

from device.outbox.book import load
from device.outbox.box import LaneCounts, Outbox
from device.outbox.schema import open_reader
from protocol import limits
from protocol.errors import StateError
from tests.simulation.crash.trace import strace_found
from tests.unit.device.outbox.test_damage import GENERATION, Server

CODES = {"eio": sqlite3.SQLITE_IOERR_FSYNC, "eio, but done": sqlite3.SQLITE_IOERR_FSYNC, "full": sqlite3.SQLITE_FULL}


class Disk:
    """What becomes of each commit, by its number from 0; None: all is well."""

    def __init__(self) -> None:
        self.commits = 0
        self.errs: dict[int, str] = {}
        self.takes_log = True

    def next_errs(self, *how: str) -> None:
        self.errs = {self.commits + number: one for number, one in enumerate(how)}

    def connect(self, *arguments, **more):
        disk = self

        class Erring(sqlite3.Connection):
            def execute(self, sql, *values):
                if "wal_checkpoint" in sql and not disk.takes_log:
                    raise failed(sqlite3.SQLITE_IOERR_WRITE)
                if sql != "COMMIT":
                    return super().execute(sql, *values)
                how = disk.errs.get(disk.commits)
                disk.commits += 1
                if how is None:
                    return super().execute(sql)
                super().execute("COMMIT" if how == "eio, but done" else "ROLLBACK")
                raise failed(CODES[how])

        return CONNECT(*arguments, **{"factory": Erring, **more})


CONNECT = sqlite3.connect


def failed(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("the disk says no")
    error.sqlite_errorcode = code
    return error


@pytest.fixture
def disk():
    disk = Disk()
    with mock.patch.object(sqlite3, "connect", disk.connect):
        yield disk


async def opened(path: Path, budget_bytes: int = 64 * limits.MIB) -> Outbox:
    tokens = (f"{number:032x}" for number in itertools.count(1))
    return await Outbox.opened(
        path, "tractor-1", budget_bytes=budget_bytes, now_ms=lambda: 1, draw_token=lambda: next(tokens)
    )


@pytest.fixture
async def box(disk, tmp_path):
    box = await opened(tmp_path / "outbox.db")
    await box.enqueue_all([("results", b"%04d" % number * 250) for number in range(600)])
    yield box
    await box.close()


def stored(box: Outbox) -> list[bytes]:
    return [bytes(body) for (body,) in box._core.connection.execute("SELECT body FROM rows ORDER BY id")]


def is_on_disk(box: Outbox, path: Path) -> bool:
    """Whether the accounts in memory are those of the file."""
    reader = open_reader(path)
    try:
        return load(reader) == box._core.book
    finally:
        reader.close()


@pytest.mark.parametrize("how", CODES)
async def test_what_the_disk_did_not_take_once_is_tried_again_and_costs_no_row(box, disk, tmp_path, how):
    before = box._core.connection
    disk.next_errs(how)
    assert await box.enqueue_all([("results", b"new"), ("alarms", b"newer")]) == [600, 0]
    assert disk.errs.keys() <= set(range(disk.commits)), "it did err"
    assert Counter(stored(box))[b"new"] == 1
    assert box.counts()["results"] == LaneCounts(produced=601, queued=601)
    assert (box._core.connection is before) == (how != "eio"), "after an error over a fresh connection"
    assert is_on_disk(box, tmp_path / "outbox.db")
    assert await box.enqueue("results", b"next") == 601


async def test_a_disk_that_errs_again_and_again_refuses_rows_whole_and_goes_on_once_it_can(box, disk, tmp_path):
    disk.errs = dict.fromkeys(range(disk.commits, disk.commits + 100), "eio")
    with pytest.raises(StateError):
        await box.enqueue("results", b"new")
    tried = disk.commits
    disk.errs = {}
    assert tried < 100, "it ends"
    assert box.counts()["results"] == LaneCounts(produced=600, queued=600)
    assert await box.enqueue("results", b"new") == 600
    assert len(stored(box)) == 601
    assert is_on_disk(box, tmp_path / "outbox.db")


async def test_a_connection_is_kept_for_as_long_as_its_log_cannot_be_taken_in(box, disk):
    before = box._core.connection
    disk.takes_log = False
    disk.next_errs("eio")
    assert await box.enqueue("results", b"new") == 600, "the next commit goes over what the failed one left"
    assert box._core.connection is before
    assert box.lost() == 0


async def test_on_a_full_disk_rows_that_the_server_has_go_before_any_that_it_lacks(box):
    server = Server()
    await box.meet_generation(GENERATION)
    await box.apply_receipt(server.take(await box.next_batch(100_000)))
    pages = box._core.connection.execute("PRAGMA page_count").fetchone()[0]
    box._core.connection.execute(f"PRAGMA max_page_count={pages}")
    for _ in range(14):
        await box.enqueue_all([("alarms", b"x" * 500)] * 10)
    assert box.counts()["results"] == LaneCounts(produced=600, queued=500, receipted=100)
    assert box.lost() == 0
    assert len(box._core.book.lane(1, "results").gone) > 0, "the disk was full"


async def test_rows_that_cannot_be_read_now_are_the_words_of_a_disk_and_go_later(box, monkeypatch):
    await box.enqueue("results", b"row")
    with monkeypatch.context() as patched:
        patched.setattr(box._core, "read", mock.Mock(side_effect=failed(sqlite3.SQLITE_IOERR_LOCK)))
        with pytest.raises(StateError, match="cannot be read"):
            await box.next_batch()
    assert b"row" in (await box.next_batch()).lanes[0].rows


async def test_a_receipt_whose_commit_erred_is_applied_once(box, disk, tmp_path):
    server = Server()
    await box.meet_generation(GENERATION)
    batch = await box.next_batch(10_000)
    rows = sum(len(part.rows) for part in batch.lanes)
    for how in ("eio, but done", "eio"):
        disk.next_errs(how)
        assert await box.apply_receipt(server.take(batch)) == (rows if how == "eio, but done" else 0)
        assert box.counts()["results"].receipted == rows
        assert is_on_disk(box, tmp_path / "outbox.db")


@pytest.mark.parametrize("how", CODES)
def test_wherever_a_commit_fails_each_row_is_there_once_and_none_is_given_up(tmp_path, how):
    """A small life: rows, batches, receipts, another epoch; one commit of it fails, each in turn."""

    async def live(path: Path, disk: Disk, at: int | None) -> int:
        with mock.patch.object(sqlite3, "connect", disk.connect):
            box = await opened(path)
            began = disk.commits
            disk.errs = {} if at is None else {began + at: how}
            server = Server()
            await surely(box.meet_generation, GENERATION)
            for turn in range(3):
                rows = [("results", b"%d %d" % (turn, number)) for number in range(3)]
                await surely(box.enqueue_all, rows)
                receipt = server.take(await surely(box.next_batch))
                await surely(box.apply_receipt, receipt)
                if turn == 1:
                    await surely(box.begin_epoch)
            assert is_on_disk(box, path)
            assert (box.produced(), box.lost(), box.queued()) == (9, 0, 0)
            assert Counter(stored(box)) == Counter(server.rows.values())
            assert len(server.rows) == 9
            commits = disk.commits - began
            await box.close()
            return commits

    commits = asyncio.run(live(tmp_path / "whole.db", Disk(), None))
    assert commits >= 10
    for at in range(commits):
        asyncio.run(live(tmp_path / f"{at}.db", Disk(), at))


LIFE = """
import asyncio, os, signal, sys
from pathlib import Path
from protocol.errors import StateError
from tests.unit.device.outbox.test_erring_disk import opened
async def main():
    box = await opened(Path(sys.argv[1]))
    for number in range(40):
        while True:
            try:
                print(number, await box.enqueue("results", b"%d" % number), flush=True)
                break
            except StateError:
                pass
    print("lost", box.lost(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.skipif(
    not strace_found() and not os.environ.get("CI"), reason="strace is not installed: apt-get install strace"
)
def test_rows_are_kept_once_by_a_process_whose_flushes_fail_and_that_is_killed_then(tmp_path):
    """SQLite itself meets the error: a commit that failed lies in the log whole, until the next one goes over it."""
    path = tmp_path / "outbox.db"
    inject = ("-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=20+5")
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", tmp_path / "calls", *inject, sys.executable, "-c", LIFE, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *acknowledged, lost = done.stdout.splitlines()
    assert (tmp_path / "calls").read_text().count("INJECTED") > 10
    assert lost == "lost 0", done.stderr
    assert acknowledged == [f"{number} {number}" for number in range(40)]
    connection = open_reader(path)
    rows = connection.execute("SELECT body FROM rows ORDER BY id").fetchall()
    connection.close()
    assert rows == [(b"%d" % number,) for number in range(40)]


async def surely(work, *arguments):
    """As the agent does: what the disk did not take is asked for again."""
    try:
        return await work(*arguments)
    except StateError:
        return await work(*arguments)
