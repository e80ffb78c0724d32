"""Enrolment and renewal: which key is which machine. Issuing the token is a person's approval; the rest is checked.

A token is used once. The same key may ask again with it while it lasts, for the answer to a good request can get lost
in the field; another key is turned away.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from cryptography.x509 import CertificateSigningRequest

from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.messages import EnrolAnswer, EnrolRequest, RenewAnswer, RenewRequest, TokenContent
from server import restored
from server.authorities import Authorities
from server.ca import ClientCertificate, csr_public_key, read_csr
from server.clock import NowMs, as_datetime
from server.publish import first_root
from server.settings import Lifetimes
from server.storage.catalog import Catalog, Session
from server.storage.records import Device, EnrolmentToken
from server.tokens import new_secret, read_token, render_token, secret_sha256
from signing import anchors


class Enrolment:
    """Makes tokens and answers machines that come with them.

    Args:
        catalog: Where machines and tokens are kept.
        authorities: The CAs that hold now.
        now_ms: The clock.
        lifetimes: Of tokens and certificates.
    """

    def __init__(
        self, catalog: Catalog, authorities: Callable[[], Authorities], now_ms: NowMs, lifetimes: Lifetimes
    ) -> None:
        self._catalog = catalog
        self._authorities = authorities
        self._now_ms = now_ms
        self._lifetimes = lifetimes

    def make_token(self, device: str, product: str, groups: Sequence[str], server_url: str, who: str) -> str:
        """A token that lets `device` enrol once. Shown once: only its hash is kept. Blocks.

        Raises:
            StateError: Nothing was published yet, so there are no first roots to put trust in.
        """
        now_ms = self._now_ms()
        secret = new_secret()
        with self._catalog.write() as session:
            content = TokenContent(
                server=server_url,
                secret=secret,
                device=device,
                product=product,
                ca_sha256=self._authorities().current.sha256(),
                image_root_sha256=digest(first_root(session, "image")),
                director_root_sha256=digest(first_root(session, "director")),
            )
            expires_ms = now_ms + int(self._lifetimes.token_hours * 3_600_000)
            token = EnrolmentToken(device, product, tuple(dict.fromkeys(groups)), expires_ms, None)
            session.tokens.add_enrolment(secret_sha256(secret), token, now_ms)
            session.events.add(now_ms, "token-made", who=who, device=device)
        return render_token(content)

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """Gives a machine its certificate. Blocks.

        Raises:
            Refused: `TOKEN` or `CERTIFICATE`.
        """
        try:
            return self._enrol(request)
        except Refused as error:
            with self._catalog.write() as session:
                session.events.add(
                    self._now_ms(),
                    "enrolment-refused",
                    device=request.device,
                    reason=error.reason.value,
                    detail=error.message,
                )
            raise

    def renew(self, device: str, request: RenewRequest) -> RenewAnswer:
        """A new certificate for the key that the machine already has. Blocks.

        The request is signed by that key, and what it gains is of use to that key only.

        Raises:
            Refused: `CERTIFICATE`: unknown, or not a request of this machine's present key; `REVOKED`.
        """
        now_ms = self._now_ms()
        csr = read_csr(request.csr_pem, device)
        held = self._authorities()
        with self._catalog.write() as session:
            kept = session.devices.get(device)
            if kept is None or csr_public_key(csr) != kept.public_key:
                raise Refused(Reason.CERTIFICATE, "a renewal keeps the key; for a new key, enrol anew")
            if kept.revoked_ms is not None:
                raise Refused(Reason.REVOKED, f"{device} was revoked")
            pem = self._issue(held, device, csr, now_ms)
            session.devices.set_certificate(device, pem)
            session.events.add(now_ms, "renewed", device=device)
        return RenewAnswer(certificate_pem=pem, trust_pem=held.trusted_pem, links_pem=held.links_pem)

    def forgot(self, certificate: ClientCertificate) -> bool:
        """Whether this is a machine that the catalog forgot: it was enrolled, or enrolled anew, after the backup that
        the server was restored from. Its certificate is our CA's and was issued in the lost time. Blocks.

        Args:
            certificate: The handshake traced it to our CA; the machine has shown that it holds the key.
        """
        if self._authorities().standing(certificate.issuer) == "ended":
            return False  # its key may be what ended it: here the CA's word would count
        with self._catalog.read() as session:
            return _forgotten(session, certificate)

    def take_back(self, certificate: ClientCertificate, product: str) -> None:
        """Takes a forgotten machine back. Its certificate proves who it is, and nothing else: a person looks at it
        before anything is assigned to it. Others are none of its business. Blocks.

        Args:
            certificate: As for `forgot`.
            product: That it says it follows.
        """
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            if not _forgotten(session, certificate):
                return
            kept = session.devices.get(certificate.device)
            what = "enrolled" if kept is None else "enrolled anew"
            why = f"{what} after the backup that this server was restored from"
            session.devices.enrol(
                Device(
                    id=certificate.device,
                    product=product,
                    groups=() if kept is None else kept.groups,
                    public_key=certificate.public_key,
                    certificate_pem=certificate.pem,
                    enrolled_ms=_ms(certificate.issued),
                    returned=why,
                    object_version=0 if kept is None else kept.object_version,
                    token_counter=-1 if kept is None else -abs(kept.token_counter) - 1,
                )
            )
            session.events.add(now_ms, "returned", device=certificate.device, what=product, detail=why)

    def _enrol(self, request: EnrolRequest) -> EnrolAnswer:
        now_ms = self._now_ms()
        content = read_token(request.token)
        csr = read_csr(request.csr_pem, request.device)
        key = csr_public_key(csr)
        hashed = secret_sha256(content.secret)
        held = self._authorities()
        with self._catalog.write() as session:
            token = session.tokens.enrolment(hashed)
            # What the token says of itself is the caller's word; the catalog's row is ours.
            if token is None:
                raise Refused(Reason.TOKEN, "this token was never given")
            if token.device != request.device:
                raise Refused(Reason.TOKEN, "this token is for another device")
            if token.expires_ms <= now_ms:
                raise Refused(Reason.TOKEN, "this token has expired")
            if token.used_by is not None and token.used_by != key:
                raise Refused(Reason.TOKEN, "this token was used before")
            kept = session.devices.get(request.device)
            if token.used_by is not None and kept is not None and kept.revoked_ms is not None:
                raise Refused(Reason.REVOKED, f"{request.device} was revoked")
            roots = (first_root(session, "image"), first_root(session, "director"))
            if token.used_by == key and kept is not None and kept.public_key == key:
                pem = kept.certificate_pem
            else:
                pem = self._issue(held, request.device, csr, now_ms)
                session.tokens.use_enrolment(hashed, key)
                session.devices.enrol(
                    Device(
                        id=request.device,
                        product=token.product,
                        groups=token.groups,
                        public_key=key,
                        certificate_pem=pem,
                        enrolled_ms=now_ms,
                        object_version=0 if kept is None else kept.object_version,
                        token_counter=0 if kept is None else -abs(kept.token_counter) - 1,
                    )
                )
                session.events.add(now_ms, "enrolled", device=request.device, what=token.product)
        return EnrolAnswer(
            device=request.device,
            product=token.product,
            certificate_pem=pem,
            # The token may be a day old, and the CA that it names be replaced since.
            ca_pem=anchors.render([held.of_token(content.ca_sha256)]),
            image_root=roots[0].decode(),
            director_root=roots[1].decode(),
            trust_pem=held.trusted_pem,
            links_pem=held.links_pem,
        )

    def _issue(self, held: Authorities, device: str, csr: CertificateSigningRequest, now_ms: int) -> str:
        days = self._lifetimes.device_certificate_days
        return held.current.issue_device(device, csr, as_datetime(now_ms), days)


def _forgotten(session: Session, certificate: ClientCertificate) -> bool:
    kept = session.devices.get(certificate.device)
    issued_ms = _ms(certificate.issued)
    # Of two keys the one that was enrolled later is the machine's. A renewal does not make an older one newer: the
    # unit that was stolen and replaced must not come back with what it was given before it was replaced.
    if kept is not None and (kept.public_key == certificate.public_key or issued_ms <= kept.enrolled_ms):
        return False
    return restored.may_return(session, certificate.device, issued_ms)


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
