"""HTTP as registries and engines are asked: one request a connection, answers read in pieces, nothing followed."""

import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from protocol.errors import LinkError, Reason, Refused
from signing.images import bounds
from signing.images.content import Chunks

TIMEOUT_S: Final = 60.0  # between two pieces of an answer; the whole may take hours
PACKING_S: Final = 1800.0  # an engine writes a whole archive to its disk before the first piece of it comes
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Origin(NamedTuple):
    """Whom a request goes to: what may be told to one must not be told to another."""

    scheme: str
    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether it is this computer."""
        return self.host in _LOCAL

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Url(NamedTuple):
    """An address without names, passwords or fragments in it."""

    origin: Origin
    target: str  # path and query

    def __str__(self) -> str:
        # Without the query: redirects to stores carry signatures there, which are keys for a while.
        return f"{self.origin.scheme}://{self.origin}{self.target.partition('?')[0]}"


class Answer(NamedTuple):
    """The head of an answer, and its body in pieces."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: Chunks


def parse_url(text: str) -> Url:
    """Reads an absolute address that a registry named.

    Raises:
        Refused: `LIMIT`: neither https nor http, or it holds what it should not.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError as error:
        raise Refused(Reason.LIMIT, f"the registry names an address that is none: {error}") from error
    printable = text.isascii() and text.isprintable() and " " not in text
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or not printable:
        shown = text.partition("?")[0]
        raise Refused(Reason.LIMIT, f"the registry names an address that nothing is asked of: {shown!r:.80}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(Origin(parts.scheme, parts.hostname, port), target)


def read_whole(chunks: Chunks, limit: int, who: str) -> bytes:
    """A short answer.

    Raises:
        Refused: `LIMIT`: it is not short, and was not read to its end.
    """
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise Refused(Reason.LIMIT, f"{who} answers with more than {limit} bytes")
    return bytes(data)


@contextmanager
def ask(
    url: Url, headers: Mapping[str, str], *, body: bytes | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Answer]:
    """Sends a GET, or a POST where there is a body.

    Args:
        url: To whom.
        headers: With what.
        body: A form.
        tls: By what an https server is known; None: by what this computer trusts.

    Raises:
        LinkError: No answer, or one that broke off.
    """
    origin = url.origin
    connection: http.client.HTTPConnection
    if origin.scheme == "https":
        connection = http.client.HTTPSConnection(
            origin.host, origin.port, timeout=TIMEOUT_S, context=tls or ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(origin.host, origin.port, timeout=TIMEOUT_S)
    with _asked(connection, url.target, headers, body, str(origin)) as answer:
        yield answer


@contextmanager
def ask_socket(path: Path, target: str) -> Iterator[Answer]:
    """Sends a GET to a program behind a Unix socket. Raises as `ask`."""
    connection = _UnixConnection(path)
    with _asked(connection, target, {}, None, str(path)) as answer:
        yield answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PACKING_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def _asked(
    connection: http.client.HTTPConnection, target: str, headers: Mapping[str, str], body: bytes | None, who: str
) -> Iterator[Answer]:
    with closing(connection), ExitStack() as opened:
        try:
            connection.request("GET" if body is None else "POST", target, body=body, headers=dict(headers))
            answer = opened.enter_context(closing(connection.getresponse()))
        except ssl.SSLCertVerificationError as error:
            hint = "name the CA of the registry in SSL_CERT_FILE"
            raise LinkError(f"{who} is not known to be who it says: {error}", retryable=False, hint=hint) from error
        except ssl.SSLError as error:
            if error.reason not in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                raise LinkError(f"no answer from {who}: {error}") from error
            hint = "if it has no TLS, and the way to it is safe: registry+http:..."
            raise LinkError(f"{who} does not speak TLS", retryable=False, hint=hint) from error
        except OSError as error:
            raise LinkError(f"no answer from {who}: {error}") from error
        except http.client.HTTPException as error:  # not its words: they quote what came
            raise LinkError(f"{who} does not answer in HTTP ({type(error).__name__})") from error
        told: dict[str, str] = {}
        for name, value in answer.getheaders():  # one that comes several times is a list: there may be two ways in
            known = told.get(name.lower())
            told[name.lower()] = value if known is None else f"{known}, {value}"
        yield Answer(answer.status, told, _pieces(answer, who))


def _pieces(answer: http.client.HTTPResponse, who: str) -> Chunks:
    while True:
        try:
            piece = answer.read1(bounds.CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise LinkError(f"the answer of {who} broke off ({type(error).__name__})") from error
        if not piece:
            # A body that ends before the length that was said is no error to this library.
            if answer.length:
                raise LinkError(f"the answer of {who} broke off {answer.length} bytes before its end")
            return
        yield piece
