"""A server whose clock jumps: nothing that it signs goes along, and a person's word or the right time ends it."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tuf.api.metadata import Metadata

from server import app, authorities, steady_clock
from server.certificates import Certificates
from server.cli import main
from server.clock import as_datetime
from server.founding import Layout
from server.steady_clock import BORN_MS, DAY_MS, SteadyClock
from server.storage.catalog import Catalog
from tests.fakes.server_house import START_MS, House, body_of, running
from tests.fakes.trusting_machine import TrustingMachine
from tests.unit.server.test_backup import backed_up

HOUR_MS = 3_600_000
TEN_YEARS_MS = 3650 * DAY_MS


class Wall:
    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@pytest.mark.parametrize("jump_ms", [TEN_YEARS_MS, -START_MS, 8 * DAY_MS])
def test_a_jump_is_not_followed_and_time_goes_on_until_the_clock_comes_back(jump_ms: int) -> None:
    wall = Wall(START_MS - HOUR_MS)
    clock = SteadyClock(wall, wall.now_ms)
    wall.now_ms = START_MS
    assert clock() == START_MS
    wall.now_ms += jump_ms
    assert clock() == START_MS
    wall.now_ms += DAY_MS
    assert (clock(), clock.off_ms) == (START_MS + DAY_MS, jump_ms)
    wall.now_ms = START_MS + 2 * DAY_MS
    assert (clock(), clock.off_ms) == (START_MS + 2 * DAY_MS, 0)
    assert (clock.take_jump(), clock.take_jump()) == (jump_ms, 0)


@pytest.mark.parametrize("pause_ms", [0, 29 * DAY_MS, -29 * DAY_MS])
def test_a_pause_between_two_runs_is_believed(pause_ms: int) -> None:
    assert SteadyClock(Wall(START_MS + pause_ms), START_MS)() == START_MS + pause_ms


@pytest.mark.parametrize("pause_ms", [31 * DAY_MS, TEN_YEARS_MS, -START_MS])
def test_a_start_far_from_the_last_run_goes_on_from_that(pause_ms: int) -> None:
    wall = Wall(START_MS + pause_ms)
    clock = SteadyClock(wall, START_MS)
    assert (clock(), clock.off_ms) == (START_MS, pause_ms)
    clock.believe(START_MS)  # that is not what the computer shows
    assert clock() == START_MS
    clock.believe(wall.now_ms)
    assert (clock(), clock.off_ms) == (wall.now_ms, 0)


@pytest.mark.parametrize("shown_ms", [0, START_MS, START_MS + TEN_YEARS_MS])
@pytest.mark.parametrize("off_ms", [29 * DAY_MS, -29 * DAY_MS])
def test_a_clock_without_a_battery_that_is_set_after_the_start_is_believed_as_one_that_was_right(
    shown_ms: int, off_ms: int
) -> None:
    """Until the network is there it shows 1970, or when it was stopped."""
    wall = Wall(shown_ms)
    clock = SteadyClock(wall, START_MS)
    for _ in range(3):
        wall.now_ms += HOUR_MS // 4
        clock()
    if shown_ms != START_MS:  # it takes the network days, while this clock is believed at once
        wall.now_ms += 3 * DAY_MS
    known_ms = clock()
    wall.now_ms = known_ms + off_ms
    assert (clock(), clock.off_ms) == (known_ms + off_ms, 0)
    # And that was that.
    for _ in range(5):
        wall.now_ms += HOUR_MS // 4
        clock()
    right_ms = wall.now_ms
    wall.now_ms += 8 * DAY_MS
    assert (clock(), clock.off_ms) == (right_ms, 8 * DAY_MS)


def test_a_start_in_a_wrong_year_is_no_reason_to_follow_another_one() -> None:
    wall = Wall(START_MS + TEN_YEARS_MS)
    clock = SteadyClock(wall, START_MS)
    wall.now_ms = START_MS + 31 * DAY_MS
    assert (clock(), clock.off_ms) == (START_MS, 31 * DAY_MS)


@pytest.mark.parametrize("known_ms", [0, 1, BORN_MS - 1])
def test_a_clock_that_was_never_set_is_no_knowledge(known_ms: int) -> None:
    wall = Wall(known_ms)
    clock = SteadyClock(wall, known_ms)
    clock()
    wall.now_ms = START_MS
    assert (clock(), clock.off_ms) == (START_MS, 0)


async def test_a_server_that_was_ten_years_ahead_for_a_round_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CERTIFICATES_CHECK_S", "RESIGN_CHECK_S", "COUNT_S", "ALARMS_CHECK_S"):
        monkeypatch.setattr(app, name, 0.02)
    async with running(tmp_path, steady=True) as house:
        await house.publish()
        tractor = await house.enrol("tractor-1")
        start = house.now_ms
        house.now_ms += TEN_YEARS_MS
        await until(lambda: house.events("clock-jumped"))
        assert (await house.must("GET", "/api/v1/status"))["clock"] == {"known_ms": start, "off_ms": TEN_YEARS_MS}
        answer = await tractor.sync()
        assert body_of(answer.time)["time_ms"] == start
        await house.publish()
        house.now_ms = start + 1000
        answer = await tractor.sync()
        assert body_of(answer.time)["time_ms"] == house.now_ms
        stamp = Metadata.from_bytes(answer.image_timestamp.encode()).signed
        assert stamp.expires < as_datetime(start + 8 * DAY_MS) and stamp.version < start // 1000 + 100
        held = await asyncio.to_thread(authorities.load, house.state / "ca")
        assert [each.standing for each in held.record.generations] == ["current"]


async def test_a_persons_word_is_taken_up_by_a_server_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "COUNT_S", 0.02)
    async with running(tmp_path, steady=True) as house:
        await house.stop()
        house.now_ms += 90 * DAY_MS  # a winter
        await house.start()
        assert (await off(house)) == 90 * DAY_MS

        def tell() -> None:
            with closing(Catalog(f"sqlite:///{house.state / 'catalog.db'}")) as catalog, catalog.write() as session:
                steady_clock.tell(session, house.now_ms)

        await asyncio.to_thread(tell)
        await until(lambda: follows(house))
        assert await off(house) == 0
        assert len(await house.events("clock-jumped")) == len(await house.events("clock-believed")) == 1


async def until(true: Callable[[], Awaitable[object]]) -> None:
    for _ in range(500):
        if await true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never was")


async def follows(house: House) -> bool:
    return bool((await house.must("GET", "/api/v1/status"))["now_ms"] == house.now_ms)


async def off(house: House) -> int:
    return int((await house.must("GET", "/api/v1/status"))["clock"]["off_ms"])


async def test_the_command_tells_the_time_that_it_was_and_the_status_that_it_jumped(house: House) -> None:
    await house.stop()

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(main, [*arguments, "--state", str(house.state), "--json"])
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def work() -> None:
        with closing(Catalog(f"sqlite:///{house.state / 'catalog.db'}")) as catalog:
            with catalog.write() as session:
                steady_clock.keep(session, SteadyClock(Wall(START_MS + TEN_YEARS_MS), START_MS))
            assert run("status")["clock"] == {"known_ms": START_MS, "off_ms": TEN_YEARS_MS}
            shown = CliRunner().invoke(main, ["status", "--state", str(house.state)]).stdout
            assert "3650 days ahead" in " ".join(shown.split())
            told = run("believe-clock", "--yes")
            assert told["before_ms"] == START_MS
            assert run("status")["clock"] == {"known_ms": told["now_ms"], "off_ms": 0}

    await asyncio.to_thread(work)


async def test_a_backup_is_dated_by_what_the_catalog_knows_where_the_clock_jumped(house: House) -> None:
    def work() -> str:
        with closing(Catalog(f"sqlite:///{house.state / 'catalog.db'}")) as catalog, catalog.write() as session:
            steady_clock.tell(session, START_MS)
        house.now_ms += TEN_YEARS_MS
        return backed_up(house).name

    assert await asyncio.to_thread(work) == f"{as_datetime(START_MS):%Y%m%dT%H%M%SZ}"


async def test_a_ca_of_the_future_is_replaced_so_that_peoples_tools_speak_again(house: House) -> None:
    await house.stop()

    def heal() -> list[str]:
        authorities.rotate(house.state / "ca", as_datetime(house.now_ms + TEN_YEARS_MS))
        with closing(Catalog(f"sqlite:///{house.state / 'catalog.db'}")) as catalog:
            certificates = Certificates(
                Layout(house.state), catalog, ("localhost", "127.0.0.1"), lambda: house.now_ms, timedelta(days=3650)
            )
            held = certificates.now()
            # A clock that is weeks ahead, and believed, dates none into the future.
            assert held.current.certificate.not_valid_before_utc < as_datetime(house.now_ms - 300 * DAY_MS)
            return [each.standing for each in held.record.generations]

    assert await asyncio.to_thread(heal) == ["current", "retiring", "retiring"]
    await house.start()
    assert "it begins in the future" in (await house.events("ca-rotated"))[0]["detail"]


async def test_a_machine_that_enrolled_since_an_old_database_is_taken_back_also_where_the_clock_is_doubted(
    tmp_path: Path,
) -> None:
    """The server goes by the time of the database then, and the machine's certificate is of after it."""
    async with running(tmp_path, steady=True) as house:
        await house.publish()
        catalog, kept = house.state / "catalog.db", tmp_path / "kept.db"

        def copy(source: Path, target: Path) -> None:
            with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as made:
                live.backup(made)

        await asyncio.to_thread(copy, catalog, kept)
        await house.stop()
        for _ in range(2):  # 42 days, and two more starts than the copy counts
            house.now_ms += 21 * DAY_MS
            await house.start()
            assert await off(house) == 0
            if house.now_ms > START_MS + 30 * DAY_MS:
                newcomer = TrustingMachine(house, "newcomer", tmp_path / "newcomer")
                assert (await newcomer.enrol(await house.make_token("newcomer")))[0] == 200
            await house.stop()
        for path in house.state.glob("catalog.db*"):
            path.unlink()
        await asyncio.to_thread(copy, kept, catalog)
        await house.start()
        assert await off(house) == 42 * DAY_MS
        assert (await newcomer.contact(newcomer.request()))[0] == 200
        assert (await house.must("GET", "/api/v1/devices/newcomer"))["returned"]
