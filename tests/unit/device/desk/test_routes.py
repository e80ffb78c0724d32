"""The desk over its socket: for the agent's user only, in words that both sides know."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from device.cancelling import cancel
from device.desk.client import ask
from device.desk.port import Desk
from device.desk.socket import DeskSocket, short
from device.kits.exporting import ExportsShown
from device.kits.forcing import Challenge, Forced
from device.kits.shown import KitShown, KitsShown, KitState
from protocol.errors import LinkError, Reason, Refused, StateError

SHOWN = KitShown(kit="kit-a", sticks=("/media/stick",), state=KitState.APPLYING, sentence="it is being installed")


class Behind:
    """What the routes lead to."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.error: Exception | None = None
        self.exports = False
        self.takes_s = 0.0

    def desk(self) -> Desk:
        return Desk(
            status=self._status,
            shown=lambda: KitsShown(kits=(SHOWN,)),
            look=self._do(KitsShown(kits=(SHOWN,))),
            apply=self._do(SHOWN),
            challenge=self._do(
                Challenge(
                    id="0" * 32,
                    at_ms=1,
                    device="tractor-1",
                    product="p",
                    release="1.0.0",
                    manifest="0" * 64,
                    offer="kit-a",
                )
            ),
            force=self._do(Forced(offer="kit-a", release="1.0.0", technician="theo")),
            export=self._do(ExportsShown(sentence="all is written")) if self.exports else None,
        )

    async def _status(self) -> bytes:
        return b'{"device": "tractor-1"}'

    def _do(self, answer):
        async def do(*asked):
            self.asked.append(asked)
            await asyncio.sleep(self.takes_s)
            if self.error is not None:
                raise self.error
            return answer

        return do


@contextlib.asynccontextmanager
async def open_desk(path, behind):
    task = asyncio.create_task(DeskSocket(path, behind.desk()).run())
    try:
        for _ in range(500):
            if path.is_socket():
                break
            await asyncio.sleep(0.01)
        yield
    finally:
        await cancel(task)


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / ("long" * 30)  # longer than an address of a socket may be
    folder.mkdir()
    return folder / "desk.sock"


def answered(path, *arguments):
    return asyncio.to_thread(ask, path, *arguments)


async def test_each_route_leads_where_it_should(path):
    behind = Behind()
    async with open_desk(path, behind):
        assert (await answered(path, "GET", "/api/status", dict))["device"] == "tractor-1"
        assert (await answered(path, "GET", "/api/kits", KitsShown)).kits == (SHOWN,)
        await answered(path, "POST", "/api/kits/look", KitsShown, {"path": "/srv"})
        assert await answered(path, "POST", "/api/kits/kit-a/apply", KitShown) == SHOWN
        assert (await answered(path, "POST", "/api/force/challenge", Challenge, {"offer": "kit-a"})).id == "0" * 32
        force = {"request": "{}", "signature": "0" * 128}
        assert (await answered(path, "POST", "/api/force", Forced, force)).technician == "theo"
        with pytest.raises(StateError, match="writes no results"):
            await answered(path, "POST", "/api/export", ExportsShown)
    behind.exports = True
    async with open_desk(path, behind):
        found = await answered(path, "POST", "/api/export", ExportsShown, {"path": "/srv/share"})
        assert found.sentence == "all is written"
    assert [str(asked[0]) for asked in behind.asked[:3]] == ["/srv", "kit-a", "kit-a"]
    assert str(behind.asked[-1][0]) == "/srv/share"
    assert not path.exists()


async def test_only_the_agents_user_may_ask(path):
    async with open_desk(path, Behind()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("lies", ["socket", "file"])
async def test_what_an_agent_that_ended_left_there_gives_way(path, lies):
    if lies == "file":
        path.write_text("")
    else:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as old, short(path) as name:
            old.bind(name)
    async with open_desk(path, Behind()):
        await asyncio.sleep(0.2)
        assert (await answered(path, "GET", "/api/kits", KitsShown)).kits == (SHOWN,)


@pytest.mark.parametrize(
    "error",
    [
        Refused(Reason.SIGNATURE, "not signed", hint="ask"),
        StateError("no such kit", hint="look"),
        LinkError("the stick is gone", hint="plug it in"),
    ],
)
async def test_errors_come_out_as_they_went_in(path, error):
    behind = Behind()
    behind.error = error
    async with open_desk(path, behind):
        with pytest.raises(type(error)) as said:
            await answered(path, "POST", "/api/kits/kit-a/apply", KitShown)
    assert (said.value.message, said.value.hint) == (error.message, error.hint)
    assert getattr(said.value, "reason", None) == getattr(error, "reason", None)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/api/kits/look", {"path": "relative"}),
        ("/api/kits/look", {"path": "/a", "more": 1}),
        ("/api/kits/look", {"path": "a" * 100_000}),
        ("/api/kits/spring/apply", {}),
        ("/api/kits/kit-../apply", {}),
        ("/api/force", {"request": "{}", "signature": "short"}),
        ("/api/nothing", {}),
    ],
)
async def test_nonsense_is_turned_away(path, route, body):
    behind = Behind()
    async with open_desk(path, behind):
        with pytest.raises((StateError, Refused)) as said:
            await answered(path, "POST", route, dict, body)
    assert said.value.message
    assert not behind.asked


def test_where_too_many_wait_at_the_socket_the_agent_is_called_busy_not_absent(tmp_path):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(tmp_path / "s"))
        with pytest.raises(LinkError, match="busy"):
            ask(tmp_path / "s", "GET", "/api/status", dict)


async def test_without_an_agent_the_hint_says_so(path):
    with pytest.raises(StateError) as error:
        await answered(path, "GET", "/api/kits", KitsShown)
    assert "headland-device run" in error.value.hint
    assert json.dumps(error.value.message)


async def test_an_agent_that_is_busy_is_not_said_to_be_none(path, monkeypatch):
    monkeypatch.setattr("device.desk.client.ANSWER_S", 0.5)
    behind = Behind()
    behind.takes_s = 3.0
    async with open_desk(path, behind):
        with pytest.raises(LinkError) as error:
            await answered(path, "POST", "/api/kits/look", KitsShown)
    assert "took longer" in error.value.message
    assert "no agent" not in error.value.message


async def test_a_folder_whose_name_cannot_be_told_is_said(path):
    async with open_desk(path, Behind()):
        with pytest.raises(StateError, match="no UTF-8"):
            await answered(path, "POST", "/api/kits/look", KitsShown, {"path": os.fsdecode(b"/media/st\xfcck")})


LOADING = """
import asyncio, importlib.abc, pathlib, sys, threading
import device.desk.socket

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "aiohttp.web":
            print(threading.current_thread() is threading.main_thread())

async def main(path):
    sys.meta_path.insert(0, Watch())
    task = asyncio.create_task(device.desk.socket.DeskSocket(path, None).run())
    while not path.is_socket():
        await asyncio.sleep(0.01)
    assert "aiohttp.web" not in sys.modules
    _, writer = await asyncio.open_unix_connection(path)
    while "aiohttp.web" not in sys.modules:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    writer.close()
    task.cancel()
    await asyncio.wait([task])

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


def test_what_serves_the_first_who_asks_is_loaded_beside_the_loop(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOADING, "desk.sock"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["False"]
