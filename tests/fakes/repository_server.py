"""Metadata files over real HTTP on loopback, or through the `Source` port, with a list of what was asked for."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from protocol.errors import LinkError, Reason, Refused

Answer = Callable[[BaseHTTPRequestHandler], None]


class Shelf:
    """Files by name, as a `Source`. `asked` lists every request in order."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files: dict[str, bytes] = dict(files or {})
        self.statuses: dict[str, int] = {}
        self.asked: list[str] = []
        self.cut_after: int | None = None

    def read(self, name: str, limit_bytes: int) -> bytes:
        self.asked.append(name)
        if self.cut_after is not None and len(self.asked) > self.cut_after:
            raise LinkError("the link is down")
        status = self.statuses.get(name) or (200 if name in self.files else 404)
        if status != 200:
            raise LinkError(f"{name}: {status}", retryable=status >= 500, status=status)
        if len(self.files[name]) > limit_bytes:
            raise Refused(Reason.LENGTH, f"{name} is longer than {limit_bytes}")
        return self.files[name]


@contextmanager
def http_server(shelves: Mapping[str, Shelf], answers: Mapping[str, Answer] | None = None) -> Iterator[str]:
    """Serves each shelf below its prefix (`/metadata/`); gives the base URL.

    Args:
        shelves: By prefix.
        answers: By whole path: written by hand, for servers that misbehave.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # header and body in one packet: else each answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            for prefix, shelf in shelves.items():
                if self.path.startswith(prefix):
                    name = self.path.removeprefix(prefix)
                    shelf.asked.append(name)
                    found = shelf.files.get(name, shelf.files.get(unquote(name)))
                    status = shelf.statuses.get(name) or (200 if found is not None else 404)
                    return self._say(status, found if status == 200 and found is not None else b"no such file")
            if answers and self.path in answers:
                self.close_connection = True
                return answers[self.path](self)
            return self._say(404, b"")

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
