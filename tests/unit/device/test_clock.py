"""The time rule of DESIGN.md section 3, on clocks that lie."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.clock import (
    CHECKPOINT_MS,
    KEY,
    Anchor,
    Clock,
    ClockRecord,
    Moment,
    checkpoint,
    learn,
    load,
    now_here,
    read,
    wall_is_off,
)
from device.state_db import StateDb
from protocol.wire import encode

BUILT = 1_000_000_000_000
DAY = 86_400_000
TIMES = st.integers(0, 4_102_444_800_000)


def at(boot_ms: int, wall_ms: int = 0, boot_id: str = "a") -> Moment:
    return Moment(boot_id=boot_id, boot_ms=boot_ms, wall_ms=wall_ms)


def told(record: ClockRecord, signed_ms: int, moment: Moment, asked: int | None = None, keyids=("k",)) -> ClockRecord:
    asked_ms = moment.boot_ms if asked is None else asked
    return learn(record, signed_ms, asked_ms, moment, keyids=keyids, threshold=1, built_ms=BUILT)


class Facts:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.writes = 0

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value
        self.writes += 1

    def change(self, key: str, make: Callable[[bytes | None], bytes | None]) -> None:
        made = make(self.get(key))
        if made is not None:
            self.put(key, made)


def test_without_a_statement_time_is_unsure_and_never_before_the_build() -> None:
    assert read(ClockRecord(), at(0, wall_ms=0), BUILT).ms == BUILT
    reading = read(ClockRecord(), at(0, wall_ms=BUILT + DAY), BUILT)
    assert (reading.ms, reading.sure) == (BUILT + DAY, False)


def test_a_statement_makes_time_sure_and_boottime_carries_it_whatever_the_wall_clock_does() -> None:
    record = told(ClockRecord(), BUILT + 5 * DAY, at(1000, wall_ms=0))
    for wall in (0, BUILT, 2**41, 4 * 10**12):
        reading = read(record, at(1000 + 3 * DAY, wall_ms=wall), BUILT)
        assert (reading.ms, reading.sure) == (BUILT + 8 * DAY, True)


def test_after_a_boot_time_is_unsure_again_but_not_before_what_was_known() -> None:
    record = told(ClockRecord(), BUILT + 5 * DAY, at(1000))
    reading = read(record, at(50, wall_ms=0, boot_id="b"), BUILT)
    assert (reading.ms, reading.sure) == (BUILT + 5 * DAY, False)


def test_time_is_pinned_to_the_asking_so_that_it_is_never_behind() -> None:
    record = told(ClockRecord(), BUILT + DAY, at(31_000), asked=1000)
    assert read(record, at(31_000), BUILT).ms == BUILT + DAY + 30_000


def test_a_statement_from_before_the_floor_holds_time_back_only_to_the_floor() -> None:
    record = told(ClockRecord(), BUILT + 5 * DAY, at(1000))
    again = told(record, BUILT + DAY, at(2000, boot_id="b"))
    assert read(again, at(2000, boot_id="b"), BUILT).ms == BUILT + 5 * DAY


def test_the_wall_clock_never_raises_the_floor() -> None:
    ahead = at(0, wall_ms=BUILT + 4000 * DAY)
    assert checkpoint(ClockRecord(), ahead, BUILT) == ClockRecord()
    record = told(ClockRecord(), BUILT + DAY, ahead)
    assert record.floor_ms == BUILT + DAY


def test_a_checkpoint_keeps_sure_time_over_the_next_boot() -> None:
    record = told(ClockRecord(), BUILT + DAY, at(0))
    kept = checkpoint(record, at(200 * DAY), BUILT)
    assert read(kept, at(0, boot_id="b"), BUILT).ms == BUILT + 201 * DAY
    assert checkpoint(record, at(CHECKPOINT_MS - 1), BUILT) is record


def test_a_clock_pushed_ahead_is_lowered_by_rotation_of_its_key_and_by_nothing_else() -> None:
    pushed = told(ClockRecord(), BUILT + 30_000 * DAY, at(0), keyids=("stolen",))
    same_key = told(pushed, BUILT + DAY, at(0), keyids=("stolen",))
    assert read(same_key, at(0), BUILT).ms == BUILT + 30_000 * DAY
    one_more_key = told(pushed, BUILT + DAY, at(0), keyids=("stolen", "new"))
    assert read(one_more_key, at(0), BUILT).ms == BUILT + 30_000 * DAY
    rotated = told(pushed, BUILT + DAY, at(0), keyids=("new",))
    assert (read(rotated, at(0), BUILT).ms, rotated.floor_ms) == (BUILT + DAY, BUILT + DAY)


def test_a_statement_that_agrees_with_running_time_writes_nothing_within_the_hour() -> None:
    record = told(ClockRecord(), BUILT + DAY, at(0))
    assert told(record, BUILT + DAY + 60_000, at(60_100)) is record
    assert told(record, BUILT + DAY + CHECKPOINT_MS, at(CHECKPOINT_MS)) is not record
    assert told(record, BUILT + 2 * DAY, at(60_000)) is not record


def test_the_wall_clock_is_called_off_beyond_a_day() -> None:
    assert wall_is_off(at(0, wall_ms=0), BUILT)
    assert wall_is_off(at(0, wall_ms=BUILT + DAY + 1), BUILT)
    assert not wall_is_off(at(0, wall_ms=BUILT - DAY), BUILT)


@given(st.lists(st.tuples(TIMES, TIMES, st.integers(0, 10**10), st.sampled_from("abc")), max_size=8), TIMES)
def test_under_one_key_time_floors_never_go_down(steps: list[tuple[int, int, int, str]], wall: int) -> None:
    record = ClockRecord()
    for signed, here_wall, boot, boot_id in steps:
        moment = at(boot, here_wall, boot_id)
        after = checkpoint(told(record, signed, moment), moment, BUILT)
        assert after.floor_ms >= record.floor_ms
        assert read(after, at(0, wall, "later"), BUILT).ms >= record.floor_ms
        record = after


def test_the_shell_keeps_a_checkpoint_hourly_and_takes_over_what_the_keeper_learnt() -> None:
    facts = Facts()
    here = [at(0)]
    clock = Clock(facts, lambda: here[0], BUILT)
    assert not clock.now().sure
    facts.put(KEY, encode(told(ClockRecord(), BUILT + DAY, at(0))))
    clock.reload()
    assert clock.now().sure
    clock.keep()
    assert facts.writes == 1
    here[0] = at(CHECKPOINT_MS)
    clock.keep()
    assert facts.writes == 2
    assert load(facts).floor_ms == BUILT + DAY + CHECKPOINT_MS


def test_what_the_keeper_learns_while_a_checkpoint_is_made_is_not_written_over(tmp_path: Path) -> None:
    """Both write the record, each in a process of its own."""
    database, keeper = StateDb(tmp_path / "state.db"), StateDb(tmp_path / "state.db")
    with contextlib.closing(database), contextlib.closing(keeper):
        keeper.put(KEY, encode(told(ClockRecord(), BUILT + DAY, at(0))))
        learnt = told(load(keeper), BUILT + 9 * DAY, at(CHECKPOINT_MS), keyids=("new",))
        learning = threading.Thread(target=keeper.put, args=(KEY, encode(learnt)))

        def here() -> Moment:
            if learning.ident is None:
                learning.start()
                learning.join(0.3)  # it cannot end before the checkpoint is written; if it can, it does by then
            return at(CHECKPOINT_MS)

        Clock(database, here, BUILT).keep()
        learning.join()
        assert load(database) == learnt


@pytest.mark.parametrize("damaged", [b"", b"{", b"\xff", b'{"floor_ms": -1}', b'{"unknown": 1}'])
def test_a_damaged_record_makes_time_unsure_and_stops_nothing(damaged: bytes) -> None:
    facts = Facts()
    facts.values[KEY] = damaged
    assert load(facts) == ClockRecord()


def test_this_machine_has_the_clocks_that_the_rule_needs() -> None:
    first, second = now_here(), now_here()
    assert first.boot_id == second.boot_id
    assert 0 < first.boot_ms <= second.boot_ms
    assert Anchor(boot_id=first.boot_id, boot_ms=first.boot_ms, time_ms=first.wall_ms)
