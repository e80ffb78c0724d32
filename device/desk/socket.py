"""The desk's Unix socket `run/desk.sock`: for the command line, and for nobody but the agent's own user and root.

The server behind it is loaded when somebody asks for the first time: an idle agent does not carry it.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from device.desk.port import Desk
from device.threads import to_its_end
from signing.durable import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from aiohttp import web

_log = logging.getLogger(__name__)

MODE: Final = 0o600
BACKLOG: Final = 16
RETRY_S: Final = 10.0  # while the disk takes no socket


class DeskSocket:
    """Serves the routes. Belongs to one event loop.

    Args:
        path: Of the socket. The agent holds the state folder, so what lies there is of an agent that ended.
        desk: What there is to ask.
    """

    def __init__(self, path: Path, desk: Desk) -> None:
        self._path = path
        self._desk = desk

    async def run(self) -> None:
        """Serves until cancelled. While the disk takes no socket it is tried again."""
        listener = await self._listen()
        try:
            await somebody(listener)
            await self._serve(listener)
        finally:
            listener.close()
            await to_its_end(self._remove)

    async def _serve(self, listener: socket.socket) -> None:
        runner = await asyncio.to_thread(self._runner)
        await runner.setup()
        assert runner.server is not None  # it was set up
        try:
            async with await asyncio.get_running_loop().create_unix_server(runner.server, sock=listener) as server:
                await server.serve_forever()
        finally:
            await runner.cleanup()

    def _runner(self) -> "web.AppRunner":
        """Blocking: what it loads takes a moment, in which alarms must not wait."""
        from aiohttp import web

        from device.desk.routes import BODY_BYTES, answer_errors, routes_of

        app = web.Application(middlewares=[answer_errors], client_max_size=BODY_BYTES)
        app.add_routes(routes_of(self._desk, takes_paths=True))
        return web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def _listen(self) -> socket.socket:
        was_told = False
        opened: list[socket.socket] = []
        while True:
            try:
                await to_its_end(lambda: opened.append(_open(self._path)))
                return opened.pop()
            except OSError as error:
                if not was_told:
                    _log.warning("there is no socket for the command line: %s", error)
                was_told = True
            finally:
                for listener in opened:  # cancelled while it was opened
                    listener.close()
            await asyncio.sleep(RETRY_S)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


async def somebody(listener: socket.socket) -> None:
    """Waits for the first who connects."""
    comes = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(listener, comes.set)
    try:
        await comes.wait()
    finally:
        loop.remove_reader(listener)


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for `path` of any length: an address may have 107 bytes. Good while the block lasts."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _open(path: Path) -> socket.socket:
    """Listens in the place of whatever lay there. Blocking."""
    fresh = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with short(fresh) as name:
            listener.bind(name)
        fresh.chmod(MODE)  # before it listens: until then nobody can connect
        listener.listen(BACKLOG)
        fresh.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener
