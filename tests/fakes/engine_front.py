"""Something in front of an engine's socket, or instead of an engine: it hears every request, and may answer itself."""

import contextlib
import json
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LIMIT_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Heard:
    """One request: the path without the version of the interface, which stands by itself."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    version: str = ""

    @property
    def tree(self) -> Any:
        return json.loads(self.body)


Answer = tuple[int, Any]
"""Status, and what is sent: bytes, or what becomes JSON. Or, in place of the status, `-1`: the line breaks."""
Answerer = Callable[[Heard], "Answer | Heard | None"]
"""An answer, or another request that is sent on instead; None sends on what was asked."""


class EngineFront:
    """See the module.

    Args:
        answer: What it says itself.
        behind: The engine's socket; None: there is none, and what is not answered is not found.
    """

    def __init__(self, answer: Answerer, behind: Path | None = None) -> None:
        self.heard: list[Heard] = []
        self.answer = answer
        self.behind = behind
        self._folder = Path(tempfile.mkdtemp(prefix="headland-front-"))
        self.socket = self._folder / "engine.sock"
        front = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    front._serve(self.request)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128  # as many as an engine's: a socket of this kind refuses what does not fit

        self._server = Server(str(self.socket), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        shutil.rmtree(self._folder)

    def asked(self, path: str) -> list[Heard]:
        """The requests whose path begins so."""
        return [one for one in self.heard if one.path.startswith(path)]

    def _serve(self, line: socket.socket) -> None:
        with line.makefile("rb") as stream:
            request = _read(stream)
            self.heard.append(request)
            said = self.answer(request)
            if isinstance(said, Heard) or said is None:
                if self.behind is None:
                    said = (200, b"") if request.path.startswith("/events") else (404, {"message": "not here"})
                else:
                    self._send_on(said or request, line)
                    return
            status, content = said
            if status < 0:
                return
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            kind = "application/x-tar" if isinstance(content, bytes) else "application/json"
            head = (f"HTTP/1.1 {status} so", f"Content-Type: {kind}", "Transfer-Encoding: chunked", "Connection: close")
            line.sendall("\r\n".join((*head, "", "")).encode())
            if request.path.startswith("/events"):
                line.recv(1)  # it stands open until whoever listens goes
                return
            line.sendall((f"{len(body):x}\r\n".encode() + body + b"\r\n" if body else b"") + b"0\r\n\r\n")

    def _send_on(self, request: Heard, line: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as behind:
            behind.connect(str(self.behind))
            kept = {name: value for name, value in request.headers.items() if name not in _OF_THE_LINE}
            headers = {**kept, "connection": "close", "content-length": str(len(request.body))}
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            behind.sendall(f"{request.method} {request.path} HTTP/1.1\r\n{head}\r\n".encode() + request.body)
            while piece := behind.recv(1 << 16):
                line.sendall(piece)


_OF_THE_LINE: Final = ("connection", "transfer-encoding", "content-length")


def _read(stream: Any) -> Heard:
    method, target, _ = stream.readline().decode().split(" ", 2)
    headers = {}
    while text := stream.readline().decode().strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    parts = target.split("/", 2)
    version = parts[1].removeprefix("v") if len(parts) > 2 and parts[1].startswith("v1.") else ""
    return Heard(method, f"/{parts[2]}" if version else target, headers, _body(stream, headers), version)


def _body(stream: Any, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return bytes(stream.read(int(headers.get("content-length", "0"))))
    parts = []
    while length := int(stream.readline(), 16):
        parts.append(stream.read(length))
        stream.readline()
        assert sum(map(len, parts)) < LIMIT_BYTES
    stream.readline()
    return b"".join(parts)


@contextmanager
def front(answer: Answerer, behind: Path | None = None) -> Iterator[EngineFront]:
    """One for the length of a block."""
    made = EngineFront(answer, behind)
    try:
        yield made
    finally:
        made.close()


VERSION: Final = {"ApiVersion": "1.41", "Version": "20.10.0", "Components": [{"Name": "Engine"}]}
INFO: Final = {"DockerRootDir": "/engine", "DriverStatus": [["Backing Filesystem", "extfs"]]}


def scripted(answers: dict[tuple[str, str], Any]) -> Answerer:
    """An engine of fixed answers, by method and beginning of the path; a function is called with the request."""
    table = {("GET", "/version"): VERSION, ("GET", "/info"): INFO, **answers}

    def answer(heard: Heard) -> Answer | None:
        for (method, path), content in sorted(table.items(), key=lambda one: -len(one[0][1])):
            if method == heard.method and heard.path.startswith(path):
                said = content(heard) if callable(content) else content
                return said if isinstance(said, tuple) else (200, said)
        return None

    return answer
