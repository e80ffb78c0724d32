"""Who gets past the page's door: real HTTP on a real port."""

import asyncio
import contextlib
import socket
import stat

import aiohttp
import pytest
from aiohttp import web

from device.desk.door import PageDoor
from device.desk.page_socket import PageSocket
from device.desk.pairing import GUESSES, GUESSES_OVER_S, PageSettings, Pairing, read_or_draw
from protocol.errors import SettingsError
from protocol.settings import parse_settings


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


async def _asked(request):
    return web.json_response({"asked": request.method})


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def code_file(tmp_path):
    return tmp_path / "page.json"


@contextlib.asynccontextmanager
async def opened(door):
    runner = web.AppRunner(door.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        try:
            yield session
        finally:
            await session.close()
            await runner.cleanup()


@pytest.fixture
async def browser(code_file, clock):
    routes = [web.get("/api/status", _asked), web.post("/api/kits/look", _asked)]
    door = PageDoor(PageSettings(names=("tractor-1",)), Pairing(code_file, clock), routes)
    async with opened(door) as session:
        yield session


async def test_a_browser_pairs_by_the_code_and_then_may_ask(browser, code_file):
    async with browser.get("/api/status") as answer:
        assert answer.status == 401
        assert "headland-device page" in (await answer.json())["hint"]
    pair = read_or_draw(code_file)
    async with browser.post("/pair", json={"code": pair.spelt()}) as answer:
        assert answer.status == 200
        token = (await answer.json())["token"]
    async with browser.get("/api/status", headers={"Authorization": f"Bearer {token}"}) as answer:
        assert await answer.json() == {"asked": "GET"}


async def test_a_new_code_sends_every_browser_away(browser, code_file):
    old = {"Authorization": f"Bearer {read_or_draw(code_file).token}"}
    async with browser.get("/api/status", headers=old) as answer:
        assert answer.status == 200
    read_or_draw(code_file, anew=True)
    async with browser.get("/api/status", headers=old) as answer:
        assert answer.status == 401


@pytest.mark.parametrize("token", ["", "0" * 64, "é" * 3])
async def test_a_guessed_token_is_turned_away(browser, code_file, token):
    read_or_draw(code_file)
    async with browser.get("/api/status", headers={"Authorization": f"Bearer {token}"}) as answer:
        assert answer.status == 401


async def test_after_some_wrong_codes_everybody_waits_even_with_the_right_one(browser, code_file, clock):
    pair = read_or_draw(code_file)
    wrong = f"{(int(pair.code) + 1) % 10**8:08d}"
    for _ in range(GUESSES):
        async with browser.post("/pair", json={"code": wrong}) as answer:
            assert answer.status == 403
        clock.now_s += 1
    async with browser.post("/pair", json={"code": pair.code}) as answer:
        assert answer.status == 429
    clock.now_s += GUESSES_OVER_S
    async with browser.post("/pair", json={"code": pair.code}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", ""])
async def test_another_name_than_this_machines_is_turned_away(browser, code_file, host):
    token = read_or_draw(code_file).token
    async with browser.get("/api/status", headers={"Authorization": f"Bearer {token}", "Host": host}) as answer:
        assert answer.status in (400, 421)


@pytest.mark.parametrize("host", ["tractor-1", "tractor-1:8470", "localhost:8470", "192.168.7.3", "[::1]:8470"])
async def test_an_address_and_its_own_names_are_this_machine(browser, host):
    async with browser.get("/", headers={"Host": host}) as answer:
        assert answer.status == 200


async def test_nothing_is_taken_from_a_form(browser, code_file):
    token = read_or_draw(code_file).token
    for path in ("/pair", "/api/kits/look"):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
            async with browser.post(path, data=b"{}", headers=headers) as answer:
                assert answer.status == 415


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"code": 5}', b'{"code": "1", "more": 1}', b'{"code": "%s"}' % (b"1" * 99)]
)
async def test_nonsense_is_said_to_be_nonsense(browser, body):
    async with browser.post("/pair", data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]


async def test_the_page_allows_nothing_that_it_does_not_bring_itself(browser):
    for path in ("/", "/page.js", "/page.css", "/api/status", "/nothing"):
        async with browser.get(path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Set-Cookie" not in answer.headers
            text = await answer.text()
            assert "http://" not in text
            assert "https://" not in text


def test_only_the_owner_reads_the_code(code_file):
    pair = read_or_draw(code_file)
    assert stat.S_IMODE(code_file.stat().st_mode) == 0o600
    assert read_or_draw(code_file) == pair
    code_file.write_bytes(b"torn")
    assert read_or_draw(code_file) not in (pair, None)


async def test_a_port_that_is_taken_is_trouble_and_no_end(code_file, clock):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = PageSettings(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        door = PageSocket(settings, Pairing(code_file, clock), None, None)
        task = asyncio.create_task(door.run())
        for _ in range(1000):
            if door.trouble:
                break
            await asyncio.sleep(0.01)
        assert settings.listen in door.trouble
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("listen", ["localhost", "8470", "127.0.0.1", "127.0.0.1:http", "x:1"])
def test_a_wrong_address_is_said_with_its_line(listen):
    with pytest.raises(SettingsError, match=r"line 1.*an address and a port"):
        parse_settings(f'listen = "{listen}"\n', PageSettings, source="device.toml")
