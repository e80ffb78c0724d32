"""Asks a running agent over its desk's socket. Blocking: for commands."""

import http.client
import socket
from pathlib import Path
from typing import Any, Final, TypeVar

from device.desk.routes import error_of
from device.desk.socket import short
from protocol import limits
from protocol.errors import LinkError, StateError
from protocol.wire import decode, encode

ANSWER_BYTES: Final = 4 * limits.MIB
ANSWER_S: Final = 180.0  # a slow stick is read before it is answered
T = TypeVar("T")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("headland", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        with short(self._path) as name:
            self.sock.connect(name)


def ask(path: Path, method: str, route: str, kind: type[T], body: Any = None) -> T:
    """One request.

    Args:
        path: Of the socket.
        method: Of HTTP.
        route: Such as `/api/kits`.
        kind: Of the answer.
        body: What msgspec can encode; only for POST.

    Raises:
        StateError: No agent runs here, or it says so.
        Refused: The agent says so.
        LinkError: Likewise; also when it takes too long.
    """
    try:
        content = None if method == "GET" else encode(body if body is not None else {})
    except UnicodeEncodeError as error:
        raise StateError(f"{error.object!r} is no UTF-8: the agent cannot be told of it") from error
    connection = _Connection(path)
    try:
        connection.request(method, route, body=content, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read(ANSWER_BYTES + 1)
    except PermissionError as error:
        raise StateError(
            f"{path} is not yours to ask", hint="run the command as the agent's user, or as root"
        ) from error
    except TimeoutError as error:
        raise LinkError(
            f"the agent took longer than {ANSWER_S:.0f} s: a stick keeps it busy, or the disk does",
            hint="headland-device status shows what it does; pull out a stick that does not answer",
        ) from error
    except BlockingIOError as error:  # more wait at the socket than it lets in line
        raise LinkError("the agent is busy: many ask it at once", hint="try again in a moment") from error
    except (OSError, http.client.HTTPException) as error:
        raise StateError(
            f"no agent answers at {path}", hint="kits are read by the running agent: headland-device run starts it"
        ) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise error_of(answer.status, data)
    return decode(data, kind, limit=ANSWER_BYTES)
