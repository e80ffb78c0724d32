"""The operator's client against a real TLS server: what it trusts, what it repeats, and what it makes of errors."""

import hashlib
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from protocol.errors import LinkError, Reason, Refused, StateError
from signing.server_client import ServerClient
from signing.workspace import ServerAccess

Answer = tuple[int, bytes, dict[str, str]]


class Server:
    """Answers with what `answers` yields, in order; remembers the requests."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.ca_pem = _certificate(folder)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.read_body()
                outer.requests.append((self.command, self.path, dict(self.headers.items()), body))
                status, data, headers = outer.answers.pop(0)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def read_body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def log_message(self, *_: object) -> None:
                pass

        for method in ("GET", "POST", "PUT", "HEAD"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def access(self) -> ServerAccess:
        return ServerAccess(url=f"https://127.0.0.1:{self.http.server_port}", ca_pem=self.ca_pem, token="t0ken")

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(5)


def _certificate(folder: Path) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headland test")])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    folder.mkdir(exist_ok=True)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(private + pem)
    return pem.decode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "tls")
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[ServerClient]:
    client = ServerClient(server.access)
    yield client
    client.close()


def said(status: int, content: Any = None, **headers: str) -> Answer:
    return status, json.dumps(content).encode() if content is not None else b"", headers


def test_a_question_carries_the_token_and_asks_for_no_encoding(server: Server, client: ServerClient) -> None:
    server.answers = [said(200, {"a": 1})]
    assert client.get("/status", dict[str, int]) == {"a": 1}
    method, path, headers, _ = server.requests[0]
    assert (method, path) == ("GET", "/api/v1/status")
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["Accept-Encoding"] == "identity"


def test_a_server_of_another_ca_is_not_spoken_to(server: Server, tmp_path: Path) -> None:
    other = _certificate(tmp_path / "other")
    client = ServerClient(ServerAccess(url=server.access.url, ca_pem=other, token="t0ken"))
    with pytest.raises(LinkError, match="not the server") as error:
        client.get("/status", dict[str, int])
    assert not error.value.retryable
    assert server.requests == [], "the token was not sent"
    client.close()


def test_a_server_that_is_not_there_is_told_with_a_hint(server: Server) -> None:
    access = server.access
    server.http.socket.close()
    client = ServerClient(access)
    with pytest.raises(LinkError) as error:
        client.post("/x", {}, dict[str, int])
    assert "headland-server" in error.value.hint
    client.close()


def test_a_busy_server_is_asked_again_but_an_order_is_given_once(server: Server, client: ServerClient) -> None:
    server.answers = [said(503, {"error": "busy"}), said(200, {"a": 1})]
    assert client.get("/status", dict[str, int]) == {"a": 1}
    server.answers = [said(503, {"error": "busy"}), said(200, {"a": 1})]
    with pytest.raises(LinkError, match="busy"):
        client.post("/tokens", {}, dict[str, int])
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "check"),
    [
        (said(401, {"error": "no"}), Refused, lambda e: e.reason == Reason.TOKEN),
        (said(403, {"error": "gone", "reason": "revoked"}), Refused, lambda e: e.reason == Reason.REVOKED),
        (said(409, {"error": "old", "reason": "rollback", "hint": "h"}), Refused, lambda e: e.hint == "h"),
        (said(404, {"error": "no such thing"}), StateError, lambda e: e.message == "no such thing"),
        (said(400, None), StateError, lambda e: "400" in e.message),
        (said(302, None, Location="https://127.0.0.1:1/"), StateError, lambda e: "302" in e.message),
        ((200, b"<html>", {}), Refused, lambda e: e.reason == Reason.METADATA),
    ],
)
def test_an_error_answer_becomes_an_error_of_ours(
    server: Server, client: ServerClient, answer: Answer, kind: type[Exception], check: Callable[[Any], bool]
) -> None:
    server.answers = [answer]
    with pytest.raises(kind) as error:
        client.get("/status", dict[str, int])
    assert check(error.value)
    assert len(server.requests) == 1


def test_a_blob_is_sent_in_pieces_with_its_length(server: Server, client: ServerClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    path = tmp_path / "blob"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    server.answers = [said(404), said(503, {"error": "busy"}), said(201), said(200)]
    sent: list[int] = []
    assert not client.has_blob(digest)
    client.put_blob(digest, path, sent.append)
    assert client.has_blob(digest)
    assert [(method, body == data) for method, _, _, body in server.requests[1:3]] == [("PUT", True), ("PUT", True)]
    assert server.requests[2][2]["Content-Length"] == str(len(data))
    assert sum(sent) >= len(data)


def test_metadata_goes_as_its_exact_text(server: Server, client: ServerClient) -> None:
    server.answers = [said(200, {})]
    client.publish({"image": {"targets.json": b'{"signed": "\xc3\xa9"}'}}, again=True)
    assert json.loads(server.requests[0][3]) == {
        "files": [{"repository": "image", "name": "targets.json", "content": '{"signed": "é"}'}],
        "again": True,
        "workspace": None,
    }


def test_the_token_never_travels_in_the_open(server: Server) -> None:
    with pytest.raises(StateError, match="no https address"):
        ServerClient(ServerAccess(url="http://farm.example:8444", ca_pem="", token="secret"))
