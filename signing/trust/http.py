"""Metadata over HTTP: urllib3 behind the `Source` port, strict about all that an answer may be."""

import ssl
import time
from collections.abc import Callable
from typing import Final

import urllib3

from protocol.errors import LinkError, Reason, Refused

_CHUNK_BYTES: Final = 64 * 1024
_GAP_S: Final = 30.0  # without one byte the link is called dead
_FILE_S: Final = 300.0  # one byte at a time must not hold the keeper for ever (ATTACKS.md T9)


class HttpSource:
    """Reads below one base URL. No proxies, no redirects, no content coding, no retries of its own.

    Args:
        base_url: With or without the slash at the end.
        context: For TLS; None where the base is plain HTTP.
        monotonic: A clock for the time limit of one file, in seconds.
    """

    def __init__(
        self, base_url: str, context: ssl.SSLContext | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._base_url = base_url.rstrip("/") + "/"
        self._monotonic = monotonic
        # A PoolManager asks no environment for proxies, unlike urllib3's callers usually do.
        self._pool = urllib3.PoolManager(
            num_pools=2, maxsize=1, retries=False, timeout=urllib3.Timeout(_GAP_S), ssl_context=context
        )

    def read(self, name: str, limit_bytes: int) -> bytes:
        """As `Source.read`."""
        url = self._base_url + name
        try:
            return self._read(url, limit_bytes)
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"{url}: {error}") from error

    def close(self) -> None:
        """Closes kept connections."""
        self._pool.clear()

    def _read(self, url: str, limit_bytes: int) -> bytes:
        until = self._monotonic() + _FILE_S
        response = self._pool.request(
            "GET",
            url,
            redirect=False,
            preload_content=False,
            decode_content=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "headland"},
        )
        whole = False
        try:
            if response.status != 200:
                # An error's short page is read to its end, so that asking for the next root costs no new handshake.
                whole = len(response.read(_CHUNK_BYTES)) < _CHUNK_BYTES
                retryable = response.status >= 500 or response.status in {408, 429}
                raise LinkError(f"{url}: HTTP status {response.status}", retryable=retryable, status=response.status)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise Refused(Reason.METADATA, f"{url}: a coded answer, which is never asked for")
            data = bytearray()
            for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                data += chunk
                if len(data) > limit_bytes:
                    raise Refused(Reason.LENGTH, f"{url}: more than {limit_bytes} bytes")
                if self._monotonic() > until:
                    raise LinkError(f"{url}: not whole after {_FILE_S:.0f} s")
            whole = True
            return bytes(data)
        finally:
            # What is left of a refused answer must not become the next answer on this connection.
            if whole:
                response.release_conn()
            else:
                response.close()
