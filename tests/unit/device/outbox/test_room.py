"""What goes when there is no room: by each lane's policy, by age, and each row counted. Space goes back to the disk."""

import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.day import Instant
from device.outbox import space
from device.outbox.box import MIN_BUDGET_BYTES, Outbox
from device.outbox.core import Core
from device.outbox.room import LanePolicy, delete_receipted
from device.outbox.ttl import NOTES_KEPT, age_ms
from device.settings import load
from protocol import limits
from protocol.results import Loss
from protocol.wire import decode
from tests.unit.device.outbox.test_damage import GENERATION, Server

DAY_MS = 86_400_000
SINCE_1970 = 1_700_000_000_000


class Boxes:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "outbox.db"
        self._tokens = (f"{number:032x}" for number in itertools.count(1))
        self._open: list[Outbox] = []

    async def __call__(self, budget_bytes: int = 64 * limits.MIB, **more) -> Outbox:
        box = await Outbox.opened(
            self._path,
            "tractor-1",
            budget_bytes=budget_bytes,
            now_ms=lambda: SINCE_1970,
            draw_token=lambda: next(self._tokens),
            **more,
        )
        self._open.append(box)
        return box

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._path.parent.glob("outbox.db*") if path.suffix != ".db-shm")

    async def close(self) -> None:
        for box in self._open:
            await box.close()


@pytest.fixture
async def boxes(tmp_path):
    boxes = Boxes(tmp_path)
    yield boxes
    await boxes.close()


async def flood(box: Outbox, lane: str, count: int, *, together: int = 20) -> None:
    for start in range(0, count, together):
        await box.enqueue_all([(lane, b"%08d" % number * 125) for number in range(start, start + together)])


def held(box: Outbox, lane: str) -> list[int]:
    return [n for first, last in box._core.book.lane(1, lane).queued for n in range(first, last + 1)]


async def test_drop_newest_keeps_the_beginning_of_a_backlog(boxes):
    box = await boxes(MIN_BUDGET_BYTES, policies={"results": LanePolicy("drop-newest")})
    await flood(box, "results", 1000)
    numbers = held(box, "results")
    oldest = [number for number in numbers if number < 500]
    assert oldest == list(range(len(oldest)))
    assert len(oldest) > 140
    assert numbers[-1] - 40 < min(set(numbers) - set(oldest), default=999), "but for what found room on the last page"
    assert box.lost() == 1000 - len(numbers)


async def test_keep_one_in_thins_the_oldest_before_it_drops_any_of_those_that_it_kept(boxes):
    box = await boxes(MIN_BUDGET_BYTES, policies={"results": LanePolicy("keep-one-in", keep_one_in=5)})
    await flood(box, "results", 240)
    numbers = held(box, "results")
    assert numbers[-50:] == list(range(190, 240)), "the newest are whole"
    assert [number for number in numbers if number < 60] == list(range(0, 60, 5))
    await flood(box, "results", 4000)
    numbers = held(box, "results")
    assert numbers[0] > 0, "in the end the oldest of those go"
    assert all(number % 5 == 0 for number in numbers[:50])
    counts = box.counts()["results"]
    assert counts.produced == counts.queued + counts.lost == 4240


async def test_a_lane_gives_up_by_its_own_policy_and_alarms_come_last(boxes):
    policies = {"alarms": LanePolicy("drop-newest"), "results": LanePolicy("drop-oldest")}
    box = await boxes(MIN_BUDGET_BYTES, policies=policies)
    await flood(box, "results", 150)
    await flood(box, "alarms", 600)
    assert held(box, "results") == []
    assert held(box, "alarms")[:140] == list(range(140))


def test_what_a_lane_gives_up_is_set_for_each_by_itself(tmp_path):
    settings = tmp_path / "device.toml"
    settings.write_text(
        """
        [outbox.alarms]
        ttl_s = 60.5
        [outbox.results]
        when_full = "keep-one-in"
        keep_one_in = 7
        """
    )
    assert load(settings).outbox.policies() == {
        "alarms": LanePolicy(ttl_s=60.5),
        "results": LanePolicy("keep-one-in", keep_one_in=7),
    }


@pytest.mark.parametrize("when_full", ["drop-oldest", "drop-newest", "keep-one-in"])
async def test_ingested_and_lost_are_produced_whatever_the_policy_and_the_link(boxes, when_full):
    box = await boxes(MIN_BUDGET_BYTES, policies={"results": LanePolicy(when_full, keep_one_in=3)})
    server = Server()
    await box.meet_generation(GENERATION)
    for turn in range(6):
        await flood(box, "results", 300)
        await flood(box, "alarms", 20)
        batch = await box.next_batch(30_000)
        receipt = server.take(batch)
        if turn % 2:  # else the answer is lost, and what was sent may be dropped all the same
            await box.apply_receipt(receipt)
    await server.take_all(box)
    assert len(server.rows) + server.lost() == box.produced() == 6 * 320
    records = [decode(record, Loss, limit=1000) for _, record in server.losses]
    assert all(loss.exact and loss.reason == "budget" for loss in records)


# Age


def at(hours: float, *, boot: str = "one", sure: bool = True, since: float = 0.0) -> Instant:
    """So many hours after the start; `since`: when this boot began."""
    return Instant(boot, int((hours - since) * 3_600_000), SINCE_1970 + int(hours * 3_600_000) if sure else None)


TTL = {"results": LanePolicy(ttl_s=10 * 3600.0)}


async def test_rows_that_outlived_their_lane_are_dropped_and_told_and_others_stay(boxes):
    box = await boxes(policies=TTL)
    await box.tend(at(0))
    for hour in range(1, 15):
        await flood(box, "results", 20)
        await flood(box, "alarms", 20)
        await box.tend(at(hour))
    assert len(held(box, "alarms")) == 280, "a lane without a time to live keeps all"
    assert held(box, "results") == list(range(60, 280)), "those of the first three hours are more than ten hours old"
    server = Server()
    await server.take_all(box)
    [loss] = [decode(record, Loss, limit=1000) for _, record in server.losses]
    assert (loss.first, loss.last, loss.reason, loss.exact) == (0, 59, "ttl", True)
    assert len(server.rows) + server.lost() == box.produced()


async def test_no_wall_clock_makes_a_row_old_and_a_winter_does_once_the_time_is_known(boxes):
    box = await boxes(policies=TTL)
    await flood(box, "results", 20)
    await box.tend(at(0))
    await flood(box, "results", 20)  # after the note: younger than it by an unknown time
    await box.close()
    box = await boxes(policies=TTL)
    await box.tend(at(3000, boot="two", since=2999.9, sure=False))
    assert len(held(box, "results")) == 40
    await flood(box, "results", 20)
    await box.tend(at(3000.1, boot="two", since=2999.9, sure=True))
    assert held(box, "results") == list(range(20, 60))


async def test_a_note_that_was_made_unsure_is_dated_once_the_time_is_known_in_that_boot(boxes):
    box = await boxes(policies=TTL)
    await flood(box, "results", 20)
    await box.tend(at(5, sure=False))
    await box.tend(at(6))
    await box.close()
    box = await boxes(policies=TTL)
    await box.tend(at(14.9, boot="two", since=14.8))
    assert len(held(box, "results")) == 20
    await box.tend(at(15.1, boot="two", since=14.8))
    assert held(box, "results") == []


async def test_rows_of_earlier_epochs_are_older_than_those_of_later_ones(boxes):
    box = await boxes(policies=TTL)
    await flood(box, "results", 20)
    await box.begin_epoch()
    await flood(box, "results", 20)
    await box.tend(at(0))
    await flood(box, "results", 20)
    await box.tend(at(10.1))
    assert [len(box._core.book.lane(epoch, "results").queued) for epoch in (1, 2)] == [0, 20]


async def test_without_any_time_a_row_is_as_old_as_the_boot_that_it_was_made_before(boxes):
    box = await boxes(policies=TTL)
    await flood(box, "results", 20)
    await box.tend(at(5, sure=False))
    await box.tend(at(9.9, boot="two", sure=False))
    assert len(held(box, "results")) == 20
    await box.tend(at(10.1, boot="two", sure=False))
    assert held(box, "results") == []


async def test_a_lane_whose_time_to_live_was_taken_away_keeps_its_rows(boxes):
    box = await boxes(policies=TTL)
    await flood(box, "results", 20)
    await box.tend(at(0))
    await box.close()
    box = await boxes(policies={"results": LanePolicy(), "alarms": LanePolicy(ttl_s=1.0)})
    await box.tend(at(1000))
    assert len(held(box, "results")) == 20


async def test_notes_of_the_time_are_few_however_often_one_looks_and_however_often_it_boots(boxes):
    box = await boxes(policies=TTL)
    core = box._core
    core.connection.execute("PRAGMA synchronous=OFF")

    async def notes_after(now: Instant) -> int:
        await box.enqueue("results", b"x")
        await box.tend(now)
        return core.connection.execute("SELECT count(*) FROM moments").fetchone()[0]

    assert max([await notes_after(at(look / 100)) for look in range(100)]) <= 2
    assert max([await notes_after(at(1, boot=f"boot {boot}", sure=False)) for boot in range(2 * NOTES_KEPT)]) > 32
    assert await notes_after(at(1, boot="the last", sure=False)) <= NOTES_KEPT + 1


@settings(max_examples=300)
@given(st.data())
def test_no_row_is_ever_thought_older_than_it_is(data):
    """Whatever boots, and whenever the time was known: an age is a lower bound."""
    true_ms, boot, began = 0, 0, 0
    moments = []
    for _ in range(data.draw(st.integers(1, 12))):
        true_ms += data.draw(st.integers(0, 10**9))
        if data.draw(st.booleans()):
            boot, began = boot + 1, true_ms
        sure = data.draw(st.booleans())
        now = Instant(str(boot), true_ms - began, true_ms if sure else None)
        for made_ms, moment in moments:
            assert age_ms(moment, now) <= true_ms - made_ms
        moments.append((true_ms, (1, "results", 1, now.boot_id, now.boot_ms, now.sure_ms)))


# Space


async def test_space_goes_back_to_the_disk_when_it_is_low_and_only_receipted_rows_pay_for_it(boxes):
    box = await boxes(keep_free_bytes=1000)
    server = Server()
    await flood(box, "results", 6000, together=500)
    await server.take_all(box, limits.MIB)
    await flood(box, "results", 600)
    await box.tend(at(0), free_bytes=2000)
    before = boxes.size_bytes()
    await box.tend(at(0), free_bytes=1000 - 3 * limits.MIB)
    assert before - boxes.size_bytes() >= 3 * limits.MIB
    counts = box.counts()["results"]
    assert (counts.queued, counts.receipted, counts.lost) == (600, 6000, 0)
    still = sum(len(facts.receipted) for facts in box._core.book.lanes.values())
    assert still > 0, "no more than what was asked for"
    assert await box.give_back(1 << 40) > 0
    assert boxes.size_bytes() < 600 * 1100 + limits.MIB
    await server.take_all(box)
    assert len(server.rows) == 6600


async def test_a_budget_that_was_lowered_is_kept_to_on_the_disk(boxes):
    box = await boxes()
    await flood(box, "results", 6000, together=500)
    await box.close()
    assert boxes.size_bytes() > 5 * limits.MIB
    box = await boxes(MIN_BUDGET_BYTES)
    await box.enqueue("results", b"one more")
    await box.tend(at(0))
    assert boxes.size_bytes() <= MIN_BUDGET_BYTES + 64 * limits.KIB
    assert box.produced() == box.queued() + box.lost() == 6001


async def test_rows_go_in_between_while_space_is_given_back(boxes, monkeypatch):
    box = await boxes()
    server = Server()
    await flood(box, "results", 8000, together=500)
    await server.take_all(box, limits.MIB)
    core = box._core
    await box._writer.run(lambda: core.transact(lambda draft: delete_receipted(draft, 4000)))
    real, pieces = space.step, []

    def step(core: Core, *, receipted: bool) -> bool:
        before_bytes, before_rows = core.pages_bytes(), len(core.book.lane(1, "results").gone)
        more = real(core, receipted=receipted)
        pieces.append((before_bytes - core.pages_bytes(), len(core.book.lane(1, "results").gone) - before_rows))
        return more

    monkeypatch.setattr(space, "step", step)
    giving = asyncio.create_task(box.give_back(1 << 40))
    between = 0
    while not giving.done():
        await box.enqueue("alarms", b"x")
        between += 1
    assert await giving > 5 * limits.MIB
    assert between > 20, "the file goes back in dozens of pieces, with rows in between"
    assert max(length for length, _ in pieces) <= 300 * limits.KIB
    assert max(rows for _, rows in pieces) <= 500


async def test_giving_back_waits_for_no_reader(boxes, monkeypatch):
    box = await boxes()
    await flood(box, "results", 1000)
    server = Server()
    await server.take_all(box)
    reader = box._core._reader
    with box._core._reading:
        cursor = reader.execute("SELECT id FROM rows")
        cursor.fetchone()
        await asyncio.wait_for(box.give_back(1 << 40), 4)
        cursor.close()
    assert isinstance(box._core, Core)
    assert await box.give_back(1 << 40) > 0, "taken up the next time"
