"""A TCP proxy that cuts connections after so many bytes from the server, and a plain server of blobs behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web


class CuttingProxy:
    """Forwards bytes; what the server says is cut where the test wants.

    Args:
        port: Of the server.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.cuts: list[int] = []  # bytes of the server's answers to let through on each next connection
        self.connections = 0
        self.chunk = 16384
        self.pause_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["CuttingProxy"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        allowance = self.cuts.pop(0) if self.cuts else None
        with contextlib.suppress(OSError, asyncio.CancelledError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            forth = asyncio.create_task(self._forward(reader, inner_writer, None))
            try:
                await self._forward(inner_reader, writer, allowance)
            finally:
                forth.cancel()
                await asyncio.gather(forth, return_exceptions=True)
                inner_writer.close()
                # The connection is reset, not closed in order: that is how links drop.
                writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowance: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self.chunk):
                if allowance is not None:
                    data = data[:allowance]
                    allowance -= len(data)
                writer.write(data)
                await writer.drain()
                if allowance == 0:
                    return
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)


@contextlib.asynccontextmanager
async def serving(handler: Callable[[web.Request], object]) -> AsyncIterator[int]:
    """A server on a free port whose every request goes to `handler`."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class BlobServer:
    """Blobs by digest with single ranges, as the wire format says; it counts what it is asked for."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.asked: list[tuple[str, int]] = []

    async def handle(self, request: web.Request) -> web.Response:
        name = request.path.rsplit("/", 1)[-1]
        blob = self.blobs.get(name)
        if blob is None:
            return web.json_response({"error": f"no blob {name[:12]}"}, status=404)
        part = request.http_range
        first, last = part.start or 0, part.stop if part.stop is not None else len(blob)
        self.asked.append((name, first))
        return web.Response(
            body=blob[first:last],
            status=206,
            headers={"Content-Range": f"bytes {first}-{last - 1}/{len(blob)}"},
        )
