"""Alarms: once at half, at 80 % and at the end of every life, over restarts too, and none where all renews itself."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from protocol.kits import Technician
from server import authorities
from server.founding import FirstAnswers, found
from server.lifetimes import ONLINE, raise_alarms
from server.storage.catalog import Catalog
from server.storage.records import REPOSITORIES
from tests.fakes.server_house import START_MS, House, no_secret, published

DAY_MS = 86_400_000
BY_ITSELF = {"server-certificate server", *(f"role {kind}/{role}" for kind in REPOSITORIES for role in ONLINE)}
"""What the server renews in rounds that these tests do not make."""


async def look(house: House) -> list[str]:
    """One round of the server's own task; what was raised."""

    def round_() -> list[str]:
        catalog = Catalog(f"sqlite:///{house.state / 'catalog.db'}")
        try:
            return raise_alarms(catalog, authorities.load(house.state / "ca"), house.state / "tls", house.now_ms)
        finally:
            catalog.close()

    return sorted(await asyncio.to_thread(round_))


async def test_each_mark_of_each_life_is_raised_once(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        await house.enrol("tractor-1")
        start = house.now_ms
        raised: dict[int, list[str]] = {}
        for day in range(0, 400, 10):
            house.now_ms = start + day * DAY_MS
            found_ = [name for name in await look(house) if name not in BY_ITSELF]
            if found_:
                raised[day] = found_
        assert raised == {
            90: ["role image/pest-detector"],
            150: ["role image/pest-detector"],
            180: ["role image/pest-detector"],
            190: [
                "role director/root",
                "role director/targets",
                "role image/root",
                "role image/targets",
                "token operator",
            ],
            300: [
                "role director/root",
                "role director/targets",
                "role image/root",
                "role image/targets",
                "token operator",
            ],
            370: [
                "online-key director.assignments",
                "online-key director.clock",
                "online-key director.receipts",
                "online-key director.snapshot",
                "online-key director.timestamp",
                "online-key image.snapshot",
                "online-key image.timestamp",
                "role director/root",
                "role director/targets",
                "role image/root",
                "role image/targets",
                "token operator",
            ],
        }
        status = await _status(house)
        said = [event for event in await house.events("lifetime") if event["what"] == "role image/pest-detector"]
        assert [event["detail"].split(" (")[0] for event in said] == [
            "50% of its life is over",
            "80% of its life is over",
            "it has ended",
        ]
        assert [event.get("reason", "") for event in said] == ["", "", "expired"]
        assert "headland keys resign" in said[0]["detail"]
        assert status["device_certificates"] == {"fresh": 0, "due": 1, "urgent": 0, "expired": 0}
        assert [life["state"] for life in status["lives"]] == sorted(
            (life["state"] for life in status["lives"]), key=["expired", "urgent", "due", "fresh"].index
        )
        # A machine has some weeks to call, and to renew by itself, before somebody is told that it did not.
        house.now_ms = start + 430 * DAY_MS
        assert "device-certificate tractor-1" in await look(house)


async def _status(house: House) -> dict[str, Any]:
    # A year has passed for the server, and its operator's token with it.
    answers = FirstAnswers("127.0.0.1", 0, ("localhost",), "127.0.0.1", 0)
    await asyncio.to_thread(found, house.state, answers, lambda: house.now_ms, no_secret)
    await house.stop()
    await house.start()
    found_: dict[str, Any] = await house.must("GET", "/api/v1/status")
    return found_


async def test_what_was_renewed_raises_anew_only_at_its_own_marks(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        house.now_ms += 95 * DAY_MS
        assert "role image/pest-detector" in await look(house)
        house.managers.now = house.now()
        await house.release("1.0.0", 1, [b"weights"])
        assert await look(house) == []
        house.now_ms += 95 * DAY_MS
        assert "role image/pest-detector" in await look(house)


async def test_the_key_that_sticks_are_sealed_to_has_the_marks_of_an_online_key(tmp_path: Path) -> None:
    async with published(tmp_path) as house:

        async def name(key: str) -> None:
            house.managers.now = house.now()
            house.managers.sealing_key = key
            house.managers.delegate_online("director", "clock")
            await house.publish()

        await name("1" * 64)
        house.now_ms += 200 * DAY_MS
        await name("1" * 64)
        assert "online-key sealing" not in await look(house)
        house.now_ms += 170 * DAY_MS
        assert "online-key sealing" in await look(house), "signed again it is no younger"
        await _status(house)  # with a token of its own
        [first] = [event for event in await house.events("lifetime") if event["what"] == "online-key sealing"]
        assert "headland-server keys rotate sealing" in first["detail"]


async def test_a_list_of_technicians_has_marks_of_its_own_as_long_as_somebody_is_in_it(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tom = Technician(name="tom", public_key="1" * 64, expires_ms=START_MS + 365 * DAY_MS)
        house.managers.technicians(tom)
        await house.publish()
        start = house.now_ms
        raised = []
        for day in range(0, 80, 10):
            house.now_ms = start + day * DAY_MS
            if "role director/technicians" in await look(house):
                raised.append(day)
        assert raised == [30, 50, 60]
        house.managers.now = house.now()
        house.managers.technicians()
        await house.publish()
        house.now_ms += 80 * DAY_MS
        assert "role director/technicians" not in await look(house)


async def test_a_clock_that_ran_ahead_and_was_set_right_leaves_every_mark_to_come(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        house.now_ms += 3650 * DAY_MS
        assert "role image/pest-detector" in await look(house)
        house.now_ms -= 3650 * DAY_MS
        assert await look(house) == []
        house.now_ms += 95 * DAY_MS
        assert "role image/pest-detector" in await look(house)


async def test_a_silent_server_task_raises_alarms_at_the_start(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        house.now_ms += 100 * DAY_MS
        await house.stop()
        await house.start()
        for _ in range(500):
            events = await house.events("lifetime")
            if events:
                break
            await asyncio.sleep(0.02)
        assert {event["what"] for event in events} == {"role image/pest-detector"}


def test_the_operators_token_is_made_anew_past_half_its_life_and_the_old_one_goes_on(tmp_path: Path) -> None:
    answers = FirstAnswers("127.0.0.1", 0, ("localhost",), "127.0.0.1", 0)
    at = START_MS
    layout = found(tmp_path, answers, lambda: at, no_secret)
    first = layout.operator.read_bytes()
    at += 180 * DAY_MS
    found(tmp_path, answers, lambda: at, no_secret)
    assert layout.operator.read_bytes() == first
    at += 5 * DAY_MS
    found(tmp_path, answers, lambda: at, no_secret)
    assert layout.operator.read_bytes() != first
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    try:
        with catalog.read() as session:
            assert len(session.tokens.operators()) == 1
            (token,) = session.tokens.operators()
            assert token.created_ms == at
    finally:
        catalog.close()


async def test_the_ca_is_replaced_by_itself_at_80_percent_and_ended_when_nobody_needs_it(tmp_path: Path) -> None:
    from server.certificates import Certificates
    from server.founding import Layout

    async with published(tmp_path) as house:
        await house.enrol("tractor-1")
        await house.must("POST", "/api/v1/devices/tractor-1/revoke", {})  # a revoked machine keeps no CA alive
        await house.stop()

        def live() -> list[str]:
            catalog = Catalog(f"sqlite:///{house.state / 'catalog.db'}")
            try:
                certificates = Certificates(
                    Layout(house.state), catalog, ("localhost",), lambda: house.now_ms, timedelta(days=3650)
                )
                seen = []
                for day in (2900, 2921, 2950, 2952):
                    house.now_ms = START_MS + day * DAY_MS
                    certificates.refresh()
                    record = certificates.now().record
                    seen.append(" ".join(each.standing for each in record.generations))
                with catalog.read() as session:
                    kinds = [event.kind for event in session.events.after(0, 999) if event.kind.startswith("ca-")]
                return [*seen, *kinds]
            finally:
                catalog.close()

        assert await asyncio.to_thread(live) == [
            "current",
            "current retiring",
            "current retiring",
            "current ended",
            "ca-rotated",
            "ca-ended",
        ]
        await house.start()
