"""Enrolment with the real command's code, against a server that gives one token to one key and never to another.

That the server granted a key is a promise: a machine that has lost this key is locked out until a person helps.
"""

import asyncio
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device import identity
from device.enrol import enrol
from device.layout import Layout
from device.link import Answer
from device.outbox import schema
from device.settings import load as load_settings
from device.state_db import StateDb
from protocol import limits
from protocol.ids import digest
from protocol.messages import EnrolAnswer, EnrolRequest, ErrorAnswer, TokenContent
from protocol.wire import decode, encode
from server import authorities
from server.ca import csr_public_key, read_csr
from server.tokens import render_token
from tests.simulation.workload import Promises, leftovers

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DEVICE, PRODUCT = "tractor-1", "pest-detector"
ROOTS = {"image": '{"image": "root"}', "director": '{"director": "root"}'}
DAYS = 60


class Server:
    """Answers enrolment.

    Args:
        world: Holds its CA.
        granted: Hash of the key that the token was used by before; empty when it was not.
        promise: Told of what is granted.
    """

    def __init__(self, world: Path, granted: str = "", promise: Promises | None = None) -> None:
        self.authority = authorities.load(world).current
        self.granted = granted
        self.promise = promise

    def token(self) -> str:
        return render_token(
            TokenContent(
                server="https://localhost:1",
                secret="s3cr3t",
                device=DEVICE,
                product=PRODUCT,
                ca_sha256=self.authority.sha256(),
                image_root_sha256=digest(ROOTS["image"].encode()),
                director_root_sha256=digest(ROOTS["director"].encode()),
            )
        )

    def open_door(self, url: str, tls: ssl.SSLContext) -> "Server":
        return self

    async def get(self, path, *, limit):
        return Answer(200, self.authority.pem().encode())

    async def post(self, path, body, *, limit):
        request = decode(body, EnrolRequest, limit=limits.ENROL_BYTES)
        csr = read_csr(request.csr_pem, DEVICE)
        key = digest(csr_public_key(csr))
        if self.granted not in ("", key):
            return Answer(403, encode(ErrorAnswer(error="this token was used before", reason="token")))
        self.granted = key
        if self.promise is not None:
            self.promise(f"granted {key}")
        answer = EnrolAnswer(
            device=DEVICE,
            product=PRODUCT,
            certificate_pem=self.authority.issue_device(DEVICE, csr, NOW, DAYS),
            ca_pem=self.authority.pem(),
            image_root=ROOTS["image"],
            director_root=ROOTS["director"],
        )
        return Answer(200, encode(answer))

    async def close(self):
        pass


class Enrolling:
    """One machine with one token."""

    name = "enrolment"

    def prepare(self, home: Path) -> None:
        authorities.found(home / "world", NOW)
        (home / "state").mkdir(mode=0o700)

    def act(self, home: Path, promise: Promises) -> None:
        self.enrol(home, Server(home / "world", promise=promise))
        promise(f"enrolled {DEVICE}")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        if f"enrolled {DEVICE}" in promised:  # nobody types the command again
            identity.load(home / "state/identity")
        else:
            self.enrol(home, Server(home / "world", _granted(promised)))

    def check(self, home: Path, promised: Sequence[str]) -> None:
        layout = Layout(home / "state")
        me = identity.load(layout.identity)
        assert (me.enrolment.device, me.enrolment.product) == (DEVICE, PRODUCT)
        assert _granted(promised) in ("", _name(me.key.public_key())), "the key that was granted is lost"
        assert me.certificate().public_key() == me.key.public_key()
        assert me.tls().get_ca_certs()
        assert (layout.identity / "key.pem").stat().st_mode & 0o777 == 0o600
        for name, root in ROOTS.items():
            assert (layout.identity / f"{name}.root.json").read_text() == root
        load_settings(layout.settings)
        StateDb(layout.state_db).close()
        schema.open_reader(layout.outbox_db).close()
        assert leftovers(layout.state) == []
        assert list(layout.identity.glob("*.csr.pem")) == [], "a request stays behind"

    def enrol(self, home: Path, server: Server) -> None:
        layout = Layout(home / "state")
        asyncio.run(enrol(layout, server.token(), frames=Path("/frames"), open_door=server.open_door))


def workloads() -> list[Enrolling]:
    return [Enrolling()]


def _granted(promised: Sequence[str]) -> str:
    found = {line.split()[1] for line in promised if line.startswith("granted ")}
    assert len(found) <= 1, "one token, two keys"
    return found.pop() if found else ""


def _name(key: ec.EllipticCurvePublicKey) -> str:
    """As the server knows it."""
    return digest(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
