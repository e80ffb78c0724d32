"""Metadata over mutual TLS: a dead clock keeps nobody from fetching, a stranger is not talked to."""

import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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

from device import identity
from protocol.errors import LinkError
from signing.trust_store import HttpSource


class Authority:
    """A private CA that writes certificates as PEM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
        self.pem = folder / "ca.pem"
        self.pem.write_bytes(self._make(self.name, self.key, datetime(2020, 1, 1, tzinfo=UTC), ca=True))

    def issue(self, name: str, begins: datetime) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(self._make(subject, key, begins, ca=False))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, private

    def _make(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, *, ca: bool) -> bytes:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(days=36500 if ca else 365))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca, key_cert_sign=ca, encipher_only=False, decipher_only=False, **usage
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@contextmanager
def tls_server(authority: Authority, begins: datetime) -> Iterator[tuple[str, list[str]]]:
    names: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            peer: Any = self.connection.getpeercert()  # type: ignore[attr-defined]  # it is a TLS socket
            names.append(dict(pair[0] for pair in peer["subject"])["commonName"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.pem)
    context.load_cert_chain(*authority.issue("server", begins))
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}/", names
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def enrolled(folder: Path, authority: Authority) -> identity.Identity:
    folder.mkdir()
    certificate, key = authority.issue("tractor-1", datetime.now(UTC) - timedelta(days=1))
    (folder / "cert.pem").write_bytes(certificate.read_bytes())
    (folder / "key.pem").write_bytes(key.read_bytes())
    (folder / "ca.pem").write_bytes(authority.pem.read_bytes())
    (folder / "enrolment.json").write_text(json.dumps({"server": "https://x", "device": "tractor-1", "product": "p"}))
    return identity.load(folder)


@pytest.mark.parametrize("begins", [datetime(2021, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)])
def test_a_certificate_outside_its_dates_is_no_hindrance_to_a_machine_with_a_dead_clock(
    tmp_path: Path, begins: datetime
) -> None:
    authority = Authority(tmp_path / "ca")
    me = enrolled(tmp_path / "identity", authority)
    with tls_server(authority, begins) as (url, names):
        source = HttpSource(url, me.tls())
        assert source.read("timestamp.json", 10) == b"{}"
        source.close()
    assert names == ["tractor-1"]


def test_a_server_of_another_authority_is_not_talked_to(tmp_path: Path) -> None:
    me = enrolled(tmp_path / "identity", Authority(tmp_path / "ca"))
    other = Authority(tmp_path / "other")
    with (
        tls_server(other, datetime.now(UTC) - timedelta(days=1)) as (url, names),
        pytest.raises(LinkError),
    ):
        HttpSource(url, me.tls()).read("timestamp.json", 10)
    assert names == []
