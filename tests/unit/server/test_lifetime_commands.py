"""`headland-server ca` and `keys`, and the managers' tool that follows the CA over a real connection."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from server import authorities
from server.cli import main
from server.clock import as_datetime
from server.founding import FirstAnswers, found
from signing import anchors
from signing.following import follow_ca
from signing.online_keys import parse_online_keys
from signing.server_client import ServerClient
from signing.workspace import Workspace
from tests.fakes.server_house import START_MS, House, no_secret, published


def init(folder: Path) -> Path:
    found(folder, FirstAnswers("127.0.0.1", 0, ("localhost",), "127.0.0.1", 0), lambda: START_MS, no_secret)
    return folder


def run(state: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--state", str(state)])


def told(state: Path, *arguments: str) -> dict[str, Any]:
    result = run(state, *arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_a_ca_is_replaced_shown_and_ended(tmp_path: Path) -> None:
    state = init(tmp_path / "server")
    (first,) = told(state, "ca", "show")["generations"]
    assert run(state, "ca", "end").exit_code == 6
    rotated = told(state, "ca", "rotate")
    assert [each["standing"] for each in rotated["generations"]] == ["current", "retiring"]
    assert rotated["generations"][1]["ca"] == first["ca"]
    early = run(state, "ca", "end")
    assert early.exit_code == 6
    assert "restored from a backup" in early.stderr
    forced = told(state, "ca", "end", "--force")
    assert [each["standing"] for each in forced["generations"]] == ["current", "ended"]
    assert "back up ca/ now" in run(state, "ca", "rotate").stdout


def test_next_keys_are_made_exported_shown_and_cancelled(tmp_path: Path) -> None:
    state = init(tmp_path / "server")

    def exported() -> str:
        return parse_online_keys((state / "online-keys.json").read_bytes())["director"]["clock"].keyid

    before = exported()
    made = {each["role"]: each for each in told(state, "keys", "rotate", "director.clock")["keys"]}
    assert made["director.clock"]["keyid"] == before
    assert made["director.clock"]["waiting_keyid"] == exported() != before
    assert made["director.receipts"]["waiting_keyid"] is None
    assert told(state, "keys", "rotate", "director.clock")["keys"] == list(made.values()), "again changes nothing"
    assert all(each["waiting_keyid"] for each in told(state, "keys", "rotate", "--all")["keys"])
    assert "headland keys rotate --online" in run(state, "keys", "rotate", "--all").stdout
    assert not any(each["waiting_keyid"] for each in told(state, "keys", "cancel")["keys"])
    assert exported() == before
    assert run(state, "keys", "rotate").exit_code == 2
    wrong = run(state, "keys", "rotate", "director.clocks")
    assert wrong.exit_code == 3
    assert "director.clock," in wrong.stderr


def test_the_status_says_what_ends_and_when(tmp_path: Path) -> None:
    state = init(tmp_path / "server")
    status = told(state, "status")
    assert {life["what"] for life in status["lives"]} == {"ca", "server", "operator"}
    assert all(life["state"] == "fresh" for life in status["lives"])
    assert "due" not in run(state, "status").stdout


async def test_the_managers_tool_follows_the_ca_and_does_not_go_back(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        workspace = await asyncio.to_thread(Workspace.create, tmp_path / "workspace")
        await asyncio.to_thread(workspace.set_server_access, (house.state / "operator.json").read_bytes(), os.urandom)
        ca = house.state / "ca"
        backup = {path.name: path.read_bytes() for path in ca.iterdir()}

        def follow() -> tuple[bool, str]:
            access = workspace.server_access()  # the port is another after each start
            client = ServerClient(msgspec.structs.replace(access, url=house.running.operator_url))
            try:
                return follow_ca(workspace, client), workspace.server_access().ca_pem
            finally:
                client.close()

        assert (await asyncio.to_thread(follow))[0] is False
        await asyncio.to_thread(authorities.rotate, ca, as_datetime(house.now_ms))
        await restart(house)
        changed, pinned = await asyncio.to_thread(follow)
        assert (changed, len(anchors.read(pinned))) == (True, 2)
        for name, data in backup.items():
            (ca / name).write_bytes(data)
        await restart(house)
        assert await asyncio.to_thread(follow) == (False, pinned)


async def restart(house: House) -> None:
    await house.stop()
    await house.start()
