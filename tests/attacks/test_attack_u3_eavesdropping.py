"""U3 on the network: who sniffs sees TLS 1.3 and nothing in it."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from device.identity import private_context, unverified_context
from device.link import Link
from protocol.errors import LinkError
from tests.fakes.server_house import House, client_context, published

PATIENCE_S = 10.0


class Tap:
    """A link that keeps a copy of every byte, both ways."""

    def __init__(self, url: str) -> None:
        self._server_port = urlsplit(url).port
        self.up = bytearray()
        self.down = bytearray()
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Tap"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        await asyncio.gather(self._carry(reader, far_writer, self.up), self._carry(far_reader, writer, self.down))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                kept += data
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_attack_u3_a_tap_sees_neither_names_nor_tokens_nor_results_nor_models(tmp_path: Path) -> None:
    model, row = b"weights that a rival would like to have " * 500, b'{"label": "pest", "frame": "field-7.jpg"}'
    async with published(tmp_path) as house, Tap(house.running.device_url).running() as tap:
        await house.release("1.0.0", 1, [model])
        await house.rollout("spring", "1.0.0")
        house.running = replace(house.running, device_url=tap.url)
        tractor = await house.enrol("tractor-1")
        answer = await tractor.sync()
        assert answer.assignment is not None
        plan = json.loads(answer.assignment)["signed"]["headland"]["plan"]
        for step in plan["steps"]:
            assert (await tractor.ask("GET", f"/v1/blobs/{step['payload']['sha256']}"))[0] == 200
        assert (await tractor.send(tractor.batch("results", [row])))[0] == 200
        heard = bytes(tap.up + tap.down)
        assert len(tap.up) > 2000, "the tap sat on the link"
        assert len(tap.down) > 2000
        for secret in (
            b"tractor-1",
            b"pest-detector",
            b"HTTP/1.1",
            b"/v1/sync",
            b"field-7.jpg",
            answer.sync_token.encode(),
            answer.time.encode()[:200],
            model[:40],
            plan["steps"][0]["payload"]["sha256"].encode(),
        ):
            assert secret not in heard, secret


@pytest.mark.parametrize("door", ["device_url", "operator_url"])
async def test_attack_u3_neither_door_speaks_anything_older_than_tls_1_3(tmp_path: Path, door: str) -> None:
    async with published(tmp_path) as house:
        where = urlsplit(getattr(house.running, door))
        old = await asyncio.to_thread(client_context, house.ca_pem)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection("127.0.0.1", where.port, ssl=old, server_hostname="localhost")
        assert await answer_to_plain_http(where.port) == b""
        new = await asyncio.to_thread(client_context, house.ca_pem)
        _, writer = await asyncio.open_connection("127.0.0.1", where.port, ssl=new, server_hostname="localhost")
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()


async def answer_to_plain_http(port: int | None) -> bytes:
    """What a door says to somebody who does not speak TLS, but for the alert that ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/ca HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    said = b""
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionResetError):
            said = await reader.read()
    writer.close()
    return b"" if said[:1] == b"\x15" and len(said) == 7 else said


@asynccontextmanager
async def foreign_server(house: House, context: ssl.SSLContext) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that keeps what it is told and answers any request well."""
    told: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            told.append(await reader.read(65536))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", told
    finally:
        server.close()


def server_context(folder: Path, newest: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.maximum_version = newest
    return context


@pytest.mark.parametrize("maker", ["private", "before it knows the ca"])
async def test_attack_u3_a_machine_tells_nothing_to_a_server_of_older_tls(tmp_path: Path, maker: str) -> None:
    async with published(tmp_path) as house:
        tls = house.state / "tls"

        def context() -> ssl.SSLContext:
            return private_context(cadata=house.ca_pem) if maker == "private" else unverified_context()

        for newest, speaks in ((ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)):
            server = await asyncio.to_thread(server_context, tls, newest)
            async with foreign_server(house, server) as (url, told):
                link = Link(url, await asyncio.to_thread(context))
                if speaks:
                    assert (await link.get("/v1/ca", limit=100)).body == b"{}"
                else:
                    with pytest.raises(LinkError):
                        await link.get("/v1/ca", limit=100)
                await link.close()
                assert any(told) is speaks


async def test_attack_u3_a_machine_tells_nothing_to_a_server_of_another_authority(tmp_path: Path) -> None:
    async with published(tmp_path / "ours") as ours, published(tmp_path / "foreign") as foreign:
        server = await asyncio.to_thread(server_context, foreign.state / "tls", ssl.TLSVersion.TLSv1_3)
        async with foreign_server(foreign, server) as (url, told):
            link = Link(url, await asyncio.to_thread(lambda: private_context(cadata=ours.ca_pem)))
            with pytest.raises(LinkError, match="certificate"):
                await link.post("/v1/sync", b"{}", limit=100)
            await link.close()
            assert not any(told)
