"""Who gets past the page's door: real HTTP on a real port."""

import asyncio
import contextlib
import errno
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from aiohttp import web

from device.cancelling import cancel
from device.desk.door import PageDoor
from device.desk.page_socket import PageSocket
from device.desk.pairing import GUESSES, GUESSES_OVER_S, PageSettings, Pairing, TooManyGuessesError, read_or_draw
from device.desk.port import Desk
from protocol.errors import SettingsError
from protocol.settings import parse_settings
from tests.fakes.shown_desk import ServedDesk


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


@pytest.mark.parametrize("host", ["tractor-1", "Tractor-1:8470", "localhost:8470", "192.168.7.3", "[::1]:8470"])
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


# ---- who means ill, and disks that fail ----


@pytest.fixture
async def served(code_file, clock, monkeypatch):
    """The door as the agent serves it, with its limits small."""
    monkeypatch.setattr("device.desk.door.CONNECTIONS", 4)
    monkeypatch.setattr("device.desk.door.BODY_S", 0.5)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    routes = [web.get("/api/status", _asked), web.post("/api/kits/look", _asked)]
    door = PageDoor(PageSettings(), Pairing(code_file, clock), routes)
    task = asyncio.create_task(door.serve(listener))
    yield listener.getsockname()[1]
    await cancel(task)


async def test_connections_that_are_held_open_shut_nobody_out(served, code_file):
    token = read_or_draw(code_file).token
    held = []
    for _ in range(12):
        held.append(await asyncio.open_connection("127.0.0.1", served))
        held[-1][1].write(b"GET / HTTP/1.1\r\nHost: 127")
        await asyncio.sleep(0.01)
    paired = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{served}") as session,
        session.get("/api/status", headers=paired) as answer,
    ):
        assert answer.status == 200
    for reader, _ in held[:8]:
        async with asyncio.timeout(5):
            assert await reader.read() == b""  # the oldest went
    for _, writer in held:
        writer.close()


async def test_a_body_that_does_not_end_is_answered_before_long(served, code_file):
    read_or_draw(code_file)
    reader, writer = await asyncio.open_connection("127.0.0.1", served)
    writer.write(
        b"POST /pair HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    async with asyncio.timeout(5):
        assert b" 408 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00" * 40, b"\0" * 70_000, b"GET " + b"a" * 70_000, b"\r\n\r\n"]
)
async def test_garbage_ends_its_own_connection_only(served, garbage):
    reader, writer = await asyncio.open_connection("127.0.0.1", served)
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in await reader.read()
    writer.close()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{served}") as session, session.get("/") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("size", [64 * 1024 + 1, 1024 * 1024])
async def test_a_body_that_is_too_long_is_turned_away(browser, code_file, size):
    headers = {"Authorization": f"Bearer {read_or_draw(code_file).token}", "Content-Type": "application/json"}
    async with browser.post("/api/kits/look", data=b"x" * size, headers=headers) as answer:
        assert answer.status == 413


def test_guesses_at_once_are_counted_one_by_one(code_file, clock, monkeypatch):
    pair = read_or_draw(code_file)

    def slow(path):
        time.sleep(0.01)
        return pair

    monkeypatch.setattr("device.desk.pairing.read_or_draw", slow)
    wrong = "0" * 8 if pair.code != "0" * 8 else "1" * 8
    pairing = Pairing(code_file, clock)

    def guess(_):
        try:
            return pairing.token(wrong)
        except TooManyGuessesError:
            return "waits"

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(guess, range(64))).count(None) == GUESSES


def test_a_code_that_cannot_be_read_now_is_no_reason_to_draw_another(code_file, clock, monkeypatch):
    pair = read_or_draw(code_file)

    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.open", fail)
        with pytest.raises(OSError, match="Too many open files"):
            read_or_draw(code_file)
    assert read_or_draw(code_file) == pair


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
async def test_a_disk_that_takes_no_code_is_said_and_nothing_ends(browser, code_file, monkeypatch, number):
    code_file.write_bytes(b'{"code": "1')

    def fail(*_):
        raise OSError(number, "the disk says no")

    monkeypatch.setattr("signing.durable.write", fail)
    async with browser.post("/pair", json={"code": "12345678"}) as answer:
        assert answer.status == 409
        assert "no code can be kept here" in (await answer.json())["error"]
    async with browser.get("/api/status", headers={"Authorization": "Bearer x"}) as answer:
        assert answer.status == 401  # and nothing was written


async def test_a_code_that_cannot_be_read_is_said(browser, code_file):
    code_file.mkdir()
    async with browser.get("/api/status", headers={"Authorization": "Bearer x"}) as answer:
        assert answer.status == 503
        assert "pairing code" in (await answer.json())["error"]


async def test_it_answers_over_ipv6(code_file, clock):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("no IPv6 here")
    page = PageSocket(PageSettings(listen=f"[::1]:{port}"), Pairing(code_file, clock), Desk(*[None] * 6), None)
    task = asyncio.create_task(page.run())
    await asyncio.sleep(0.1)
    async with aiohttp.ClientSession() as session, session.get(f"http://[::1]:{port}/") as answer:
        assert answer.status == 200
    await cancel(task)


@pytest.mark.parametrize("route", ["/api/kits/look", "/api/export"])
async def test_a_browser_names_no_folder_of_the_machine(tmp_path, route):
    desk = await asyncio.to_thread(ServedDesk, tmp_path)
    try:
        paired = {"Authorization": f"Bearer {read_or_draw(desk.code_file).token}"}
        async with aiohttp.ClientSession(desk.url) as session:
            async with session.post(route, json={"path": "/etc"}, headers=paired) as answer:
                assert answer.status == 409
                assert "not named here" in (await answer.json())["error"]
            assert not desk.asked
            async with session.post(route, json={}, headers=paired) as answer:
                assert answer.status == 200
    finally:
        await asyncio.to_thread(desk.close)
