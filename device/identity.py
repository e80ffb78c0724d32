"""Who this machine is: its key, its certificate, the CA and server it was enrolled with, and its TLS.

The key is made here and never leaves. Certificate dates are not judged in the handshake: a machine whose clock is dead
must still reach the one who can tell it the time, and the server judges dates for itself.

`ca.pem` and `cert.pem` are replaced one after the other, each whole, and the key stays: whatever a power cut leaves,
key and certificate fit, and the server is verified through links whether the old CA is trusted or the new.
"""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from device.damage import make_way
from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import DeviceId, ProductName
from protocol.messages import RenewAnswer
from protocol.wire import Message, decode
from signing import anchors, durable

STRANGER: Final = "unknown"  # device and product of a machine that lost its enrolment
NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python does not name


class Enrolment(Message):
    """`identity/enrolment.json`: written last, so that whoever finds it finds all the rest."""

    server: str  # https://host:port
    device: DeviceId
    product: ProductName


@dataclass(frozen=True)
class Identity:
    """An enrolled machine.

    Args:
        folder: `STATE/identity`.
        enrolment: Device, product and server.
        key: The device's, P-256; it signs batches and speaks TLS.
    """

    folder: Path
    enrolment: Enrolment
    key: ec.EllipticCurvePrivateKey

    def tls(self) -> ssl.SSLContext:
        """A context for mutual TLS 1.3 with the server; blocking, reads the certificate that holds now.

        Raises:
            StateError: A certificate is missing or damaged.
        """
        try:
            context = private_context(cafile=self.folder / "ca.pem")
            context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        except OSError as error:  # ssl.SSLError is one
            raise StateError(
                f"ca.pem or cert.pem in {self.folder} is damaged: {error}",
                hint="put the file back from a copy, or enrol with a fresh state folder and a new token",
            ) from error
        return context

    def bare_tls(self) -> ssl.SSLContext:
        """A context that shows no certificate, for where ours may be what the server turns away; blocking.

        Raises:
            StateError: `ca.pem` is missing or damaged.
        """
        return private_context(cadata=anchors.render(self.anchors()))

    def certificate(self) -> x509.Certificate:
        """The leaf that holds now.

        Raises:
            StateError: `cert.pem` is missing or damaged.
        """
        try:
            return x509.load_pem_x509_certificate((self.folder / "cert.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise StateError(f"cert.pem in {self.folder} is damaged: {error}") from error

    def anchors(self) -> anchors.Certificates:
        """The CAs that this machine trusts, newest first.

        Raises:
            StateError: `ca.pem` is missing or damaged.
        """
        try:
            return anchors.read((self.folder / "ca.pem").read_text(encoding="ascii"))
        except (OSError, UnicodeError, Refused) as error:
            raise StateError(f"ca.pem in {self.folder} is damaged: {error}") from error

    def take(self, answer: RenewAnswer) -> str:
        """Takes a renewed leaf, and the CAs that follow those trusted here; durable on return.

        Returns:
            Why the CAs stay as they are although others were offered; empty when all is well.

        Raises:
            Refused: `CERTIFICATE`: the leaf is not for this device and key, or no CA that is trusted here vouches for
                who signed it. Nothing was changed.
            StateError: The disk takes it not; what was there still holds.
        """
        trusted = self.anchors()
        links = anchors.read(answer.links_pem) if answer.links_pem else ()
        check_leaf(answer.certificate_pem, anchors.vouched(trusted, links), self.enrolment.device, self.key)
        complaint = ""
        try:
            followed = anchors.follow(trusted, anchors.read(answer.trust_pem), links) if answer.trust_pem else trusted
        except Refused as error:
            # The leaf is good all the same, and the server it came from was verified: stay with the CAs that we know.
            followed, complaint = trusted, error.message
        try:
            if followed != trusted:
                durable.write(self.folder / "ca.pem", anchors.render(followed).encode(), mode=0o644)
            durable.write(self.folder / "cert.pem", answer.certificate_pem.encode(), mode=0o644)
        except OSError as error:
            raise StateError(f"the renewed certificate cannot be kept: {error}") from error
        return complaint


def load(folder: Path) -> Identity:
    """Reads an identity; blocking.

    Raises:
        StateError: The machine is not enrolled, or its files cannot be read.
    """
    try:
        return Identity(folder, read_enrolment(folder), load_key(folder / "key.pem"))
    except FileNotFoundError as error:
        raise StateError(
            f"this machine is not enrolled: {error.filename} is missing",
            hint="headland-device enroll --state DIR --token TOKEN",
        ) from error
    except OSError as error:
        raise StateError(f"the identity in {folder} cannot be read: {error}") from error


def load_or_stranger(folder: Path, *, has_run: bool) -> tuple[Identity, str]:
    """Reads an identity; where it is damaged, makes do with what can be read, for a machine that keeps to itself.

    Args:
        folder: `STATE/identity`.
        has_run: A release was installed here once, so the machine was enrolled whatever is missing now.

    Returns:
        The identity and an empty text; or one with a key that nobody knows, and why no server may be spoken to.

    Raises:
        StateError: The machine is not enrolled.
    """
    try:
        return load(folder), ""
    except StateError as error:
        if not has_run and not (folder / "enrolment.json").exists():
            raise
        why = f"no server is spoken to: the identity is damaged or incomplete: {error.message}"
    try:
        enrolment = read_enrolment(folder)
    except (OSError, StateError):
        enrolment = Enrolment(server="https://unknown.invalid", device=STRANGER, product=STRANGER)
    return Identity(folder, enrolment, ec.generate_private_key(ec.SECP256R1())), why


def private_context(*, cafile: Path | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """TLS 1.3 towards servers of the given CA and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=cafile, cadata=cadata)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    return context


def closed_context() -> ssl.SSLContext:
    """TLS that trusts nobody, for a machine that cannot show who it is: every handshake fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def unverified_context() -> ssl.SSLContext:
    """TLS to whoever answers: good only for fetching what is then held against a hash that is known already."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def read_enrolment(folder: Path) -> Enrolment:
    """As whom this machine was enrolled, whatever became of its key.

    Raises:
        OSError: The file is missing, or cannot be read.
        StateError: It is damaged.
    """
    path = folder / "enrolment.json"
    try:
        return decode(path.read_bytes(), Enrolment, limit=limits.ENROL_BYTES)
    except Refused as error:
        raise StateError(f"{path} is damaged: {error}") from error


def keep_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in `path`; made there, durable and readable by its owner only, when there is none.

    What lies there and holds none is kept beside it, for a person who may still read it.

    Raises:
        OSError: The disk does not give it back, or takes none.
    """
    try:
        return load_key(path)
    except FileNotFoundError:
        pass
    except StateError:
        make_way(path)
    key = ec.generate_private_key(ec.SECP256R1())
    durable.write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    return key


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Reads a private key.

    Raises:
        FileNotFoundError: There is none.
        StateError: It is no P-256 key.
    """
    data = path.read_bytes()
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise StateError(f"{path} is damaged: it holds no private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StateError(f"{path} is no P-256 key")
    return key


def make_csr(key: ec.EllipticCurvePrivateKey, device: DeviceId) -> str:
    """A certificate signing request for this key, in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode("ascii")


def lived(certificate: x509.Certificate, now: datetime) -> float:
    """The share of a certificate's life that is over; below 0 before it begins, 1 and more when it has expired."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (now - begins) / (ends - begins)


def check_leaf(
    pem: str, authorities: Iterable[x509.Certificate], device: DeviceId, key: ec.EllipticCurvePrivateKey
) -> None:
    """Holds a certificate that the server issued against who and what it was asked for.

    Args:
        pem: The certificate.
        authorities: The CAs that are trusted, and those that they vouch for.
        device: Whom it should name.
        key: Whose it should be.

    Raises:
        Refused: `CERTIFICATE`.
    """
    try:
        leaf = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise Refused(Reason.CERTIFICATE, f"the server gave no certificate: {error}") from error
    if not anchors.issued_by(leaf, authorities):
        raise Refused(Reason.CERTIFICATE, "the certificate is not of the enrolled CA, nor of one that follows it")
    names = [str(name.value) for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device]:
        raise Refused(Reason.CERTIFICATE, f"a certificate for {names} where {device} asked")
    if leaf.public_key() != key.public_key():
        raise Refused(Reason.CERTIFICATE, "a certificate for another key than this machine's")
