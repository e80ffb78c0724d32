"""A damaged outbox: intake goes on, only damaged rows are lost, and each of those is counted."""

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device.day import Instant
from device.outbox import carving, core, damage, highwater, salvage, schema
from device.outbox.box import LaneCounts, Outbox
from device.outbox.carving import carve
from device.outbox.schema import PAGE_BYTES
from protocol import limits
from protocol.errors import StateError
from protocol.ids import digest
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import BatchBody, Loss, rows_sha256
from protocol.wire import decode

GENERATION = "9" * 32


async def opened(path: Path, told: list[str] | None = None, boot: str = "b", **more) -> Outbox:
    return await Outbox.opened(
        path,
        "tractor-1",
        budget_bytes=64 * limits.MIB,
        now_ms=lambda: 1_700_000_000_000,
        draw_token=lambda: secrets.token_hex(16),
        on_damage=(told if told is not None else []).append,
        boot=boot,
        **more,
    )


async def salvaged(box: Outbox) -> None:
    await asyncio.wait_for(box.salvaged(), 60)


class Server:
    """Takes batches as the real one does: each row once; lost is what a record names and never came."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int], bytes] = {}
        self.order: list[tuple[str, str, int]] = []
        self.losses: set[tuple[str, bytes]] = set()

    async def take_all(self, box: Outbox, limit_bytes: int = 100_000) -> None:
        await box.meet_generation(GENERATION)
        while (batch := await box.next_batch(limit_bytes)) is not None:
            assert await box.apply_receipt(self.take(batch)) > 0

    def take(self, batch: BatchBody) -> ReceiptsBody:
        ranges = []
        for part in batch.lanes:
            for number, row in enumerate(part.rows, part.first):
                key = (batch.epoch, part.lane, number)
                assert self.rows.setdefault(key, row) == row, "no number ever has two rows"
                self.order.append(key)
            last = part.first + len(part.rows) - 1
            ranges.append(RowRange(lane=part.lane, first=part.first, last=last, rows_sha256=rows_sha256(part.rows)))
        told = []
        for record in batch.losses:
            self.losses.add((batch.epoch, record))
            loss = decode(record, Loss, limit=1000)
            told.append(RowRange(lane=loss.lane, first=loss.first, last=loss.last, rows_sha256=digest(record)))
        return ReceiptsBody(
            device=batch.device, epoch=batch.epoch, generation=GENERATION, rows=tuple(ranges), losses=tuple(told)
        )

    def lost(self) -> int:
        named = set()
        for epoch, record in self.losses:
            loss = decode(record, Loss, limit=1000)
            named |= {(epoch, loss.lane, number) for number in range(loss.first, loss.last + 1)}
        return len(named - self.rows.keys())


def bodies(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Rows of all sizes: some fill a page, some need a chain of them."""
    return [
        (
            "alarms" if number % 7 == 0 else "results",
            (b"row %06d " % number) * (1, 4, 30, 3, 11, 500, 2, 90, 370, 5)[number % 10],
        )
        for number in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a killed process leaves it: rows in the database, newer ones in its log, some receipted."""
    folder = tmp_path_factory.mktemp("filled")
    program = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.unit.device.outbox.test_damage import Server, bodies, opened
async def main():
    box = await opened(Path(sys.argv[1]) / "outbox.db")
    await box.enqueue_all(bodies(60))
    server = Server()
    await server.take_all(box)
    box._core.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    await box.enqueue_all(bodies(120, 60))
    box._core.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for row in bodies(100, 180):
        await box.enqueue(*row)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    return folder


SENT = [row for _, row in bodies(60)]
QUEUED = [row for _, row in bodies(220, 60)]


async def hurt(filled: Path, how: Callable[[Path], None], *, boot: str = "b") -> tuple[Server, Outbox, list[str]]:
    """Damages a copy, opens it, takes new rows while salvage goes on, and has all of it sent."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(filled, folder, dirs_exist_ok=True)
        how(folder)
        told: list[str] = []
        box = await opened(folder / "outbox.db", told, boot)
        server = Server()
        try:
            assert await box.enqueue("results", b"it goes on") >= 0
            for _ in range(2):  # damage may show only when rows are read
                await salvaged(box)
                await server.take_all(box)
            assert not damage.quarantined(folder / "outbox.db")
        finally:
            await box.close()
        return server, box, told


def check(server: Server, box: Outbox, *, most_lost: int) -> int:
    """Each row once, in its lane's order; what is not there is counted. Returns how many queued rows are gone."""
    arrived = list(server.rows.values())
    assert len(arrived) == len(set(arrived)), "no row twice"
    assert set(arrived) <= {*SENT, *QUEUED, b"it goes on"}, "nothing that was never put in"
    for lane in ("alarms", "results"):
        firsts = [key for key in dict.fromkeys(server.order) if key[1] == lane]
        epochs = list(dict.fromkeys(key[0] for key in firsts))
        assert firsts == sorted(firsts, key=lambda key: (epochs.index(key[0]), key[2])), "in the order of the lane"
    missing = len(set(QUEUED) - set(arrived))
    assert b"it goes on" in arrived
    assert missing <= server.lost() <= missing + len(SENT), "each missing row is told as lost"
    assert missing <= most_lost
    counts = box.counts().values()
    assert sum(lane.produced for lane in counts) >= 281
    assert all(lane.produced == lane.queued + lane.receipted + lane.lost for lane in counts)
    assert sum(lane.queued + lane.astray for lane in counts) == 0
    return missing


async def test_nothing_is_lost_and_nothing_is_said_where_nothing_was_damaged(filled):
    server, box, told = await hurt(filled, lambda folder: None)
    assert check(server, box, most_lost=0) == 0
    assert (told, server.lost()) == ([], 0)


async def test_a_cut_of_the_power_looks_like_no_damage(filled):
    # Another boot: the marks that were never synced may be older than the database, never newer.
    server, box, told = await hurt(filled, lambda folder: None, boot="another")
    assert check(server, box, most_lost=0) == 0
    assert (told, server.lost()) == ([], 0)


@pytest.mark.parametrize(
    ("name", "how", "most_lost"),
    [
        ("header", lambda f: overwrite(f / "outbox.db", 0, b"\x00" * 100), 0),
        ("accounts that are no text", lambda f: (checkpoint(f), swap(f / "outbox.db", b"9" * 32, b"\xff" * 32)), 0),
        ("first page", lambda f: overwrite(f / "outbox.db", 0, os.urandom(PAGE_BYTES)), 0),
        ("newer version", lambda f: (checkpoint(f), overwrite(f / "outbox.db", 60, b"\x00\x00\x00\x07")), 0),
        ("read-only", lambda f: overwrite(f / "outbox.db", 18, b"\x07"), 0),
        ("log's header", lambda f: overwrite(f / "outbox.db-wal", 0, os.urandom(32)), 0),
        ("log's first page", lambda f: overwrite(f / "outbox.db-wal", 40, os.urandom(3000)), 12),
        ("whole file is garbage", lambda f: garble(f / "outbox.db"), 120),
        ("file is empty", lambda f: os.truncate(f / "outbox.db", 0), 120),
        ("log is empty", lambda f: os.truncate(f / "outbox.db-wal", 0), 100),
        ("log is gone", lambda f: (f / "outbox.db-wal").unlink(), 100),
        ("file is gone", lambda f: (f / "outbox.db").unlink(), 120),
        ("both are gone", lambda f: [(f / f"outbox.db{suffix}").unlink() for suffix in ("", "-wal")], 220),
        ("all but the mark", lambda f: [p.unlink() for p in f.iterdir() if p.suffix != ".mark"], 220),
    ],
)
async def test_only_what_was_damaged_is_lost_and_the_loss_is_counted(filled, name, how, most_lost):
    server, box, told = await hurt(filled, how)
    missing = check(server, box, most_lost=most_lost)
    assert len(told) == 1
    assert "at most 220" in told[0] or "at most 280" in told[0], "the mark does not tell of the newest receipts"
    if "gone" in name or "empty" in name or "mark" in name:
        assert missing > 0, "the test would show nothing"


@pytest.mark.parametrize("while_it", ["takes a row", "is looked after", "begins an epoch"])
async def test_loss_records_that_are_damaged_in_use_stop_no_intake(tmp_path, while_it):
    told: list[str] = []
    path = tmp_path / "outbox.db"
    box = await opened(path, told)
    await box.enqueue_all(bodies(30))
    connection = box._core.connection
    await box._writer.run(lambda: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'losses'").fetchone()
    overwrite(path, (root - 1) * PAGE_BYTES, os.urandom(PAGE_BYTES))
    await box._writer.run(lambda: connection.execute("PRAGMA shrink_memory").fetchall())  # it is read again
    if while_it == "begins an epoch":
        await box.begin_epoch()
        assert len(box._core.book.epochs) == 2, "once: what was done is not done again"
    if while_it != "is looked after":
        box._core._highwater.forget_reserve()
        await box.enqueue("results", b"it goes on")
    await box.tend(Instant(boot_id="b", boot_ms=1, sure_ms=None))
    await salvaged(box)
    assert len(told) == 1
    server = Server()
    await server.take_all(box)
    assert {row for _, row in bodies(30)} <= set(server.rows.values())
    assert not server.losses
    await box.close()


async def test_an_outbox_that_was_deleted_with_all_its_files_is_told_by_what_was_kept_elsewhere(tmp_path):
    box = await opened(tmp_path / "outbox.db")
    await box.enqueue_all(bodies(30))
    kept = box.mark()
    await box.close()
    again = await opened(tmp_path / "outbox.db", remembered=kept)
    assert again.counts()["results"].lost == 0, "what is there needs no other word"
    await again.close()
    for path in tmp_path.iterdir():
        path.unlink()
    told: list[str] = []
    box = await opened(tmp_path / "outbox.db", told, remembered=kept)
    await salvaged(box)
    server = Server()
    await server.take_all(box)
    await box.close()
    assert server.lost() == 30
    assert "at most 30" in told[0]
    assert box.epoch != kept.epoch


async def test_of_a_deleted_database_nothing_is_told_as_lost_that_the_server_was_known_to_have(tmp_path):
    box = await opened(tmp_path / "outbox.db")
    await box.enqueue_all([("results", row) for _, row in bodies(30)])
    await Server().take_all(box)
    await box.tend(Instant("b", 0, None))
    await box.enqueue_all([("results", row) for _, row in bodies(10, 30)])
    copy = (tmp_path / "outbox.mark").read_bytes()
    await box.close()
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "outbox.mark").write_bytes(copy)
    box = await opened(tmp_path / "outbox.db")
    await salvaged(box)
    assert box.counts()["results"] == LaneCounts(produced=40, receipted=30, lost=10)
    await box.close()


@pytest.mark.parametrize("keeps_lines", [True, False])
async def test_what_a_power_cut_may_have_hidden_is_counted_as_at_most_the_reserve(filled, keeps_lines):
    def cut(folder: Path) -> None:
        (folder / "outbox.db-wal").unlink()
        if not keeps_lines:  # they are not synced
            mark = folder / "outbox.mark"
            mark.write_bytes(mark.read_bytes().split(b"\n")[0] + b"\n")

    server, _, _ = await hurt(filled, cut, boot="another")
    missing = len(set(QUEUED) - set(server.rows.values()))
    assert 0 < missing <= server.lost() <= missing + 2 * 4096
    records = [decode(record, Loss, limit=1000) for _, record in server.losses]
    assert all(not loss.exact and loss.reason == "damage" for loss in records)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def swap(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def checkpoint(folder: Path) -> None:
    connection = sqlite3.connect(folder / "outbox.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


def garble(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["outbox.db", "outbox.db-wal", "outbox.mark"]), st.sampled_from([0, core.CHECKED_BYTES]), st.data()
)
def test_a_flipped_bit_anywhere_costs_its_row_and_no_other(filled, name, checked_bytes, data):
    place = data.draw(st.integers(0, (filled / name).stat().st_size - 1))
    bit = data.draw(st.integers(0, 7))

    def flip(folder: Path) -> None:
        old = (folder / name).read_bytes()[place]
        overwrite(folder / name, place, bytes([old ^ 1 << bit]))

    with mock.patch.object(core, "CHECKED_BYTES", checked_bytes):
        server, box, _ = asyncio.run(hurt(filled, flip))
    # A page's own few bytes of structure may hide a chain of pages, of one row.
    check(server, box, most_lost=1)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["outbox.db", "outbox.db-wal"]), st.data())
def test_a_file_cut_off_anywhere_costs_what_lay_behind_and_is_counted(filled, name, data):
    size = (filled / name).stat().st_size
    end = data.draw(st.integers(0, size - 1))
    server, box, _ = asyncio.run(hurt(filled, lambda folder: os.truncate(folder / name, end)))
    check(server, box, most_lost=120)


async def test_an_outbox_that_is_begun_anew_reserves_no_numbers_of_the_one_before_it(tmp_path):
    box = await opened(tmp_path / "outbox.db")
    await box.enqueue_all([("results", b"row")] * 50_000)
    await box._writer.run(lambda: box._begin_anew("page 7 is torn"))
    await box.enqueue("results", b"it goes on")
    mark = highwater.read(tmp_path / "outbox.mark", "another boot")
    assert 0 < mark.at_most[box.epoch, "results"] <= highwater.RESERVED_MOST + 1
    await box.close()


async def test_rows_are_carved_whatever_became_of_the_tree_around_them(filled):
    epochs = {
        1: sqlite3.connect(f"file:{filled}/outbox.db?mode=ro&immutable=1", uri=True)
        .execute("SELECT token FROM epochs")
        .fetchone()[0]
    }
    found = {row.body for row in carve(filled / "outbox.db", epochs)}
    assert set(QUEUED) <= found
    assert found <= {*SENT, *QUEUED}
    assert not list(carve(filled / "outbox.db", {1: "f" * 32})), "rows of another epoch are not taken"
    assert not list(carve(filled / "nothing.db", epochs))
    assert carving.PAGE_BYTES == PAGE_BYTES


def refused() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


class Refusing:
    """In the place of a function, which the disk refuses so often."""

    def __init__(self, real: Callable, times: int, error: Exception) -> None:
        self.real, self.times, self.error = real, times, error

    def __call__(self, *arguments, **more):
        if self.times:
            self.times -= 1
            raise self.error
        return self.real(*arguments, **more)


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (core, "set_aside", OSError(errno.EROFS, "Read-only file system")),
        (schema, "open_writer", refused()),
        (schema, "open_reader", refused()),
        (damage, "carry_over", refused()),
    ],
    ids=["set aside", "made", "read", "filled"],
)
async def test_an_outbox_that_could_not_be_begun_anew_is_begun_once_the_disk_lets_it(
    tmp_path, monkeypatch, owner, name, error
):
    told: list[str] = []
    box = await opened(tmp_path / "outbox.db", told)
    await box.enqueue_all([("results", b"%d" % number) for number in range(5)])
    refusing = Refusing(getattr(owner, name), 1_000_000, error)
    monkeypatch.setattr(owner, name, refusing)
    with pytest.raises(StateError, match="cannot be begun"):
        await box._writer.run(lambda: box._begin_anew("page 7 is torn"))
    for _ in range(5):  # each in words for a person, and none drives out the file that has the rows
        with pytest.raises(StateError):
            await box.enqueue("alarms", b"no room")
        with pytest.raises(StateError):
            await box.next_batch()
        with pytest.raises(StateError):
            await box.tend(Instant("b", 0, None))
        with pytest.raises(StateError):
            await box.begin_epoch()
    assert box.counts()["results"].produced == 5
    refusing.times = 0
    assert await box.enqueue("alarms", b"a person is in front of the machine") == 0
    await box.tend(Instant("b", 0, None))
    await salvaged(box)
    server = Server()
    await server.take_all(box)
    assert list(server.rows.values()) == [b"a person is in front of the machine", *(b"%d" % n for n in range(5))]
    assert (server.lost(), len(told)) == (0, 1)
    await box.close()


@pytest.mark.parametrize("keeps_lines", [True, False])
async def test_what_a_machine_knew_of_an_outbox_that_was_never_begun_anew_outlives_its_end(
    tmp_path, monkeypatch, keeps_lines
):
    box = await opened(tmp_path / "outbox.db")
    await box.enqueue_all([("results", b"%d" % number) for number in range(5)])
    with monkeypatch.context() as patch:
        patch.setattr(damage, "carry_over", Refusing(damage.carry_over, 1_000_000, refused()))
        with pytest.raises(StateError):
            await box._writer.run(lambda: box._begin_anew("page 7 is torn"))
        await box.close()
    if not keeps_lines:  # they are not synced
        mark = tmp_path / "outbox.mark"
        mark.write_bytes(mark.read_bytes().split(b"\n")[0] + b"\n")
    box = await opened(tmp_path / "outbox.db", boot="another")
    await salvaged(box)
    server = Server()
    await server.take_all(box)
    await box.close()
    assert len(server.rows) == 5
    assert server.lost() in (0, 4096), "what the mark had reserved, at most"


async def test_a_file_that_is_set_aside_while_another_is_looked_through_is_looked_through_too(tmp_path, monkeypatch):
    taken, second, looked = threading.Event(), threading.Event(), threading.Event()
    real_set_aside = core.set_aside

    def set_aside(path: Path) -> Path | None:
        target = real_set_aside(path)
        if target is not None and target.name == "outbox.damaged-2.db":
            second.set()
            looked.wait(0.3)  # what is set aside here is astray only when this is over
        return target

    def carved(path: Path, epochs):
        if path.name == "outbox.damaged-2.db":
            looked.set()
        yield from carve(path, epochs)
        taken.set()
        second.wait(10)

    monkeypatch.setattr(core, "set_aside", set_aside)
    monkeypatch.setattr(salvage, "carve", carved)
    monkeypatch.setattr(salvage, "CHUNK_ROWS", 1)
    box = await opened(tmp_path / "outbox.db")
    for number in range(2):
        await box.enqueue("results", b"%d" % number)
        await box._writer.run(lambda: box._begin_anew("a page is torn"))
        await asyncio.to_thread(taken.wait, 10)
    await salvaged(box)
    server = Server()
    await server.take_all(box)
    await box.close()
    assert (sorted(server.rows.values()), server.lost()) == ([b"0", b"1"], 0)


async def test_a_file_that_was_cut_while_it_was_made_stops_no_start_and_drives_out_no_damaged_one(
    tmp_path, monkeypatch
):
    path = tmp_path / "outbox.db"
    box = await opened(path)
    await box.enqueue("results", b"waits")
    await box.close()
    core.set_aside(path)

    def cut() -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("VACUUM")  # a first page, and not in WAL mode yet
        path.with_name("outbox.db-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(504))

    for _ in range(4):
        cut()
        with monkeypatch.context() as patch:
            patch.setattr(core.Core, "_new", Refusing(core.Core._new, 1, refused()))
            with pytest.raises(StateError):
                await opened(path)
    cut()
    box = await opened(path)
    await salvaged(box)
    server = Server()
    await server.take_all(box)
    await box.close()
    assert (list(server.rows.values()), server.lost()) == ([b"waits"], 0)


async def test_rows_go_while_the_disk_takes_nothing_of_what_was_found_and_the_rest_follows(tmp_path, monkeypatch):
    box = await opened(tmp_path / "outbox.db")
    await box.enqueue_all([("alarms", b"old alarm"), ("results", b"old result")])
    refusing = Refusing(box._core.adopt, 1_000_000, refused())
    monkeypatch.setattr(box._core, "adopt", refusing)
    await box._writer.run(lambda: box._begin_anew("page 7 is torn"))
    await salvaged(box)
    await box.enqueue("alarms", b"new alarm")
    server = Server()
    await server.take_all(box)
    assert list(server.rows.values()) == [b"new alarm"]
    refusing.times = 0
    await box.tend(Instant("b", 0, None))
    await salvaged(box)
    await server.take_all(box)
    assert list(server.rows.values()) == [b"new alarm", b"old alarm", b"old result"]
    assert server.lost() == 0
    await box.close()


async def test_what_is_found_takes_the_room_of_rows_that_the_server_has(tmp_path, monkeypatch):
    path = tmp_path / "outbox.db"
    box = await opened(path)
    monkeypatch.setattr(box._salvage, "start_if_needed", lambda: None)
    await box.enqueue_all([("results", b"%04d" % number * 250) for number in range(100)])
    await box._writer.run(lambda: box._core.begin_anew("page 7 is torn"))
    server = Server()
    await box.enqueue_all([("alarms", b"%04d" % number * 250) for number in range(200)])
    await server.take_all(box)
    pages = box._core.connection.execute("PRAGMA page_count").fetchone()[0]
    box._core.connection.execute(f"PRAGMA max_page_count={pages}")
    found = list(carve(damage.quarantined(path)[0], box._core.book.epochs))
    assert await box._writer.run(lambda: box._core.adopt(found)) == 100
    assert box.counts()["results"] == LaneCounts(produced=100, queued=100)
    await box.close()


async def test_a_file_that_was_looked_through_goes_when_the_disk_is_low(tmp_path):
    box = await opened(tmp_path / "outbox.db", keep_free_bytes=1000)
    kept = [tmp_path / "outbox.salvaged-7.db", tmp_path / "outbox.salvaged-7.db-wal"]
    for path in kept:
        path.write_bytes(bytes(50_000))
    await box.tend(Instant("b", 0, None), 1000)
    assert all(path.exists() for path in kept), "a person may want it for as long as there is room"
    assert await box.give_back(100_000) >= 100_000
    assert not any(path.exists() for path in kept)
    kept[0].write_bytes(bytes(50_000))
    await box.tend(Instant("b", 0, None), 999)
    assert not kept[0].exists()
    await box.close()


async def test_what_a_full_disk_does_not_let_be_done_keeps_nothing_from_making_room(tmp_path, monkeypatch):
    box = await opened(tmp_path / "outbox.db", keep_free_bytes=1000)
    kept = tmp_path / "outbox.salvaged-7.db"
    kept.write_bytes(bytes(50_000))

    def full(now: Instant) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(box._core, "tend", full)
    with pytest.raises(StateError, match="disk is full"):
        await box.tend(Instant("b", 0, None), 0)
    assert not kept.exists()
    await box.close()
