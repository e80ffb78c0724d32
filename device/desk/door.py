"""The page's door: the desk's routes for a browser on this machine or in the cab, once it is paired.

Plain HTTP, for no browser in a cab would know a certificate of ours; so the default is this machine alone, and a
network that it is opened to should be the cab's own. No cookie is read; what comes must name this machine as browsers
do that were sent here by nobody else; and nothing is taken from a form.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Iterable
from functools import partial
from importlib import resources
from typing import Annotated, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from device.desk.pairing import PageSettings, Pairing, TooManyGuessesError
from protocol import limits
from protocol.errors import Refused, StateError
from protocol.messages import ErrorAnswer
from protocol.wire import Message, decode, encode

LOG: Final = logging.getLogger("headland.desk")
BODY_BYTES: Final = 64 * limits.KIB
BODY_S: Final = 10.0  # for the whole of a body
CONNECTIONS: Final = 32  # a browser takes six

HARDENING: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "headland",
}
FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


class PairRequest(Message):
    """`POST /pair`."""

    code: Annotated[str, msgspec.Meta(max_length=32)]


class PageDoor:
    """Serves the page and what it asks for.

    Args:
        settings: Where.
        pairing: Who may.
        routes: Of the desk, all under `/api/`.
        middlewares: Of the desk: they turn its errors into answers.
    """

    def __init__(
        self,
        settings: PageSettings,
        pairing: Pairing,
        routes: Iterable[web.AbstractRouteDef],
        middlewares: Iterable[Middleware] = (),
    ) -> None:
        self._settings = settings
        self._pairing = pairing
        self._routes = tuple(routes)
        self._middlewares = tuple(middlewares)
        self._files: dict[str, tuple[bytes, str]] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Serves until cancelled."""
        app = await asyncio.to_thread(self.application)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        assert runner.server is not None  # it was set up
        try:
            server = await asyncio.get_running_loop().create_server(partial(_connection, runner.server), sock=listener)
            async with server:
                await server.serve_forever()
        finally:
            await runner.cleanup()

    def application(self) -> web.Application:
        """The aiohttp application. Blocking."""
        here = resources.files("device.desk")
        self._files = {path: (here.joinpath("page", name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        app = web.Application(middlewares=[*self._middlewares, self._keep_strangers_out], client_max_size=BODY_BYTES)
        app.on_response_prepare.append(_harden)
        app.add_routes([*(web.get(path, self._file) for path in FILES), web.post("/pair", self._pair), *self._routes])
        return app

    @web.middleware
    async def _keep_strangers_out(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._is_ours(request.host):
            # A name of a stranger's that leads here would make his page one with ours, in the browser's eyes.
            return _said(421, f"this machine is not called {request.host!r:.80}", hint="open it by its address")
        if request.method == "POST" and request.content_type != "application/json":
            return _said(415, "Content-Type must be application/json")
        if request.path.startswith("/api/"):
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            try:
                is_paired = scheme.lower() == "bearer" and await asyncio.to_thread(self._pairing.is_paired, token)
            except OSError as error:
                return _said(503, f"this machine cannot read its pairing code: {error.strerror}")
            if not is_paired:
                return _said(401, "this browser is not paired", hint="the code is what `headland-device page` shows")
        try:
            async with asyncio.timeout(BODY_S):
                await request.read()  # kept by the request: who reads it later finds it there
        except TimeoutError:
            return _said(408, "the request did not come to its end")
        return await handler(request)

    def _is_ours(self, host: str) -> bool:
        host = host.lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name == "localhost" or name in self._settings.names:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    async def _file(self, request: web.Request) -> web.Response:
        body, kind = self._files[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def _pair(self, request: web.Request) -> web.Response:
        try:
            asked = decode(await request.read(), PairRequest, limit=limits.KIB)
            token = await asyncio.to_thread(self._pairing.token, asked.code)
        except Refused as error:
            return _said(400, error.message)
        except TooManyGuessesError:
            return _said(429, "too many wrong codes; wait a minute", headers={"Retry-After": "60"})
        except (OSError, StateError) as error:
            return _said(409, f"no code can be kept here: {error}")
        if token is None:
            LOG.warning("a wrong pairing code from %s", request.remote)
            return _said(403, "that is not the code", hint="`headland-device page` shows it")
        LOG.info("paired with a browser at %s", request.remote)
        return web.Response(body=encode({"token": token}), content_type="application/json")


def _connection(server: web.Server) -> asyncio.Protocol:
    """For who connects. When there are too many, the oldest goes: who holds them open shuts nobody out."""
    connections = server.connections
    for one in connections[: max(0, len(connections) + 1 - CONNECTIONS)]:
        one.force_close()
    return server()


async def _harden(request: web.Request, answer: web.StreamResponse) -> None:
    answer.headers.update(HARDENING)


def _said(status: int, error: str, *, hint: str = "", headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=encode(ErrorAnswer(error=error, hint=hint)),
        status=status,
        content_type="application/json",
        headers=headers,
    )
