"""Accounts stay small over years: what is settled is folded into counts, and nothing that is counted changes by it."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from device.day import Instant
from device.outbox import folding, room
from device.outbox.book import Draft, Folded, LaneBook
from device.outbox.box import LaneCounts, Outbox
from device.outbox.folding import end_of, folded_to
from device.outbox.keys import place_of
from device.outbox.room import LanePolicy, delete_receipted, make_room, record_loss
from device.outbox.schema import used_bytes
from protocol import limits
from protocol.spans import Spans
from signing import durable
from tests.unit.device.outbox.test_damage import GENERATION, Server

NOW = Instant("b", 0, None)


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch):
    monkeypatch.setattr(folding, "PIECES_KEPT", 16)
    monkeypatch.setattr(folding, "EPOCHS_KEPT", 6)


class Life:
    """An outbox and its server, over many openings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = Server()
        self.damage: list[str] = []
        self.tokens = (f"{number:032x}" for number in itertools.count(1))
        self.rows = (b"row %d" % number for number in itertools.count())

    async def open(self) -> None:
        self.box = await Outbox.opened(
            self.path,
            "tractor-1",
            budget_bytes=64 * limits.MIB,
            now_ms=lambda: 1,
            draw_token=lambda: next(self.tokens),
            on_damage=self.damage.append,
            boot="b",
        )
        # Thousands of commits, and no cut here.
        self.box._core.connection.execute("PRAGMA synchronous=OFF")
        await self.box.meet_generation(GENERATION)

    async def reopen(self) -> None:
        await self.box.close()
        await self.open()

    async def work(self, *, drop: bool = False, give_back: bool = True) -> None:
        """A few rows; one is dropped before the rest goes out, and what was receipted is deleted."""
        numbers = await self.box.enqueue_all([("results", next(self.rows)) for _ in range(3)])
        await self.box.enqueue("alarms", next(self.rows))
        if drop:
            self.drop(numbers[1])
        await self.server.take_all(self.box)
        if give_back:
            self.give_back()

    def drop(self, number: int) -> None:
        one = Spans.of([(number, number)])
        self.box._core.transact(lambda draft: record_loss(draft, (draft.current, "results"), one, "budget", 1))

    def give_back(self) -> None:
        while self.box._core.transact(lambda draft: delete_receipted(draft, 100)):
            pass

    def sizes(self) -> dict[str, int]:
        connection = self.box._core.connection
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("epochs", "lanes", "spans", "losses")
        }


@pytest.fixture
async def life(tmp_path):
    life = Life(tmp_path / "outbox.db")
    await life.open()
    yield life
    await life.box.close()


async def test_years_of_drops_and_receipts_leave_accounts_of_a_bounded_size(life):
    most = 0
    for turn in range(90):
        await life.work(drop=True)
        if turn % 10 == 9:
            await life.box.tend(NOW)
            most = max(most, life.sizes()["spans"], life.sizes()["losses"])
    assert most <= 2 * (folding.PIECES_KEPT + 10), "what comes between two looks is folded with the next"
    for _ in range(2):
        assert life.box.counts() == {
            "alarms": LaneCounts(produced=90, receipted=90),
            "results": LaneCounts(produced=270, receipted=180, lost=90),
        }
        assert life.box.positions()["results"].lost == 90
        assert (len(life.server.rows), life.server.lost()) == (270, 90)
        await life.reopen()
    assert life.damage == []


@pytest.mark.parametrize("waits", ["rows", "losses"])
async def test_what_is_not_settled_is_never_folded(life, waits):
    """The server's receipts come for the one and not for the other."""
    first = [("results", next(life.rows))]
    await life.box.enqueue_all(first)
    for _ in range(40):
        [number] = await life.box.enqueue_all([("results", next(life.rows))])
        life.drop(number)
        await life.box.enqueue("results", next(life.rows))
    batch = await life.box.next_batch()
    receipt = life.server.take(batch)
    await life.box.apply_receipt(replace(receipt, rows=()) if waits == "rows" else replace(receipt, losses=()))
    life.give_back()
    await life.box.tend(NOW)
    assert life.sizes()["losses"] == 40
    assert life.box.queued() == (41 if waits == "rows" else 0)
    await life.server.take_all(life.box)
    life.give_back()
    await life.box.tend(NOW)
    assert life.sizes()["losses"] < 40
    assert life.box.counts()["results"] == LaneCounts(produced=81, receipted=41, lost=40)


async def test_epochs_of_years_become_one_line_and_their_numbers_stay_counted(life):
    for turn in range(25):
        await life.work(drop=turn % 3 == 0, give_back=turn < 10)
        await life.box.begin_epoch()
        if turn % 5 == 4:
            await life.box.tend(NOW)
    await life.box.tend(NOW)
    assert life.sizes()["epochs"] == folding.EPOCHS_KEPT
    assert life.sizes()["lanes"] <= 2 * (folding.EPOCHS_KEPT + 1)
    [(oldest,)] = life.box._core.connection.execute("SELECT min(id) FROM rows")
    assert place_of(oldest)[0] >= min(life.box._core.book.epochs), "no row is left that nobody knows of"
    for _ in range(2):
        counts = life.box.counts()
        assert counts["results"] == LaneCounts(produced=75, receipted=66, lost=9)
        assert counts["alarms"] == LaneCounts(produced=25, receipted=25)
        await life.reopen()
    assert life.damage == []
    await life.work()
    assert len(life.server.rows) + life.server.lost() == life.box.produced() == 104


async def test_a_lane_is_thinned_for_as_long_as_it_lives(life, monkeypatch):
    """The number of losses that stand alone is bounded; those that the server was told of count no more."""
    monkeypatch.setattr(room, "THINNED_SPANS", 40)
    thin = {"results": LanePolicy("keep-one-in", keep_one_in=3)}

    def drop(draft: Draft) -> None:
        make_room(draft, used_bytes(draft.connection) - 80 * limits.KIB, thin, 1)

    for _ in range(12):
        numbers = await life.box.enqueue_all([("results", b"%06d" % number * 500) for number in range(60)])
        life.box._core.transact(drop)
        kept = life.box._core.book.lane(1, "results").queued
        assert [number for number in numbers if number in kept] == [number for number in numbers if number % 3 == 0]
        await life.server.take_all(life.box)
        life.give_back()
        await life.box.tend(NOW)


@pytest.mark.parametrize("waits", ["a row", "a loss"])
async def test_an_epoch_that_something_waits_in_stays(life, waits):
    [number] = await life.box.enqueue_all([("results", next(life.rows))])
    if waits == "a loss":
        life.drop(number)
    for _ in range(10):
        await life.box.begin_epoch()
    await life.box.tend(NOW)
    assert life.sizes()["epochs"] == 11
    await life.server.take_all(life.box)
    await life.box.tend(NOW)
    assert life.sizes()["epochs"] == folding.EPOCHS_KEPT
    assert (len(life.server.rows), life.server.lost()) == ((1, 0) if waits == "a row" else (0, 1))


async def test_a_server_out_of_a_backup_is_told_again_of_the_newest_losses(life):
    kept = []
    for _ in range(45):
        await life.work(drop=True)
        await life.box.tend(NOW)
        kept.append(life.sizes()["losses"])
    assert min(kept[10:]) >= folding.PIECES_KEPT // 2, "each other piece is a span of rows that went"
    again = Server()
    await life.box.meet_generation("7" * 32)
    batch = await life.box.next_batch()
    again.take(batch)
    assert again.lost() == kept[-1] < 45
    assert life.box.counts()["results"].lost == 45


async def test_no_epoch_is_folded_that_the_file_beside_still_names(life, monkeypatch):
    for _ in range(10):
        await life.work()
        await life.box.begin_epoch()
    await life.box.enqueue("results", b"of an epoch that the file names")
    await life.box.begin_epoch()
    await life.server.take_all(life.box)
    for _ in range(10):
        await life.box.begin_epoch()

    def refuse(effect: str, path: Path) -> None:
        if "outbox.mark" in path.name:
            raise OSError(28, "no space")

    before = life.sizes()["epochs"]
    monkeypatch.setattr(durable.DISK, "before", refuse)
    await life.box.enqueue("results", b"the newest")
    await life.server.take_all(life.box)
    await life.box.tend(NOW)
    assert life.sizes()["epochs"] == before
    monkeypatch.undo()
    await life.box.tend(NOW)
    await life.reopen()
    assert life.damage == []


spans = st.lists(st.sampled_from(["gone", "moved", "lost", "receipted", "astray", "queued"]), max_size=60)


@given(spans, st.integers(0, 60), st.integers(0, 60))
def test_folding_changes_no_count_and_nothing_that_waits(kinds, first, second):
    of = {kind: Spans.of((n, n) for n, one in enumerate(kinds) if one == kind) for kind in set(kinds) - {"queued"}}
    whole = LaneBook(next_seq=len(kinds), **of)
    settled = next((n for n, kind in enumerate(kinds) if kind not in ("gone", "moved", "lost")), len(kinds))
    facts = whole
    for end in sorted((min(first, settled), min(second, settled))):
        facts = folded_to(facts, end)
        assert facts.folded.end == end
        for name in ("queued", "receipted", "astray", "produced", "sent", "dropped", "next_seq"):
            assert getattr(facts, name) == getattr(whole, name)
    records = [(n, n) for n, kind in enumerate(kinds) if kind == "lost"]
    assert 0 <= end_of(whole, records, None) <= settled
    assert end_of(whole, records, 0) == 0


def test_what_was_folded_twice_is_the_sum():
    assert (Folded(1, 2, 3) + Folded(4, 5, 6)).end == 21
