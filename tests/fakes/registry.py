"""A registry in a thread: the standard API over blobs in memory, with what a hostile or a weak one does.

with serving(Blobs()) as registry:
    registry.tag("app", "1.0", [image])
    f"registry:{registry.host}/app:1.0"
"""

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.fakes.image_files import Blobs, BuiltImage, sha256

Answer = tuple[int, dict[str, str], bytes]


class Registry:
    """What it holds, what it was asked, and how it misbehaves.

    Args:
        host: With the port on which it listens.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.blobs = Blobs()
        self.tags: dict[str, str] = {}
        self.asked: list[tuple[str, str, str]] = []  # path, Authorization, Range
        self.auth = ""  # "basic", "bearer"
        self.user, self.password = "alice", "correct horse"
        self.realm = f"http://{self.host}/token"
        self.before: Callable[[str, dict[str, str]], Answer | None] = lambda path, headers: None
        self.cut_after: list[int] = []  # bytes of a blob's answer, once each
        self.ranges = True

    def tag(self, name: str, tag: str, images: list[BuiltImage], form: str = "+gzip") -> str:
        """Puts an image there; its digest."""
        digest: str = self.blobs.add_images(images, form)["digest"]
        self.tags[f"{name}:{tag}"] = digest
        return digest

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(target)
        self.asked.append((target, headers.get("authorization", ""), headers.get("range", "")))
        odd = self.before(target, headers)
        if odd is not None:
            return odd
        if parts.path == "/token":
            return self._token(parse_qs(body.decode() or parts.query), headers, method)
        if self.auth and not self._is_known(headers.get("authorization", "")):
            return 401, {"WWW-Authenticate": self._challenge()}, b"{}"
        _, _, rest = parts.path.partition("/v2/")
        name, kind, reference = rest.rsplit("/", 2)
        digest = self.tags.get(f"{name}:{reference}", reference).removeprefix("sha256:")
        data = self.blobs.get(digest)
        if data is None:
            return 404, {}, b"{}"
        if kind == "manifests":
            return 200, {"Docker-Content-Digest": f"sha256:{digest}", "Content-Type": "application/json"}, data
        span = headers.get("range", "")
        if span and self.ranges:
            return 206, {}, data[int(span.removeprefix("bytes=").rstrip("-")) :]
        return 200, {}, data

    def _challenge(self) -> str:
        if self.auth == "basic":
            return 'Basic realm="here"'
        return f'Bearer realm="{self.realm}",service="here",scope="repository:app:pull,push"'

    def _is_known(self, header: str) -> bool:
        return header == (self._basic() if self.auth == "basic" else "Bearer the-token")

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def _token(self, asked: dict[str, list[str]], headers: dict[str, str], method: str) -> Answer:
        known = headers.get("authorization") == self._basic() or asked.get("refresh_token") == ["the-identity"]
        if not known or asked["scope"] != ["repository:app:pull"]:
            return 401, {}, b"{}"
        key = "access_token" if method == "POST" else "token"
        return 200, {}, json.dumps({key: "the-token"}).encode()


class _Handler(BaseHTTPRequestHandler):
    registry: ClassVar[Registry]

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answered, data = self.registry.answer(self.command, self.path, headers, self.rfile.read(length))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **answered}.items():
            self.send_header(name, value)
        self.end_headers()
        if "/blobs/" in self.path and status in (200, 206) and self.registry.cut_after:
            data = data[: self.registry.cut_after.pop(0)]
            self.close_connection = True
        with suppress(ConnectionError):  # who had enough hangs up
            self.wfile.write(data)

    do_POST = do_GET  # noqa: N815  (the name that http.server looks for)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[Registry]:
    """A registry on a free port of an address of this computer."""

    class Handler(_Handler):
        pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

    with Server((address, 0), Handler) as server:
        host = f"[{address}]" if ":" in address else address
        Handler.registry = Registry(f"{host}:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Handler.registry
        finally:
            server.shutdown()
            thread.join()


__all__ = ["Registry", "serving", "sha256"]
