"""By what an engine's life is known: a line to it that is never used, and breaks when it ends.

No interface tells when an engine was started: process ids are hidden by socket activation, and Docker keeps no time of
its start. So the line stands open, as a listener for events of a kind that does not come, and is looked at with each
view; no timer of the engine ends it.
"""

import contextlib
import secrets
import socket
import threading
from pathlib import Path
from typing import Final

from device.containers.engine import EngineAwayError

_LISTEN: Final = (
    b"GET /events?filters=%7B%22type%22%3A%5B%22daemon%22%5D%2C%22event%22%3A%5B%22reload%22%5D%7D HTTP/1.1\r\n"
    b"Host: engine\r\n\r\n"
)
_HEAD_BYTES: Final = 16384  # of an answer; the engine's has a few hundred


class LifeLine:
    """See the module. For any thread.

    Args:
        path: The engine's socket.
        timeout_s: For the engine's answer.
    """

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._life = ""

    def life(self) -> str:
        """The name of the life that the engine lives now: a new one if it ended since this was last asked.

        Raises:
            EngineAwayError: It does not answer.
        """
        with self._lock:
            if not self._holds():
                self._line = self._open()
                self._life = secrets.token_hex(8)
            return self._life

    def close(self) -> None:
        """Lets go of the line."""
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None

    def _holds(self) -> bool:
        if self._line is None:
            return False
        try:
            while self._line.recv(_HEAD_BYTES):
                pass  # somebody made the engine read its settings anew: it lives
        except BlockingIOError:
            return True
        except OSError:
            pass  # as good as its end
        self._line.close()
        self._line = None
        return False

    def _open(self) -> socket.socket:
        try:
            with contextlib.ExitStack() as undo:
                line = undo.enter_context(socket.socket(socket.AF_UNIX))
                line.settimeout(self._timeout_s)
                line.connect(str(self._path))
                line.sendall(_LISTEN)
                head = _read_head(line)
                line.setblocking(False)
                undo.pop_all()
        except OSError as error:
            raise EngineAwayError(f"the engine does not answer: {error}") from error
        if b" 200 " not in head.partition(b"\r\n")[0]:
            line.close()
            raise EngineAwayError("the engine ended, or does not tell of events")
        return line


def _read_head(line: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES and (more := line.recv(_HEAD_BYTES)):
        head += more
    return head
