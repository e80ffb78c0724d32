"""Enrolment: nothing of the network is believed but what the token's hashes name, and a cut costs nothing."""

import base64
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from device import identity
from device.enrol import enrol, read_token
from device.layout import Layout
from device.link import Answer
from device.settings import load as load_settings
from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import digest
from protocol.messages import EnrolAnswer, EnrolRequest, ErrorAnswer, TokenContent
from protocol.wire import decode, encode
from signing import anchors, durable

NOW = datetime(2026, 6, 1, tzinfo=UTC)
IMAGE_ROOT, DIRECTOR_ROOT = '{"image": "root"}', '{"director": "root"}'


class Authority:
    """A CA that issues what it is asked for."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._build("ca", self.key.public_key(), self.key)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(self, name: str, key) -> str:
        return self._build(name, key, self.key).public_bytes(Encoding.PEM).decode()

    def _build(self, name, key, signer) -> x509.Certificate:
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .sign(signer, hashes.SHA256())
        )


def key_of(csr_pem: str) -> bytes:
    key = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Server:
    """Answers enrolment; one token, bound to the first key that shows it."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.shown_ca = self.authority.pem
        self.image_root = IMAGE_ROOT
        self.device = "tractor-1"
        self.certificate: str | None = None
        self.requests: list[EnrolRequest] = []
        self.contexts: list = []
        self.cuts = 0
        self.cut_answers = 0

    def token(self, **changes: str) -> str:
        content = TokenContent(
            server="https://localhost:1",
            secret="s3cr3t",
            device="tractor-1",
            product="pest-detector",
            ca_sha256=anchors.sha256(self.authority.certificate),
            image_root_sha256=digest(IMAGE_ROOT.encode()),
            director_root_sha256=digest(DIRECTOR_ROOT.encode()),
        )
        fields = {name: getattr(content, name) for name in content.__struct_fields__} | changes
        return "HL1." + base64.urlsafe_b64encode(encode(TokenContent(**fields))).decode().rstrip("=")

    def open_door(self, url, tls):
        self.contexts.append((url, tls))
        return self

    async def get(self, path, *, limit):
        if self.cuts:
            self.cuts -= 1
            raise LinkError("cut")
        assert path == "/v1/ca"
        return Answer(200, self.shown_ca.encode())

    async def post(self, path, body, *, limit):
        assert path == "/v1/enrol"
        request = decode(body, EnrolRequest, limit=limits.ENROL_BYTES)
        if self.requests and key_of(self.requests[0].csr_pem) != key_of(request.csr_pem):
            return Answer(403, encode(ErrorAnswer(error="this token was used before", reason="token")))
        self.requests.append(request)
        csr = x509.load_pem_x509_csr(request.csr_pem.encode())
        answer = EnrolAnswer(
            device=self.device,
            product="pest-detector",
            certificate_pem=self.certificate or self.authority.issue("tractor-1", csr.public_key()),
            ca_pem=self.authority.pem,
            image_root=self.image_root,
            director_root=DIRECTOR_ROOT,
        )
        if self.cut_answers:
            self.cut_answers -= 1
            raise LinkError("cut")
        return Answer(200, encode(answer))

    async def close(self):
        pass


async def nap(_: float) -> None:
    pass


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "machine")


async def enrolled(layout, server, token=None):
    return await enrol(layout, token or server.token(), open_door=server.open_door, sleep=nap, random=lambda: 0.5)


async def test_a_token_becomes_an_identity_that_only_its_owner_reads(layout, server):
    done = await enrolled(layout, server)
    assert (done.device, done.product, done.server) == ("tractor-1", "pest-detector", "https://localhost:1")
    who = identity.load(layout.identity)
    assert who.certificate().public_key() == who.key.public_key()
    assert stat.S_IMODE((layout.identity / "key.pem").stat().st_mode) == 0o600
    assert (layout.identity / "image.root.json").read_text() == IMAGE_ROOT
    assert (layout.identity / "director.root.json").read_text() == DIRECTOR_ROOT
    assert load_settings(layout.settings).inference.frames == str(layout.state / "frames")
    assert layout.state_db.exists()
    assert layout.outbox_db.exists()
    assert not list(layout.identity.glob("*.csr.pem"))


async def test_a_token_that_was_broken_into_lines_is_read(layout, server):
    token = server.token()
    assert (await enrolled(layout, server, f"  {token[:40]}\n   {token[40:]}\n")).device == "tractor-1"


@pytest.mark.parametrize("text", ["", "HL1.", "HL1.!!!", "HL2.abcd", "HL1.e30", "HL1." + "A" * 5000])
def test_what_is_no_token_is_refused_with_a_hint(text):
    with pytest.raises(Refused) as caught:
        read_token(text)
    assert caught.value.reason is Reason.TOKEN
    assert caught.value.hint


async def test_another_ca_than_the_tokens_is_refused_before_the_token_is_shown(layout, server):
    server.shown_ca = Authority().pem
    with pytest.raises(Refused) as caught:
        await enrolled(layout, server)
    assert caught.value.reason is Reason.CERTIFICATE
    assert server.requests == [], "an impostor never sees the token"
    assert not (layout.identity / "enrolment.json").exists()


async def test_a_ca_that_is_no_certificate_is_refused(layout, server):
    server.shown_ca = "<html>"
    with pytest.raises(Refused):
        await enrolled(layout, server)


@pytest.mark.parametrize("repository", ["image", "director"])
async def test_another_first_root_than_the_tokens_is_refused(layout, server, repository):
    with pytest.raises(Refused) as caught:
        await enrolled(layout, server, server.token(**{f"{repository}_root_sha256": "0" * 64}))
    assert caught.value.reason is Reason.HASH
    assert not (layout.identity / "enrolment.json").exists()


async def test_a_certificate_for_another_key_name_or_from_another_ca_is_refused(layout, server):
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    for pem in (server.authority.issue("tractor-1", other), Authority().issue("tractor-1", other), "nonsense"):
        server.certificate = pem
        with pytest.raises(Refused) as caught:
            await enrolled(layout, server)
        assert caught.value.reason is Reason.CERTIFICATE
    key = identity.load_key(layout.identity / "key.pem").public_key()
    server.certificate = server.authority.issue("tractor-2", key)
    with pytest.raises(Refused):
        await enrolled(layout, server)
    server.certificate = None
    server.device = "tractor-2"
    with pytest.raises(Refused) as caught:
        await enrolled(layout, server)
    assert caught.value.reason is Reason.WRONG_DEVICE


async def test_an_answer_that_got_lost_is_asked_for_again_with_the_same_request(layout, server):
    server.cuts = 2
    server.cut_answers = 1
    await enrolled(layout, server)
    assert len({request.csr_pem for request in server.requests}) == 1


async def test_a_used_token_is_refused_in_words(layout, server, tmp_path):
    await enrolled(layout, server)
    with pytest.raises(Refused, match="used before"):
        await enrolled(Layout(tmp_path / "another"), server)


async def test_enrolling_again_changes_nothing_and_another_machine_is_refused(layout, server):
    await enrolled(layout, server)
    key = (layout.identity / "key.pem").read_bytes()
    assert (await enrolled(layout, server)).device == "tractor-1"
    assert (layout.identity / "key.pem").read_bytes() == key
    assert len(server.requests) == 1
    with pytest.raises(StateError, match="already tractor-1"):
        await enrolled(layout, server, server.token(device="tractor-2"))


@pytest.mark.parametrize("lost", ["cert.pem", "ca.pem", "image.root.json"])
async def test_a_piece_of_the_identity_that_the_disk_lost_comes_again_and_the_key_stays(layout, server, lost):
    await enrolled(layout, server)
    whole = {path.name: path.read_bytes() for path in layout.identity.iterdir() if path.name != "cert.pem"}
    (layout.identity / lost).unlink()
    with pytest.raises(StateError, match="already tractor-1"):
        await enrolled(layout, server, server.token(device="tractor-2"))
    await enrolled(layout, server)
    assert {path.name: path.read_bytes() for path in layout.identity.iterdir() if path.name != "cert.pem"} == whole
    identity.load(layout.identity).tls()


async def test_a_machine_whose_key_is_damaged_enrols_anew_with_another_key_and_as_itself_only(layout, server):
    await enrolled(layout, server)
    key = layout.identity / "key.pem"
    key.write_bytes(b"-----BEGIN")
    server.requests.clear()  # of a token that was used
    with pytest.raises(StateError, match="already tractor-1"):
        await enrolled(layout, server, server.token(device="tractor-2"))
    server.cut_answers = 1
    await enrolled(layout, server)
    identity.load(layout.identity).tls()
    assert len({key_of(request.csr_pem) for request in server.requests}) == 1
    assert (layout.identity / "key.pem.set-aside").read_bytes() == b"-----BEGIN"


async def test_a_request_that_the_disk_damaged_or_that_is_of_another_key_is_made_anew(layout, server):
    server.cut_answers = 10
    with pytest.raises(LinkError):
        await enrolled(layout, server)
    (layout.identity / "key.pem").unlink()
    server.requests.clear()
    with pytest.raises(LinkError):
        await enrolled(layout, server)
    (layout.identity / "tractor-1.csr.pem").write_bytes(b"\xff")
    server.cut_answers = 0
    await enrolled(layout, server)
    assert len({key_of(request.csr_pem) for request in server.requests}) == 1


async def test_settings_that_a_person_wrote_before_are_kept(layout, server):
    layout.state.mkdir()
    layout.settings.write_text("[outbox]\nbudget_bytes = 2000000\n")
    await enrolled(layout, server)
    assert load_settings(layout.settings).outbox.budget_bytes == 2_000_000


class PowerCut(BaseException):
    """Ends the process, as far as a test can."""


async def test_a_power_cut_at_any_disk_effect_is_mended_by_enrolling_again(tmp_path, monkeypatch):
    number = 0
    while True:
        server, layout = Server(), Layout(tmp_path / f"machine-{number}")
        count = 0

        def before(effect: str, path, number: int = number) -> None:
            nonlocal count
            count += 1
            if count == number + 1:
                raise PowerCut

        monkeypatch.setattr(durable.DISK, "before", before)
        try:
            await enrolled(layout, server)
            break
        except PowerCut:
            monkeypatch.setattr(durable.DISK, "before", lambda effect, path: None)
            assert (await enrolled(layout, server)).device == "tractor-1"
            assert identity.load(layout.identity).tls() is not None
            assert len({request.csr_pem for request in server.requests}) == 1
        number += 1
    assert number > 20


async def test_a_server_that_does_not_answer_is_named_with_what_to_look_at(layout, server):
    server.cuts = 99
    with pytest.raises(LinkError, match=r"no answer from https://.*: cut") as raised:
        await enrolled(layout, server)
    assert "--server" in raised.value.hint


async def test_what_is_no_address_of_a_server_is_refused_before_anything_is_kept(layout, server):
    with pytest.raises(StateError, match="'nonsense' is no address"):
        await enrol(layout, server.token(), server="nonsense", open_door=server.open_door, sleep=nap)
    assert not layout.state.exists()


async def test_a_damaged_token_is_called_damaged(layout, server):
    with pytest.raises(Refused, match="the token is damaged"):
        await enrolled(layout, server, "HL1.AAAA")
