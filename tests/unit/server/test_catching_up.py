"""Online versions that a machine trusts and the server has not: it gets ahead at once, within reason, never back."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from server import restored
from server.app import open_parts
from server.publish import VERSION_REACH
from server.storage.catalog import Session
from tests.fakes.server_house import House, no_secret

DAYS_30_S = 30 * 86_400


async def versions(house: House) -> dict[str, int]:
    repositories = (await house.must("GET", "/api/v1/status"))["repositories"]
    return {f"{kind}/{role}": state["version"] for kind, of in repositories.items() for role, state in of.items()}


@pytest.mark.parametrize("role", ["image/timestamp", "image/snapshot", "director/timestamp", "director/snapshot"])
async def test_the_answer_of_the_same_contact_is_above_what_the_machine_trusts(house: House, role: str) -> None:
    tractor = await house.enrol("tractor-1")
    seen = house.now_ms // 1000 + DAYS_30_S
    answer = await tractor.sync(versions={**await versions(house), role: seen})
    for text in (answer.image_timestamp, answer.director_timestamp):
        assert json.loads(text)["signed"]["version"] == seen + 1
    assert (await tractor.ask("GET", f"/v1/tuf/image/{seen + 1}.snapshot.json"))[0] == 200
    (event,) = await house.events("server-behind")
    assert (event["what"], "signed anew" in event["detail"]) == (role, True)
    # It stays ahead: over a restart, and as the years go by.
    await house.stop()
    await house.start()
    assert (await versions(house))["image/timestamp"] > seen + 1


async def test_no_snapshot_goes_back_while_the_managers_files_are_missing(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    before = await versions(house)
    seen = house.now_ms // 1000 + DAYS_30_S
    held = {**before, "image/timestamp": seen, "image/snapshot": seen, "image/targets": before["image/targets"] + 1}
    await tractor.sync(versions=held)
    assert await versions(house) == before
    (event,) = await house.events("server-behind")
    assert "headland release push --again" in event["detail"]
    await house.release("1.0.0", 1, [b"model"])
    assert (await versions(house))["image/snapshot"] == seen + 1


async def test_a_machine_that_lies_is_followed_within_reason_and_not_often(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    before = await versions(house)
    await tractor.sync(versions={**before, "image/timestamp": VERSION_REACH})
    assert await versions(house) == before
    ahead = house.now_ms // 1000 + DAYS_30_S
    for number in range(3):
        await tractor.sync(versions={**before, "image/timestamp": ahead + 10 * number})
    assert (await versions(house))["image/timestamp"] == ahead + 1
    house.now_ms += 600_000
    await tractor.sync(versions={**before, "image/timestamp": ahead + 20})
    assert (await versions(house))["image/timestamp"] == ahead + 21


async def test_a_machine_that_is_set_apart_is_not_believed(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    token = (await tractor.sync()).sync_token
    await tractor.sync()
    tractor.sync_token = token
    before = await versions(house)
    assert (await tractor.sync(versions={**before, "image/timestamp": 1 << 40})).set_apart
    assert await versions(house) == before


async def test_nothing_is_signed_when_a_machine_shows_at_that_moment_that_the_catalog_is_a_backup(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.stop()

    def work() -> None:
        parts = open_parts(house.state, lambda: house.now_ms, no_secret)
        write = parts.catalog.write

        def stamp() -> bytes | None:
            with parts.catalog.read() as session:
                return session.repositories.served("image", "timestamp.json")

        @contextmanager
        def after_the_machine() -> Iterator[Session]:
            with write() as session:
                restored.begin(session, house.now_ms, restore="tractor-1 7", backup_ms=0, how="a token of later")
            with write() as session:
                yield session

        with closing(parts.catalog):
            before = stamp()
            house.now_ms += DAYS_30_S * 1000
            monkeypatch.setattr(parts.catalog, "write", after_the_machine)
            assert not parts.publisher.resign()
            assert stamp() == before

    await asyncio.to_thread(work)
