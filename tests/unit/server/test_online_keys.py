"""Online keys are replaced when the signed metadata names the next one: not before, not after, whatever is cut."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tuf.api.metadata import Metadata

from protocol.errors import SettingsError, StateError
from server import keyring, publish
from server.cli import main
from server.keyring import Keyring, drop_next, make_keys, make_next
from signing.online_keys import parse_online_keys
from tests.fakes.server_house import House, Machine, body_of, no_secret, published

CLOCK, STAMP = "director.clock", "image.timestamp"


def next_keys(house: House, *names: str) -> None:
    """Blocking: `headland-server keys rotate`, and the managers learn of them."""
    make_next(house.state / "keys", {}, names)
    ring = Keyring(house.state / "keys", {}, no_secret)
    for name in names:
        repository, role = name.split(".")
        house.managers.online[repository][role] = ring._signers[name][1]


def sign_rotation(house: House) -> None:
    """The managers delegate to what they learnt."""
    house.managers.now = house.now()
    house.managers.delegate_online("image", "timestamp", "snapshot")
    house.managers.delegate_online("director", "clock", "assignments", "receipts", "timestamp", "snapshot")


def keyid_of(text: str | bytes) -> str:
    metadata: Metadata[Any] = Metadata.from_bytes(text.encode() if isinstance(text, str) else text)
    (keyid,) = metadata.signatures
    return keyid


async def stamp_of(machine: Machine) -> tuple[str, str]:
    """Who signed the time and the image repository's timestamp."""
    answer = await machine.sync()
    return keyid_of(answer.time), keyid_of(answer.image_timestamp)


def files(house: House) -> set[str]:
    return {path.name for path in (house.state / "keys").iterdir()}


async def test_the_server_signs_with_the_old_key_until_the_metadata_names_the_new_one(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        machine = await house.enrol("tractor-1")
        old = await stamp_of(machine)
        await asyncio.to_thread(next_keys, house, CLOCK, STAMP)
        house.now_ms += 86_400_001
        await house.publish()  # the same again: the server has looked at its keys and signs anew
        assert await stamp_of(machine) == old
        sign_rotation(house)
        assert await stamp_of(machine) == old, "signed is not published"
        await house.publish()
        new = await stamp_of(machine)
        assert new == (
            house.managers.online["director"]["clock"].public_key.keyid,
            house.managers.online["image"]["timestamp"].public_key.keyid,
        )
        assert not any(name.endswith(".next.pem") for name in files(house))
        (switched,) = await house.events("online-key-switched")
        assert set(switched["what"].split(", ")) == {CLOCK, STAMP}
        assert len(await house.events("online-key-destroyed")) == 1


async def test_a_refused_push_switches_nothing(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        machine = await house.enrol("tractor-1")
        old = await stamp_of(machine)
        await asyncio.to_thread(next_keys, house, CLOCK, STAMP)
        sign_rotation(house)
        await asyncio.to_thread(drop_next, house.state / "keys", [STAMP])
        status, answer = await house.push(
            {"image": house.managers.image.files(), "director": house.managers.director.files()}
        )
        assert (status, "image.timestamp" in answer["error"]) == (409, True)
        assert await stamp_of(machine) == old
        assert f"{CLOCK}.next.pem" in files(house)


async def test_a_key_that_is_cancelled_while_a_push_waits_is_not_switched_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with published(tmp_path) as house:
        await asyncio.to_thread(next_keys, house, CLOCK)
        sign_rotation(house)
        with monkeypatch.context() as patch:
            patch.setattr(publish, "publishing_alone", lambda _: drop_next(house.state / "keys", [CLOCK]))
            status, answer = await house.push({"director": house.managers.director.files()})
        assert (status, "director.clock" in answer["error"]) == (409, True)


async def test_a_cut_between_the_publication_and_the_old_keys_end_is_made_good_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with published(tmp_path) as house:
        machine = await house.enrol("tractor-1")
        await machine.sync()
        await asyncio.to_thread(next_keys, house, CLOCK, STAMP)
        sign_rotation(house)
        with monkeypatch.context() as patch:
            patch.setattr(Keyring, "settle", lambda self, named: ())
            await house.publish()
            assert await stamp_of(machine) == (
                house.managers.online["director"]["clock"].public_key.keyid,
                house.managers.online["image"]["timestamp"].public_key.keyid,
            )
        assert {f"{CLOCK}.next.pem", f"{STAMP}.next.pem"} <= files(house)
        await house.stop()
        command = ["keys", "cancel", "--state", str(house.state)]
        cancelled = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert cancelled.exit_code == StateError.exit_code
        assert f"the next key of {STAMP}, {CLOCK}" in " ".join(cancelled.stderr.split())
        assert {f"{CLOCK}.next.pem", f"{STAMP}.next.pem"} <= files(house), "they sign, and are nowhere else"
        await house.start()
        assert not any(name.endswith(".next.pem") for name in files(house))
        house.now_ms += 86_400_001
        assert (await stamp_of(machine))[0] == house.managers.online["director"]["clock"].public_key.keyid


async def test_a_retry_over_the_switch_is_answered_under_the_new_keys(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        machine = await house.enrol("tractor-1")
        await machine.sync()
        await house.release("1.0.0", 1, [b"weights"])
        await house.rollout("spring", "1.0.0")
        request = machine.request()
        _, first = await machine.contact(request)
        await asyncio.to_thread(next_keys, house, "director.assignments")
        sign_rotation(house)
        house.now_ms += 1000
        await house.publish()
        _, again = await machine.contact(request)
        assert body_of(first["assignment"]) == body_of(again["assignment"])
        assert keyid_of(again["assignment"]) == house.managers.online["director"]["assignments"].public_key.keyid
        assert keyid_of(first["assignment"]) != keyid_of(again["assignment"])


async def test_a_server_whose_keys_are_older_than_its_catalog_starts_and_says_so_once(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        backup = {path: path.read_bytes() for path in (house.state / "keys").iterdir()}
        await asyncio.to_thread(next_keys, house, STAMP)
        sign_rotation(house)
        await house.publish()
        await house.stop()
        for path, data in backup.items():
            path.write_bytes(data)
        await house.start()
        (event,) = await house.events("resign-failed")
        assert "image.timestamp" in event["detail"]
        status, _ = await house.ask("GET", "/api/v1/tuf/image/timestamp.json")
        assert status == 200, "what was on offer stays"
        told = await asyncio.to_thread(CliRunner().invoke, main, ["status", "--state", str(house.state), "--json"])
        assert "does not name this server's key" in json.loads(told.output)["cannot_sign"]
        shown = await asyncio.to_thread(
            CliRunner().invoke, main, ["keys", "show", "--state", str(house.state), "--json"]
        )
        assert [each["role"] for each in json.loads(shown.output)["keys"] if not each["here"]] == [STAMP]
        await house.stop()
        await house.start()
        assert len(await house.events("resign-failed")) == 1


def test_a_next_key_that_waits_is_kept_and_can_be_dropped(tmp_path: Path) -> None:
    make_keys(tmp_path, {})
    make_next(tmp_path, {}, [CLOCK])
    first = Keyring(tmp_path, {}, no_secret)
    assert set(first.waiting()) == {CLOCK}
    make_next(tmp_path, {}, [CLOCK])
    assert Keyring(tmp_path, {}, no_secret).waiting() == first.waiting()
    wanted = parse_online_keys(first.wanted())
    assert wanted["director"]["clock"].keyid == first.waiting()[CLOCK]
    assert wanted["director"]["receipts"].keyid == first["director"]["receipts"].public_key.keyid
    assert first.settle({CLOCK: "0" * 64}) == ()
    drop_next(tmp_path, [CLOCK, STAMP])
    assert not Keyring(tmp_path, {}, no_secret).waiting()
    with pytest.raises(SettingsError, match="roles: image"):
        make_next(tmp_path, {}, ["director.clocks"])
    with pytest.raises(StateError, match="does not name") as caught:
        first.signer(CLOCK, ["0" * 64])
    assert "keys rotate --online" in caught.value.hint


def test_a_key_elsewhere_has_its_next_one_elsewhere(tmp_path: Path) -> None:
    make_keys(tmp_path, {})
    public = json.loads(Keyring(tmp_path, {}, no_secret).wanted())
    key = keyring.OnlineKey(uri=f"file2:{tmp_path / 'director.clock.pem'}", public=str(tmp_path / "clock.json"))
    (tmp_path / "clock.json").write_text(json.dumps(public["director"]["clock"]))
    with pytest.raises(StateError, match="no file here"):
        make_next(tmp_path, {CLOCK: key}, [CLOCK])
    (tmp_path / "receipts.json").write_text(json.dumps(public["director"]["receipts"]))
    both = keyring.OnlineKey(
        uri=key.uri,
        public=key.public,
        next_uri=f"file2:{tmp_path / 'director.receipts.pem'}",
        next_public=str(tmp_path / "receipts.json"),
    )
    ring = Keyring(tmp_path, {CLOCK: both}, no_secret)
    assert ring.signer(CLOCK, [public["director"]["receipts"]["keyid"]]).public_key.keyid == ring.waiting()[CLOCK]
    assert ring.settle(ring.waiting()) == ()
    assert (tmp_path / "director.clock.pem").exists()
