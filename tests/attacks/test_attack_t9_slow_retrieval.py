"""T9: one byte a second, or a stall just before the end: the stream is dropped, resumed later, and nothing starves."""

import asyncio
import time

import pytest
from aiohttp import web

from device.link import Link
from device.store import Store
from device.transfer import Transfer, TransferSettings
from protocol.errors import LinkError
from protocol.limits import MIB
from tests.fakes.cutting_proxy import BlobServer, serving
from tests.fakes.updates import Release, noise

RELEASE = Release("1.0.0", 1, noise(2 * MIB + 10, 3))
SETTINGS = {"min_rate_bytes_s": 10_000, "min_rate_over_s": 0.2, "first_retry_s": 0.01, "longest_retry_s": 0.02}


def slow_after(server, share):
    """Gives the first `share` of each range at once, the rest a byte at a time."""

    async def handle(request):
        whole = await server.handle(request)
        body = whole.body
        response = web.StreamResponse(status=206, headers={"Content-Range": whole.headers["Content-Range"]})
        await response.prepare(request)
        quick = int(len(body) * share)
        try:
            await response.write(body[:quick])
            for at in range(quick, len(body)):
                await asyncio.sleep(0.02)
                await response.write(body[at : at + 1])
        except ConnectionResetError:
            pass
        return response

    return handle


@pytest.mark.parametrize("share", [0.0, 0.99])
async def test_attack_t9_a_trickle_is_dropped_and_resumed_when_the_link_is_good(tmp_path, share):
    server = BlobServer(dict(RELEASE.blobs))
    received = []
    store = Store(tmp_path / "store")
    async with serving(slow_after(server, share)) as port:
        link = Link(f"http://127.0.0.1:{port}", None)
        transfer = Transfer(link, store, TransferSettings(attempts=2, **SETTINGS), count=received.append)
        beats = 0

        async def other_work():
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        work = asyncio.create_task(other_work())
        began = time.monotonic()
        try:
            with pytest.raises(LinkError) as failed:
                await transfer.fetch(RELEASE.plan, RELEASE.manifest.artifacts())
        finally:
            work.cancel()
            await link.close()
        took = time.monotonic() - began
    assert failed.value.retryable
    assert took < 15
    assert beats > took / 0.01 * 0.1, "other work was starved"
    before = sum(received)
    async with serving(server.handle) as port:
        link = Link(f"http://127.0.0.1:{port}", None)
        transfer = Transfer(link, store, TransferSettings(**SETTINGS), count=received.append)
        await transfer.fetch(RELEASE.plan, RELEASE.manifest.artifacts())
        await link.close()
    assert all(store.is_whole(name) for name in RELEASE.artifacts)
    if share:
        assert sum(received) - before < RELEASE.travels_bytes, "what came before the stall is kept"
