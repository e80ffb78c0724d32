"""The operator's side of the server, as the tools call it: HTTPS, the server's own CA pinned, a bearer token.

One door to urllib3. Answers become records or errors of ours here; nothing above sees a status code.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3

from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.messages import ErrorAnswer
from protocol.wire import decode
from signing.patience import patiently
from signing.repository import RepositoryKind
from signing.workspace import ServerAccess

T = TypeVar("T")

ANSWER_BYTES: Final = 64 * limits.MIB  # pages of results and device lists; an operator's computer holds that
BLOB_CHUNK_BYTES: Final = limits.MIB
TIMEOUT: Final = urllib3.Timeout(connect=10.0, read=120.0)  # a publish is verified and stored before it is answered
TAKE_AGAIN: Final = "take operator.json from the server again: `headland keys server operator.json`"

Progress = Callable[[int], None]
"""Hears how many bytes more have gone."""


class Operator(Protocol):
    """What the commands need of a server. `ServerClient` is the real one; each raises as its methods say."""

    def get(self, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        """Asks for JSON."""
        ...

    def post(self, path: str, body: Any, kind: type[T]) -> T:
        """Sends JSON."""
        ...

    def send(self, path: str, data: bytes, kind: type[T]) -> T:
        """Sends bytes that may be sent again."""
        ...

    def has_blob(self, sha256: str) -> bool:
        """Whether it holds a blob."""
        ...

    def put_blob(self, sha256: str, path: Path, progress: Progress) -> None:
        """Takes a blob."""
        ...

    def get_blob(self, sha256: str, first: int) -> Iterator[bytes]:
        """Gives a blob from a position on, as far as the link lets it."""
        ...

    def publish(self, files: Mapping[RepositoryKind, Mapping[str, bytes]], *, again: bool = False) -> str:
        """Takes metadata, all or nothing; the same bytes again are fine. Returns why it is not on offer, or nothing."""
        ...

    def metadata(self, kind: RepositoryKind, name: str) -> bytes:
        """A published metadata file."""
        ...

    def close(self) -> None:
        """Lets connections go."""
        ...


class ServerClient:
    """Calls the operator API of `protocol/README.md`. Blocking.

    Args:
        access: Address, CA and token.

    Raises:
        StateError: The address is not https.
    """

    def __init__(self, access: ServerAccess) -> None:
        if not access.url.startswith("https://"):
            raise StateError(
                f"{access.url!r:.80} is no https address: the token would travel in the open",
                hint=TAKE_AGAIN,
            )
        context = ssl.create_default_context(cadata=access.ca_pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._base = access.url.rstrip("/")
        self._workspace = access.workspace
        self._headers = {"Authorization": f"Bearer {access.token}", "Accept-Encoding": "identity"}
        self._pool = urllib3.PoolManager(ssl_context=context, timeout=TIMEOUT, retries=False, maxsize=4)

    def close(self) -> None:
        """Lets connections go."""
        self._pool.clear()

    def get(self, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        """Asks for JSON.

        Args:
            path: From `/api/v1` on, its parts quoted.
            kind: What the answer must be.
            query: Parameters.

        Raises:
            LinkError: No answer.
            StateError: No such thing.
            Refused: The token is not good.
        """
        asked = f"{path}?{urlencode(query)}" if query else path
        return patiently(lambda: self._json("GET", asked, None, kind))

    def post(self, path: str, body: Any, kind: type[T]) -> T:
        """Sends JSON and reads the answer; not repeated, as not every request may be. Raises as `get`."""
        return self._json("POST", path, msgspec.json.encode(body), kind)

    def send(self, path: str, data: bytes, kind: type[T]) -> T:
        """Sends bytes and reads the answer; repeated where the link breaks, so only what changes nothing the second
        time. Raises as `get`, and `Refused` for what the server refuses."""
        headers = {"Content-Type": "application/octet-stream"}
        return patiently(lambda: self._answered("POST", path, data, headers, kind))

    def has_blob(self, sha256: str) -> bool:
        """Whether the server holds a blob."""
        status, data = patiently(lambda: self._call("HEAD", f"/blobs/{sha256}", None, {}))
        if status in (200, 404):
            return status == 200
        raise _error(status, data, f"HEAD /blobs/{sha256[:12]}")

    def put_blob(self, sha256: str, path: Path, progress: Progress) -> None:
        """Sends a blob; the server hashes what it gets.

        Raises:
            Refused: `HASH`: what arrived is something else.
        """

        def send() -> None:
            with path.open("rb") as reader:
                headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
                status, data = self._call("PUT", f"/blobs/{sha256}", _chunks(reader, progress), headers)
            if status not in (200, 201, 204):
                raise _error(status, data, f"PUT /blobs/{sha256[:12]}")

        patiently(send)

    def get_blob(self, sha256: str, first: int) -> Iterator[bytes]:
        """Fetches a blob from a position on; nothing is checked here, and nothing repeated.

        Args:
            sha256: Its name.
            first: Of the bytes that are wanted; below its length.

        Raises:
            LinkError: No answer, or it broke off: ask again from where it did.
            StateError: The server has no such blob.
        """
        path = f"/blobs/{sha256}"
        headers = {**self._headers, "Range": f"bytes={first}-"}
        with self._errors():
            answer = self._pool.request(
                "GET", f"{self._base}/api/v1{path}", headers=headers, redirect=False, preload_content=False
            )
            try:
                if answer.status != 206:
                    raise _error(answer.status, answer.read(limits.MIB), f"GET {path[:20]}")
                while chunk := answer.read(BLOB_CHUNK_BYTES):
                    yield chunk
            finally:
                answer.close()  # what is left of it is not read

    def publish(self, files: Mapping[RepositoryKind, Mapping[str, bytes]], *, again: bool = False) -> str:
        """Publishes offline-signed metadata, all or nothing. The same bytes again are fine, so it may be repeated.

        Args:
            files: By repository and name.
            again: They are all that this workspace has in force.

        Returns:
            Why a server that was restored from a backup keeps it and does not offer it yet; empty when it does.

        Raises:
            Refused: Not signed as it must be, older than what is there, or expired.
            StateError: Blobs that a release names are not on the server.
        """
        content = [
            {"repository": kind, "name": name, "content": data.decode("utf-8")}
            for kind, named in files.items()
            for name, data in named.items()
        ]
        push = {"files": content, "again": again, "workspace": self._workspace}
        body = msgspec.json.encode(push)
        answer = patiently(lambda: self._json("POST", "/publish", body, dict[str, Any]))
        return str(answer.get("held", ""))

    def metadata(self, kind: RepositoryKind, name: str) -> bytes:
        """A published metadata file."""
        path = f"/tuf/{kind}/{quote(name)}"
        status, data = patiently(lambda: self._call("GET", path, None, {}))
        if status != 200:
            raise _error(status, data, f"GET {path}")
        return data

    def _json(self, method: str, path: str, body: bytes | None, kind: type[T]) -> T:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        return self._answered(method, path, body, headers, kind)

    def _answered(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], kind: type[T]) -> T:
        status, data = self._call(method, path, body, headers)
        if not 200 <= status < 300:
            raise _error(status, data, f"{method} {path}")
        return decode(data or b"null", kind, limit=ANSWER_BYTES)

    def _call(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:
        url = f"{self._base}/api/v1{path}"
        with self._errors():
            answer = self._pool.request(
                method, url, body=body, headers={**self._headers, **headers}, redirect=False, preload_content=False
            )
            try:
                data = answer.read(ANSWER_BYTES + 1)
            finally:
                answer.release_conn()
        if len(data) > ANSWER_BYTES:
            raise LinkError(f"{url} answers more than {ANSWER_BYTES} bytes", retryable=False)
        return answer.status, data

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns urllib3's errors into ours."""
        try:
            yield
        except urllib3.exceptions.SSLError as error:
            raise LinkError(
                f"{self._base} is not the server that server.json knows: {error}",
                retryable=False,
                hint=TAKE_AGAIN,
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"no answer from {self._base}: {error}", hint="is headland-server running?") from error


def _chunks(reader: BinaryIO, progress: Progress) -> Any:
    while chunk := reader.read(BLOB_CHUNK_BYTES):
        yield chunk
        progress(len(chunk))


def _error(status: int, data: bytes, what: str) -> LinkError | StateError | Refused:
    """An error answer as one of ours: a reason that we know is a refusal; 5xx is the server's fault."""
    try:
        said = decode(data, ErrorAnswer, limit=limits.MIB)
    except Refused:
        said = ErrorAnswer(error=f"{what}: the server answered {status}")
    if said.reason in set(Reason):
        return Refused(Reason(said.reason), said.error, hint=said.hint)
    if status in (401, 403):
        return Refused(
            Reason.TOKEN,
            said.error,
            hint=said.hint or TAKE_AGAIN,
        )
    if status >= 500 or status in (408, 429):
        return LinkError(said.error, status=status, hint=said.hint)
    return StateError(said.error, hint=said.hint)
