"""Blobs over HTTP: by digest, whole or by one range, immutable; taken in with their hash checked."""

import asyncio
from typing import Final

from aiohttp import web

from protocol import limits
from protocol.errors import HeadlandError, StateError
from protocol.ids import is_digest
from server.clock import NowMs
from server.http.answers import NotFoundError, Status, log
from server.http.bodies import stream_body
from server.http.ranges import UnsatisfiableRangeError, parse_range
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog
from server.threads import Threads

SEND_TIMEOUT_S: Final = 120.0  # a client that takes nothing for so long has gone; its link resumes by range


async def send_blob(request: web.Request, blobs: BlobStore) -> web.StreamResponse:
    """`GET` and `HEAD` of a blob.

    Raises:
        Status: 416.
        NotFoundError: No such blob, or no digest.
    """
    digest = _digest(request)
    length = await blobs.length(digest)
    if length is None:
        raise NotFoundError(f"no blob {digest} here")
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if request.headers.get("If-None-Match") == f'"{digest}"':
        return web.Response(status=304, headers=headers)
    first, count, status = 0, length, 200
    wanted = request.headers.get("Range")
    if wanted is not None and request.headers.get("If-Range", f'"{digest}"') == f'"{digest}"':
        try:
            first, count = parse_range(wanted, length)
        except UnsatisfiableRangeError as error:
            raise Status(
                416, "one range within the blob is answered", headers={"Content-Range": f"bytes */{length}"}
            ) from error
        status = 206
        headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{length}"
    answer = web.StreamResponse(status=status, headers=headers)
    answer.content_length = count
    if request.method == "HEAD":
        await answer.prepare(request)
        return answer
    chunks = blobs.read(digest, first, count)
    try:
        chunk = await anext(chunks, b"")
    except StateError as error:
        # Deleted since its length was asked for: said in the head of the answer, as long as there is one to say it in.
        raise NotFoundError(f"no blob {digest} here") from error
    await answer.prepare(request)
    try:
        while chunk:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await answer.write(chunk)
            chunk = await anext(chunks, b"")
        await answer.write_eof()
    except ConnectionError:
        pass  # the machine drove off; it asks for the rest when it is back
    except (HeadlandError, TimeoutError) as error:
        # The head has gone out: all that is left to say is that the answer broke off.
        log.warning("blob %s broke off: %s", digest, str(error) or "the client takes nothing")
        if request.transport is not None:
            request.transport.abort()
    return answer


async def take_blob(
    request: web.Request, blobs: BlobStore, catalog: Catalog, threads: Threads, now_ms: NowMs
) -> web.Response:
    """`PUT` of a blob.

    Raises:
        Refused: `HASH`, `LENGTH`; nothing of it stays.
    """
    digest = _digest(request)
    if request.content_length is not None and request.content_length > limits.ARTIFACT_BYTES:
        raise Status(413, f"a blob is at most {limits.ARTIFACT_BYTES} bytes")
    length = await blobs.put(digest, stream_body(request), limits.ARTIFACT_BYTES)

    def note() -> None:
        with catalog.write() as session:
            session.payloads.add_blob(digest, length, now_ms())

    await threads.run(note)
    return web.Response(status=204)


def _digest(request: web.Request) -> str:
    text = request.match_info["digest"]
    if not is_digest(text):
        raise NotFoundError("a blob is named by 64 lower-case hexadecimal digits")
    return text
