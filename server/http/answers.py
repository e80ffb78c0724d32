"""How errors leave the server: one body, one table of status codes, nothing of the server's inside."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from protocol.messages import ErrorAnswer
from protocol.wire import encode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("headland.server")

STATUS_OF_REASON: Final = {
    Reason.TOKEN: 403,
    Reason.CERTIFICATE: 403,
    Reason.REVOKED: 403,
    Reason.CLONE: 403,
    Reason.WRONG_DEVICE: 403,
    Reason.WRONG_PRODUCT: 403,
    Reason.SIGNATURE: 403,
    Reason.CONFLICT: 409,
    Reason.LENGTH: 413,
    Reason.LIMIT: 413,
}
"""A refusal that is not named here is the request's fault: 400."""

HARDENING: Final = {
    # Nothing here is a page; a browser that is talked into fetching it must not make one of it.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Server": "headland",  # and not which libraries of which version
}


class NotFoundError(StateError):
    """There is no such thing."""


class Status(Exception):  # noqa: N818  (an answer, not a mishap)
    """An answer of the door itself, before any rule of the product is asked.

    Args:
        status: HTTP.
        message: For a person.
        reason: For a program, when one fits.
        headers: More headers.
    """

    def __init__(
        self, status: int, message: str, reason: Reason | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.headers = headers or {}


def json_answer(body: object, status: int = 200) -> web.Response:
    """A JSON answer; what it says is of this moment, so nobody keeps it."""
    return web.Response(
        body=encode(body), status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def error_answer(status: int, message: str, reason: str = "", hint: str = "") -> web.Response:
    """The body of every answer that is not 2xx."""
    return json_answer(ErrorAnswer(error=message, reason=reason, hint=hint), status)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what handlers raise into answers. What nobody foresaw is logged whole and answered with nothing of it."""
    try:
        answer = await handler(request)
    except Status as error:
        answer = error_answer(error.status, error.message, error.reason.value if error.reason else "")
        answer.headers.update(error.headers)
    except NotFoundError as error:
        answer = error_answer(404, error.message, hint=error.hint)
    except Refused as error:
        status = STATUS_OF_REASON.get(error.reason, 400)
        answer = error_answer(status, error.message, error.reason.value, error.hint)
    except LinkError as error:
        answer = error_answer(503, error.message, hint=error.hint)
        answer.headers["Retry-After"] = "10"
    except HeadlandError as error:
        answer = error_answer(409, error.message, hint=error.hint)
    except web.HTTPException as error:
        answer = error_answer(error.status, error.reason)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
    except TimeoutError:
        answer = error_answer(408, "the request came too slowly")
    except ConnectionResetError:
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        answer = error_answer(500, "the server failed; its log says how")
    if answer.status in (408, 413, 415):
        answer.force_close()  # the rest of the body is not read
    return answer


async def harden(request: web.Request, answer: web.StreamResponse) -> None:
    """For every answer of an application, as its `on_response_prepare`."""
    answer.headers.update(HARDENING)
