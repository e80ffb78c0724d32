"""What comes in: measured before it is read, read with a limit and a time-out, never decompressed by the door."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from aiohttp import web

from protocol.wire import decode
from server.http.answers import Handler, Status

T = TypeVar("T")

BODY_TIMEOUT_S: Final = 60.0  # a small body on a bad link; what is larger goes by blobs and batches
CHUNK_TIMEOUT_S: Final = 30.0  # between two chunks of a large one


@web.middleware
async def plain_bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses compressed requests: bounds are those of the bytes that come (ATTACKS.md T2)."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Status(415, "Content-Encoding is refused")
    return await handler(request)


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        Status: 413 above the limit, before or while it is read.
        TimeoutError: It does not come.
    """
    if request.content_length is not None and request.content_length > limit_bytes:
        raise Status(413, f"at most {limit_bytes} bytes are taken here")
    body = bytearray()
    async with asyncio.timeout(BODY_TIMEOUT_S):
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit_bytes:
                raise Status(413, f"at most {limit_bytes} bytes are taken here")
    return bytes(body)


async def read_large(request: web.Request, limit_bytes: int) -> bytes:
    """A body that may take its time on a slow link, as long as something comes.

    Raises:
        Status: 413 above the limit.
        TimeoutError: A chunk does not come.
    """
    body = bytearray()
    async for chunk in stream_body(request):
        body += chunk
        if len(body) > limit_bytes:
            raise Status(413, f"at most {limit_bytes} bytes are taken here")
    return bytes(body)


async def read_json(request: web.Request, kind: type[T], limit_bytes: int) -> T:
    """A JSON body as a record.

    Raises:
        Status: 415 when it does not call itself JSON: a form on a foreign page cannot.
        Refused: Not a `kind`.
    """
    if request.content_type != "application/json":
        raise Status(415, "Content-Type must be application/json")
    return decode(await read_body(request, limit_bytes), kind, limit=limit_bytes)


async def stream_body(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises:
        TimeoutError: A chunk does not come.
    """
    while True:
        async with asyncio.timeout(CHUNK_TIMEOUT_S):
            chunk = await request.content.readany()
        if not chunk:
            return
        yield chunk
