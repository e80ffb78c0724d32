"""HTTP as the local socket speaks it: one short GET a connection, answered and closed.

One request a connection makes the limits on connections the limits on requests. Nothing but the first line means
anything here, so that there is little to get wrong.
"""

import asyncio
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlsplit

HEAD_BYTES: Final = 8192
HEAD_S: Final = 5.0
_END: Final = b"\r\n\r\n"
_FIELDS: Final = 8
_FIRST: Final = re.compile(rb"(?P<method>[A-Z]{1,16}) (?P<target>/[!-~]*) HTTP/1\.[0-9]\Z")


class TurnedAwayError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: Of HTTP.
        message: For who wrote the program.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """A GET.

    Args:
        path: Without the query.
        query: Each parameter once.
    """

    path: str
    query: dict[str, str]


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Reads the one request of a connection; None when it ends or is silent.

    Args:
        reader: Whose limit is `HEAD_BYTES`.

    Raises:
        TurnedAwayError: It is none that is answered here.
    """
    try:
        head = await asyncio.wait_for(reader.readuntil(_END), HEAD_S)
    except asyncio.LimitOverrunError as error:
        raise TurnedAwayError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request of more than {HEAD_BYTES} bytes"
        ) from error
    except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        return None
    return parse_head(head)


def parse_head(head: bytes) -> Request:
    """The request in a head with its end.

    Raises:
        TurnedAwayError: It is none that is answered here.
    """
    lines = head.removesuffix(_END).split(b"\r\n")
    first = _FIRST.match(lines[0])
    if first is None:
        raise TurnedAwayError(HTTPStatus.BAD_REQUEST, "no HTTP request")
    if first["method"] != b"GET":
        raise TurnedAwayError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET: nothing can be changed here")
    try:
        url = urlsplit(first["target"].decode("ascii"))
        fields = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query), max_num_fields=_FIELDS)
    except ValueError as error:
        raise TurnedAwayError(HTTPStatus.BAD_REQUEST, "a query that cannot be read") from error
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"transfer-encoding" or (name.lower() == b"content-length" and value.strip() != b"0"):
            raise TurnedAwayError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request has no body here")
    query = dict(fields)
    if len(query) != len(fields):
        raise TurnedAwayError(HTTPStatus.BAD_REQUEST, "a parameter twice")
    return Request(url.path, query)


def head_of(status: HTTPStatus, media_type: str, length_bytes: int | None = None) -> bytes:
    """The head of an answer.

    Args:
        status: Of HTTP.
        media_type: Of the body.
        length_bytes: Of the body; None: it ends with the connection.
    """
    length = "" if length_bytes is None else f"Content-Length: {length_bytes}\r\n"
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {media_type}\r\n{length}"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode("ascii")
