"""The one HTTP door of the device: aiohttp, one session, mutual TLS, everything bounded.

An answer is at most as long as the caller allows, compressed bodies are refused, redirects are not followed and no
proxy of the environment is asked. What the network does is a `LinkError`; what the server says is an `Answer`. Under
TLS 1.3 a refused client certificate looks like a dropped connection: the device cannot tell them apart.
"""

import re
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import aiohttp

from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.messages import ErrorAnswer
from protocol.wire import decode

ERROR_BYTES: Final = 64 * limits.KIB
CHUNK_BYTES: Final = 64 * limits.KIB
RETRYABLE: Final = frozenset({408, 425, 429})  # besides every 5xx: the same request may be answered later
JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"


@dataclass(frozen=True)
class Answer:
    """What the server said.

    Args:
        status: Of HTTP.
        body: Whole, within the limit that was asked for.
    """

    status: int
    body: bytes

    def content(self) -> bytes:
        """The body of a success.

        Raises:
            Refused: 403 with a reason that both sides know, such as `revoked`.
            LinkError: Any other status, with the server's own words.
        """
        if 200 <= self.status < 300:
            return self.body
        raise refusal(self.status, self.body)


class Link:
    """Requests to one server.

    Args:
        base_url: `https://host:port`.
        tls: The device's context; None for plain HTTP, in tests.
        connect_s: Time for the connection and the handshake.
        request_s: Time for one whole request that is not a stream.
        silence_s: A stream that says nothing for so long is dropped.
    """

    def __init__(
        self,
        base_url: str,
        tls: ssl.SSLContext | None,
        *,
        connect_s: float = 15.0,
        request_s: float = 60.0,
        silence_s: float = 60.0,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._tls = tls
        self._request = aiohttp.ClientTimeout(total=request_s, sock_connect=connect_s, connect=connect_s)
        self._stream = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, connect=connect_s, sock_read=silence_s)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Ends the session; the next request opens a new one (with the certificate that holds then)."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def renew(self, tls: ssl.SSLContext) -> None:
        """Speaks under this context from the next request on; what is under way ends as a dropped link does."""
        self._tls = tls
        await self.close()

    async def get(self, path: str, *, limit: int) -> Answer:
        """One GET, read whole.

        Args:
            path: From the root, such as `/v1/sync`.
            limit: The most bytes of the answer.

        Raises:
            LinkError: No whole answer came.
            Refused: `LENGTH`: it is longer than `limit`; `METADATA`: it is compressed.
        """
        return await self._ask("GET", path, None, {}, limit)

    async def post(self, path: str, body: bytes, *, limit: int, content_type: str = JSON) -> Answer:
        """One POST, read whole; as `get`. The caller makes repeating it safe."""
        return await self._ask("POST", path, body, {"Content-Type": content_type}, limit)

    async def stream(self, path: str, *, first: int, length: int) -> AsyncGenerator[bytes, None]:
        """Bytes `first` to `first + length - 1` of an immutable resource, as they come. Close the generator.

        Raises:
            LinkError: The link failed, or the server does not give this range.
            Refused: `LENGTH`: the server sends more than was asked for; `METADATA`: it is compressed.
        """
        headers = {"Range": f"bytes={first}-{first + length - 1}"}
        received = 0
        try:
            async with self._open().get(
                self._url(path), headers=headers, timeout=self._stream, allow_redirects=False
            ) as response:
                _refuse_encoding(response)
                if response.status not in (200, 206):
                    raise refusal(response.status, await _read(response, ERROR_BYTES))
                _check_range(response, first)
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    received += len(chunk)
                    if received > length:
                        raise Refused(Reason.LENGTH, f"{path} goes on after the {length} bytes that were asked for")
                    yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _link_error(path, error) from error
        if received < length:
            raise LinkError(f"{path}: the answer ended {length - received} bytes early")

    async def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str], limit: int) -> Answer:
        try:
            async with self._open().request(
                method, self._url(path), data=body, headers=headers, timeout=self._request, allow_redirects=False
            ) as response:
                _refuse_encoding(response)
                success = 200 <= response.status < 300
                return Answer(response.status, await _read(response, limit if success else max(limit, ERROR_BYTES)))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _link_error(path, error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True, limit=8)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                trust_env=False,
                headers={"Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _url(self, path: str) -> str:
        assert path.startswith("/")
        return self._base_url + path


def refusal(status: int, body: bytes) -> LinkError | Refused:
    """What an answer that is no success means, in the server's own words as far as they can be read."""
    try:
        said = decode(body, ErrorAnswer, limit=ERROR_BYTES)
    except Refused:
        said = ErrorAnswer(error="no message of ours")
    if status == 403 and said.reason in {reason.value for reason in Reason}:
        return Refused(Reason(said.reason), said.error, hint=said.hint)
    return LinkError(
        f"the server answered {status}: {said.error}",
        retryable=status >= 500 or status in RETRYABLE,
        status=status,
        hint=said.hint,
    )


def _refuse_encoding(response: aiohttp.ClientResponse) -> None:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Refused(Reason.METADATA, f"an answer with Content-Encoding {encoding!r:.40}: only plain bytes are read")


def _check_range(response: aiohttp.ClientResponse, first: int) -> None:
    """A server that ignores the range gives bytes of another place: their hash would fail for no fault of theirs."""
    if response.status == 200:
        begins = 0
    else:
        found = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
        begins = int(found.group(1)) if found else -1
    if begins != first:
        raise LinkError(f"asked for bytes from {first}, the server gives them from {begins}", retryable=False)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    pieces = []
    length = 0
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        length += len(chunk)
        if length > limit:
            raise Refused(Reason.LENGTH, f"an answer of more than {limit} bytes")
        pieces.append(chunk)
    return b"".join(pieces)


def _link_error(path: str, error: Exception) -> LinkError:
    what = str(error) or type(error).__name__
    return LinkError(f"{path}: {what}", retryable=not isinstance(error, aiohttp.InvalidURL))
