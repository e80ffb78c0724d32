"""What technicians forced, held against the list that was pushed last: the audit says where it does not hold."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.kits import Technician
from tests.fakes.server_house import House, running
from tests.unit.server.kits.test_pieces import force

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
DAY_MS = 86_400_000


def entry(house: House, key: Ed25519PrivateKey = KEY, **more: object) -> Technician:
    fields = {
        "name": "ada",
        "public_key": key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex(),
        "expires_ms": house.now_ms + 30 * DAY_MS,
        "may_force": True,
        "machines": ("tractor-1",),
    }
    return Technician(**{**fields, **more})


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with running(tmp_path) as house:
        house.managers.technicians(entry(house))
        await house.publish()
        yield house


async def told(house: House, **more: object) -> tuple[str, str]:
    """Reason and detail of the event for a force that `KEY` signed."""
    machine = await house.enrol("tractor-1")
    await machine.sync(forces=(force(KEY, **{"at_ms": house.now_ms, **more}),))
    (event,) = await house.events("forced")
    assert (event["device"], event["what"]) == ("tractor-1", "pest-detector 1.0.0")
    return event.get("reason", ""), event["detail"]


async def test_a_force_that_the_list_bears_out_is_an_event_without_a_doubt(house: House) -> None:
    assert await told(house) == ("", "by ada: the header is off")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": OTHER}, "ada's key did not sign it"),
        ({"machines": ("tractor-2",)}, "ada may not force tractor-1"),
        ({"may_force": False}, "ada may not force tractor-1"),
        ({"name": "grace"}, "nobody of this name is in the list"),
    ],
)
async def test_a_force_that_the_list_does_not_bear_out_says_why(house: House, change: dict, says: str) -> None:
    house.managers.technicians(entry(house, **change))  # also: changed or revoked since
    await house.publish()
    reason, detail = await told(house)
    assert (reason, f"it does not hold: {says}" in detail) == ("signature", True), detail


async def test_a_force_after_the_entry_had_expired_says_so(house: House) -> None:
    house.managers.technicians(entry(house, expires_ms=house.now_ms - DAY_MS))
    await house.publish()
    assert "had expired" in (await told(house))[1]


async def test_a_force_from_before_the_entry_expired_holds_when_it_is_told_later(house: House) -> None:
    house.managers.technicians(entry(house, expires_ms=house.now_ms - DAY_MS))
    await house.publish()
    assert await told(house, at_ms=house.now_ms - 2 * DAY_MS) == ("", "by ada: the header is off")


async def test_a_force_that_was_signed_for_another_machine_says_so(house: House) -> None:
    assert "it was signed for tractor-2" in (await told(house, device="tractor-2"))[1]


async def test_a_second_request_under_one_challenge_is_said_once_however_it_is_told(house: House) -> None:
    machine = await house.enrol("tractor-1")
    first = force(KEY, id="1" * 32, at_ms=house.now_ms)
    second = force(KEY, id="1" * 32, at_ms=house.now_ms, release="9.0.0")
    for told in ((first, second), (second,), (second, first)):
        await machine.sync(forces=told)
    events = await house.events("forced")
    assert [event["what"] for event in events] == ["pest-detector 1.0.0", "pest-detector 9.0.0"]
    assert [event.get("reason", "") for event in events] == ["", "signature"]
    assert "another request bears the same challenge" in events[1]["detail"]
