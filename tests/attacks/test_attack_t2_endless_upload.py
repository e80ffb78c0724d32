"""T2, server's upload side: what is too long, or not what it is called, stops early and leaves nothing."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from protocol.ids import digest
from server.http import blobs as door
from tests.fakes.server_house import House, Machine, client_context, published


def stored(house: House) -> list[str]:
    return sorted(path.name for path in (house.state / "blobs").rglob("*") if path.is_file())


async def endless_post(machine: Machine, path: str) -> tuple[int, int]:
    """Posts without an end and without a length. Returns the answer's status and how many bytes went out."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 256 << 20:
            sent += 1 << 16
            yield b" " * (1 << 16)

    context = machine._context
    assert context is not None
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        try:
            async with session.post(machine.house.running.device_url + path, data=chunks()) as answer:
                return answer.status, sent
        except aiohttp.ClientError:
            return 413, sent  # the door closed while we were talking


async def test_attack_t2_a_blob_under_a_wrong_name_leaves_nothing(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        code, answer = await house.ask("PUT", f"/api/v1/blobs/{'0' * 64}", data=b"x" * 100_000)
        assert (code, answer["reason"]) == (400, "hash")
        assert stored(house) == []
        assert (await house.ask("HEAD", f"/api/v1/blobs/{'0' * 64}"))[0] == 404
        good = b"y" * 1000
        await house.put_blobs(good)
        code, answer = await house.ask("PUT", f"/api/v1/blobs/{digest(good)}", data=b"z")
        assert (code, answer["reason"]) == (400, "hash")
        assert (await house.ask("GET", f"/api/v1/blobs/{digest(good)}"))[1] == good


async def test_attack_t2_an_endless_blob_is_cut_one_byte_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.limits, "ARTIFACT_BYTES", 3 << 20)
    async with published(tmp_path) as house:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 1 << 30:
                sent += 1 << 18
                yield bytes(1 << 18)

        connector = aiohttp.TCPConnector(ssl=client_context(house.ca_pem))
        headers = {"Authorization": f"Bearer {house.token}"}
        url = f"{house.running.operator_url}/api/v1/blobs/{'0' * 64}"
        async with aiohttp.ClientSession(connector=connector) as session:
            try:
                async with session.put(url, data=endless(), headers=headers) as answer:
                    assert answer.status == 413
            except aiohttp.ClientError:
                pass  # the door closed while we were talking
        assert sent < 64 << 20
        assert stored(house) == []
        code, _ = await house.ask("PUT", f"/api/v1/blobs/{'0' * 64}", data=bytes((3 << 20) + 1))
        assert code == 413


async def test_attack_t2_bodies_have_bounds_that_do_not_trust_their_headers(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        for path, size in (("/v1/sync", 300_000), ("/v1/results", 1_200_000), ("/v1/enrol", 40_000)):
            assert (await tractor.ask("POST", path, b" " * size))[0] == 413, path

            code, sent = await endless_post(tractor, path)
            assert (code, sent < 32 << 20) == (413, True), path
        code, _ = await house.ask(
            "POST",
            "/api/v1/rollouts",
            data=io.BytesIO(b" " * 300_000).read(),
            headers={"Content-Type": "application/json"},
        )
        assert code == 413
