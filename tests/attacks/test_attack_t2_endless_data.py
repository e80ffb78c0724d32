"""T2: a server that streams past the signed length is stopped at once; memory and disk stay capped."""

import tracemalloc

import pytest
from aiohttp import web

from device.link import CHUNK_BYTES, Link
from device.store import Store
from device.transfer import Transfer, TransferSettings
from protocol.errors import Reason, Refused
from protocol.limits import MIB
from tests.fakes.cutting_proxy import serving
from tests.fakes.updates import Release, noise

RELEASE = Release("1.0.0", 1, noise(2 * MIB + 10, 3))


class EndlessServer:
    """Gives what was asked for, and then goes on."""

    def __init__(self):
        self.sent = 0

    async def handle(self, request):
        blob = RELEASE.blobs[request.path.rsplit("/", 1)[-1]]
        part = request.http_range
        response = web.StreamResponse(
            status=206, headers={"Content-Range": f"bytes {part.start}-{part.stop - 1}/{len(blob)}"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            await response.write(blob[part.start : part.stop])
            for _ in range(10_000):
                self.sent += MIB
                await response.write(bytes(MIB))
        except ConnectionResetError:
            pass
        return response


async def test_attack_t2_a_blob_without_end_is_refused_after_its_length(tmp_path):
    server = EndlessServer()
    counted = []
    async with serving(server.handle) as port:
        link = Link(f"http://127.0.0.1:{port}", None)
        store = Store(tmp_path / "store")
        transfer = Transfer(link, store, TransferSettings(attempts=2), count=counted.append)
        tracemalloc.start()
        try:
            with pytest.raises(Refused) as refused:
                await transfer.fetch(RELEASE.plan, RELEASE.manifest.artifacts())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            await link.close()
    assert refused.value.reason is Reason.LENGTH
    assert sum(counted) <= RELEASE.travels_bytes
    assert store.used_bytes() <= sum(len(content) for content in RELEASE.artifacts.values()) + 1000
    assert peak < 24 * MIB
    assert server.sent < 64 * MIB


async def test_attack_t2_the_stream_ends_within_one_chunk_of_what_was_asked():
    async with serving(EndlessServer().handle) as port:
        link = Link(f"http://127.0.0.1:{port}", None)
        name = RELEASE.digest
        length = len(RELEASE.manifest_bytes)
        taken = 0
        with pytest.raises(Refused):
            async for chunk in link.stream(f"/v1/blobs/{name}", first=0, length=length):
                taken += len(chunk)
        await link.close()
    assert taken <= length < CHUNK_BYTES
