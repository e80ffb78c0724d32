"""What people may ask of a running agent: one set of routes for the socket of the command line and for the page.

Each body is one JSON object. What cannot be done is an `ErrorAnswer`; its status says of which kind it is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from device.desk.lent_key import KeyLent, Lent, sign
from device.desk.port import Desk
from protocol import limits
from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from protocol.ids import Name
from protocol.kits import is_kit
from protocol.messages import ErrorAnswer, SignedForce
from protocol.wire import Message, decode, encode

BODY_BYTES: Final = 64 * limits.KIB
STATUSES: Final[dict[type[HeadlandError], HTTPStatus]] = {
    Refused: HTTPStatus.UNPROCESSABLE_ENTITY,
    StateError: HTTPStatus.CONFLICT,
    LinkError: HTTPStatus.SERVICE_UNAVAILABLE,
}
T = TypeVar("T")


class Nothing(Message):
    """An empty body: `{}`."""


class LookRequest(Message):
    """`POST /api/kits/look`. `path` names a folder that counts as a stick from now on; not from the page."""

    path: str = ""


class ExportRequest(Message):
    """`POST /api/export`. `path` as in `LookRequest`; empty: every stick that is there."""

    path: str = ""


class ChallengeRequest(Message):
    """`POST /api/force/challenge`."""

    offer: Name


def routes_of(desk: Desk, *, takes_paths: bool) -> list[web.RouteDef]:
    """All of them, under `/api/`.

    Args:
        desk: What they lead to.
        takes_paths: Whether who asks may name folders of this machine: they are written to as the agent.
    """

    def folder(path: str) -> Path | None:
        if path and not takes_paths:
            raise StateError("folders are not named here", hint="headland-device kit on the machine takes one")
        if path and not Path(path).is_absolute():
            raise StateError(f"{path} is no whole path", hint="begin it with a slash")
        return Path(path) if path else None

    async def status(request: web.Request) -> web.Response:
        return web.Response(body=await desk.status(), content_type="application/json")

    async def kits(request: web.Request) -> web.Response:
        return _said(desk.shown())

    async def look(request: web.Request) -> web.Response:
        return _said(await desk.look(folder((await _read(request, LookRequest)).path)))

    async def apply(request: web.Request) -> web.Response:
        await _read(request, Nothing)
        kit = request.match_info["kit"]
        if not is_kit(kit):
            raise StateError(f"{kit!r:.80} is no name of a kit")
        return _said(await desk.apply(kit))

    async def challenge(request: web.Request) -> web.Response:
        return _said(await desk.challenge((await _read(request, ChallengeRequest)).offer))

    async def force(request: web.Request) -> web.Response:
        return _said(await desk.force(await _read(request, SignedForce)))

    async def export(request: web.Request) -> web.Response:
        path = folder((await _read(request, ExportRequest)).path)
        if desk.export is None:
            raise StateError("this machine writes no results to sticks", hint="[kits] results in device.toml")
        return _said(await desk.export(path))

    return [
        web.get("/api/status", status),
        web.get("/api/kits", kits),
        web.post("/api/kits/look", look),
        web.post("/api/kits/{kit}/apply", apply),
        web.post("/api/force/challenge", challenge),
        web.post("/api/force", force),
        web.post("/api/export", export),
    ]


def lending_route(desk: Desk, names: Callable[[], Awaitable[dict[str, Name]]]) -> web.RouteDef:
    """For a browser, which has a key file and nothing to sign with: see `device.desk.lent_key`.

    Args:
        desk: Gives the challenge and takes the request.
        names: The technicians' by their public keys.
    """

    one_at_a_time = asyncio.Lock()  # each takes 128 MiB

    async def with_key(request: web.Request) -> web.Response:
        async with one_at_a_time:
            return await lend(await _read(request, KeyLent))

    async def lend(lent: KeyLent) -> web.Response:
        challenge = await desk.challenge(lent.offer)
        signed = await sign(
            Lent(
                challenge=challenge,
                key=lent.key,
                passphrase=lent.passphrase,
                reason=lent.reason,
                names=await names(),
            )
        )
        return _said(await desk.force(signed))

    return web.post("/api/force/with-key", with_key)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns errors raised on purpose into answers, also those of aiohttp itself."""
    try:
        return await handler(request)
    except HeadlandError as error:
        reason = error.reason.value if isinstance(error, Refused) else ""
        status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
        return _said(ErrorAnswer(error=error.message, reason=reason, hint=error.hint), status)
    except web.HTTPException as error:
        return _said(ErrorAnswer(error=error.reason), HTTPStatus(error.status))


def error_of(status: int, body: bytes) -> HeadlandError:
    """What an answer that is no success means, for the one who asked."""
    try:
        said = decode(body, ErrorAnswer, limit=BODY_BYTES)
    except Refused:
        said = ErrorAnswer(error=f"the agent answered {status}")
    for kind, code in STATUSES.items():
        if code == status:
            if kind is Refused:
                known = said.reason in {reason.value for reason in Reason}
                return Refused(Reason(said.reason) if known else Reason.METADATA, said.error, hint=said.hint)
            return kind(said.error, hint=said.hint)
    return StateError(said.error, hint=said.hint)


async def _read(request: web.Request, kind: type[T]) -> T:
    return decode(await request.read() or b"{}", kind, limit=BODY_BYTES)


def _said(value: Any, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type="application/json")
