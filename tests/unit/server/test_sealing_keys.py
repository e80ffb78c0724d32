"""The key to which machines seal for a stick: made, exported, replaced when managers have named it, and never lost."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.errors import Refused, SettingsError
from server.cli import main
from server.keyring import Keyring, check_keys
from server.newest_keys import with_newest
from signing.online_keys import sealing_key_in
from signing.sealing import open_sealed, public_half, seal
from tests.fakes.server_house import House, no_secret, published
from tests.unit.server.test_founding import init

DEVICE = "tractor-1"


def exported(state: Path) -> str | None:
    return sealing_key_in((state / "online-keys.json").read_bytes())


def ring(state: Path) -> Keyring:
    return Keyring(state / "keys", {}, no_secret)


def files(state: Path) -> dict[str, bytes]:
    return {f"keys/{path.name}": path.read_bytes() for path in (state / "keys").glob("sealing.*")}


def told(state: Path, *arguments: str) -> Any:
    result = CliRunner().invoke(main, ["keys", *arguments, "--state", str(state), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["sealing"]


async def name_it(house: House) -> str:
    """The managers delegate to what is exported; returns it."""
    house.managers.sealing_key = await asyncio.to_thread(exported, house.state)
    assert house.managers.sealing_key is not None
    house.managers.now = house.now()
    house.managers.delegate_online("director", "clock")
    await house.publish()
    return house.managers.sealing_key


def test_a_server_has_a_sealing_key_beside_its_online_keys_and_exports_its_public_half(tmp_path: Path) -> None:
    init(tmp_path)
    ((public, key),) = ring(tmp_path).sealing_keys().items()
    assert public == public_half(key) == exported(tmp_path)
    (path,) = (tmp_path / "keys").glob("sealing.*")
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_sealed([key], seal(public, b"rows", DEVICE, "batch"), DEVICE, "batch") == b"rows"
    init(tmp_path)
    assert list(ring(tmp_path).sealing_keys()) == [public]


async def test_a_state_folder_from_before_gets_one_at_the_next_start(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        await house.stop()

        def forget() -> None:
            for path in (house.state / "keys").glob("sealing.*"):
                path.unlink()
            keys = json.loads((house.state / "online-keys.json").read_bytes())
            del keys["sealing"]
            (house.state / "online-keys.json").write_text(json.dumps(keys))

        await asyncio.to_thread(forget)
        assert await asyncio.to_thread(exported, house.state) is None
        await house.start()
        answer = await house.must("GET", "/api/v1/online-keys")
        (public,) = await asyncio.to_thread((await asyncio.to_thread(ring, house.state)).sealing_keys)
        assert answer["sealing"] == public


async def test_another_one_is_made_when_the_managers_have_named_the_last_and_the_old_ones_open_still(
    tmp_path: Path,
) -> None:
    async with published(tmp_path) as house:
        first = await asyncio.to_thread(exported, house.state)
        said = await asyncio.to_thread(told, house.state, "rotate", "sealing")
        assert said == {"public_key": first, "here": True, "waiting_public_key": first, "kept": 1}
        assert await house.events("online-key-made") == []
        assert await name_it(house) == first
        said = await asyncio.to_thread(told, house.state, "rotate", "sealing")
        second = await asyncio.to_thread(exported, house.state)
        assert said == {"public_key": first, "here": True, "waiting_public_key": second, "kept": 2}
        assert second != first
        await asyncio.to_thread(told, house.state, "rotate", "sealing")
        assert await asyncio.to_thread(exported, house.state) == second, "its public half may be on its way"
        assert [event["what"] for event in await house.events("online-key-made")] == ["sealing"]
        assert await name_it(house) == second
        await asyncio.to_thread(told, house.state, "rotate", "--all")
        third = await asyncio.to_thread(exported, house.state)
        keys = await asyncio.to_thread((await asyncio.to_thread(ring, house.state)).sealing_keys)
        assert list(keys) == [third, second, first]
        assert first is not None
        assert open_sealed(keys.values(), seal(first, b"rows", DEVICE, "batch"), DEVICE, "batch") == b"rows"
        text = (await asyncio.to_thread(CliRunner().invoke, main, ["keys", "show", "--state", str(house.state)])).stdout
        assert "3 kept" in text


def test_sealing_keys_come_back_with_a_backup_those_of_newer_sets_beside_those_of_older_ones(tmp_path: Path) -> None:
    lives = []
    for name in ("older", "newer"):
        init(tmp_path / name)
        lives.append(files(tmp_path / name))
    older, newer = lives
    both = with_newest(older, older | newer)
    assert both == older | newer and len(both) == 2
    assert with_newest(older | newer, older) == older | newer
    for command in (("backup", tmp_path / "backup", "--state", tmp_path / "older"), ("restore", tmp_path / "backup")):
        state = () if command[0] == "backup" else ("--state", tmp_path / "again")
        result = CliRunner().invoke(main, [str(each) for each in (*command, *state)])
        assert result.exit_code == 0, result.output
    assert files(tmp_path / "again") == older


def test_a_damaged_sealing_key_is_named_and_stops_a_backup_and_a_start(tmp_path: Path) -> None:
    init(tmp_path)
    (path,) = (tmp_path / "keys").glob("sealing.*")
    for content in (b"no key", (tmp_path / "keys" / "director.clock.pem").read_bytes()):
        path.write_bytes(content)
        for act in (lambda: ring(tmp_path), lambda: check_keys(tmp_path / "keys", {})):
            with pytest.raises(SettingsError, match=path.name) as error:
                act()
            assert "newest backup" in (error.value.hint or "")


def test_what_is_sealed_to_another_server_is_not_opened(tmp_path: Path) -> None:
    init(tmp_path / "one")
    init(tmp_path / "two")
    public = exported(tmp_path / "two")
    assert public is not None
    with pytest.raises(Refused):
        open_sealed(
            ring(tmp_path / "one").sealing_keys().values(), seal(public, b"rows", DEVICE, "batch"), DEVICE, "batch"
        )
