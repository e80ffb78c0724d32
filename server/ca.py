"""The private CA: it says which key is which machine, and it makes the server's own certificate.

ECDSA P-256 throughout. A device's certificate has the device id as its common name and is good for nothing but being a
TLS client. Dates are judged by the application (DESIGN.md section 3), so a machine that slept can renew.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest, is_name
from signing import durable

CA_LIFETIME: Final = timedelta(days=10 * 365)  # unless the settings say otherwise; `server.authorities` replaces it
SERVER_LIFETIME: Final = timedelta(days=825)
BACKDATED: Final = timedelta(days=1)  # clocks that run a little behind
CA_BACKDATED: Final = timedelta(days=365)  # people's tools judge its dates: a clock that was ahead locks none out


@dataclass(frozen=True)
class ClientCertificate:
    """What the application asks of a certificate that the handshake already traced to our CA."""

    device: str
    public_key: bytes  # DER SubjectPublicKeyInfo
    not_before: datetime
    not_after: datetime
    issuer: str = ""  # key id of the CA that signed it, hexadecimal
    pem: str = ""

    @property
    def issued(self) -> datetime:
        """When our CA signed it."""
        return self.not_before + BACKDATED


class Authority:
    """Signs certificates with the CA's key, which it holds in memory.

    Args:
        certificate: The CA's own.
        key: Its private key.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def make(cls, now: datetime, lifetime: timedelta = CA_LIFETIME) -> "Authority":
        """A new CA with a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return cls(_authority(key.public_key(), ski, key, now - CA_BACKDATED, now + lifetime), key)

    def vouch_for(self, newer: "Authority") -> x509.Certificate:
        """A link: the key of `newer` signed by this one's, with the dates of `newer`."""
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        theirs = newer.certificate
        key = theirs.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return _authority(key, own, self._key, theirs.not_valid_before_utc, theirs.not_valid_after_utc)

    def private_pem(self) -> bytes:
        """Its key, unencrypted."""
        return private_pem(self._key)

    def pem(self) -> str:
        """The CA's certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def sha256(self) -> str:
        """Of the certificate's DER: what an enrolment token carries."""
        return digest(self.certificate.public_bytes(Encoding.DER))

    def issue_server(self, key: ec.EllipticCurvePrivateKey, names: Sequence[str], now: datetime) -> str:
        """A certificate for the server's listeners.

        Args:
            key: The listener's.
            names: DNS names and IP addresses.
            now: Aware.
        """
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in dict.fromkeys(names)])
        return self._issue(
            "headland-server",
            key.public_key(),
            now,
            SERVER_LIFETIME,
            purpose=ExtendedKeyUsageOID.SERVER_AUTH,
            alternatives=alternatives,
        )

    def issue_device(self, device: str, csr: x509.CertificateSigningRequest, now: datetime, days: int) -> str:
        """A client certificate for a machine. Of the request only the key is taken.

        Args:
            device: Its id, already judged to be who asks.
            csr: From `read_csr`.
            now: Aware.
            days: Its lifetime.
        """
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        lifetime = timedelta(days=days)
        return self._issue(device, key, now, lifetime, purpose=ExtendedKeyUsageOID.CLIENT_AUTH, alternatives=None)

    def _issue(
        self,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        now: datetime,
        lifetime: timedelta,
        *,
        purpose: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> str:
        if self.certificate.not_valid_after_utc <= now:
            # It was replaced long before, unless the clock jumped; the next round of `server.certificates` does it.
            raise StateError("the server's CA has expired and is being replaced; try again in a minute")
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            # Nothing outlives its CA: when that has expired, so has all that it signed.
            .not_valid_after(min(now + lifetime, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def read_csr(pem: str, device: str) -> x509.CertificateSigningRequest:
    """Reads a signing request and holds it to the policy: P-256, self-signed, naming the device that asks.

    Raises:
        Refused: `CERTIFICATE`.
    """
    if len(pem) > limits.ENROL_BYTES:
        raise Refused(Reason.CERTIFICATE, "a signing request of absurd length")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        signed = csr.is_signature_valid
        key = csr.public_key()
    except (ValueError, TypeError, InvalidSignature, UnicodeError) as error:
        raise Refused(Reason.CERTIFICATE, f"not a signing request: {error}") from error
    if not signed:
        raise Refused(Reason.CERTIFICATE, "a signing request that its own key did not sign")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused(Reason.CERTIFICATE, "a device's key is ECDSA P-256")
    if [name.value for name in names] != [device]:
        raise Refused(Reason.CERTIFICATE, f"the signing request does not name {device}, and nobody else")
    return csr


def named_device(pem: str) -> str:
    """Whom a signing request names. Whether it may is `read_csr`'s question.

    Raises:
        Refused: `CERTIFICATE`: nobody.
    """
    try:
        names = x509.load_pem_x509_csr(pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, UnicodeError) as error:
        raise Refused(Reason.CERTIFICATE, f"not a signing request: {error}") from error
    device = str(names[0].value) if len(names) == 1 else ""
    if not is_name(device):
        raise Refused(Reason.CERTIFICATE, "the signing request names no device")
    return device


def read_client(der: bytes) -> ClientCertificate:
    """The facts of a client certificate that the handshake traced to our CA.

    Raises:
        Refused: `CERTIFICATE`: it names no device.
    """
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    device = str(names[0].value) if len(names) == 1 else ""
    if not is_name(device):
        raise Refused(Reason.CERTIFICATE, "the certificate names no device")
    return ClientCertificate(
        device=device,
        public_key=certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        pem=certificate.public_bytes(Encoding.PEM).decode(),
        issuer=issuer_of(certificate),
    )


def key_id(certificate: x509.Certificate) -> str:
    """The id of a CA's key, hexadecimal: what certificates that it signed name."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def issuer_of(certificate: x509.Certificate) -> str:
    """The id of the key that signed a certificate, as the certificate says; empty when it does not."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    return (found or b"").hex()


def csr_public_key(csr: x509.CertificateSigningRequest) -> bytes:
    """The key of a signing request, as DER `SubjectPublicKeyInfo`."""
    return csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def issuer_of_pem(pem: str) -> str:
    """As `issuer_of`."""
    return issuer_of(x509.load_pem_x509_certificate(pem.encode()))


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """An unencrypted private key: the process must start without a person. Its file is 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def ensure_server_certificate(
    authority: Authority, folder: Path, names: Sequence[str], now: datetime, links: str = ""
) -> None:
    """Makes `server.pem` and `server.key` unless those there still serve: same names, same CA, time left.

    Args:
        authority: Signs it.
        folder: Where both lie.
        names: DNS names and IP addresses.
        now: Aware.
        links: PEM of the links from older CAs to this one: shown to whoever trusts only an older one.
    """
    certificate = folder / "server.pem"
    if certificate.exists() and (folder / "server.key").exists() and _serves(authority, certificate, names, now):
        return
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.issue_server(key, names, now)
    # A cut between the two leaves a certificate beside another key: `_serves` sees it and both are made anew.
    durable.write(folder / "server.key", private_pem(key))
    durable.write(certificate, (pem + links).encode(), mode=0o644)


def is_due(begins: datetime, ends: datetime, now: datetime) -> bool:
    """Whether a certificate should be renewed: half its life is over. One of the future is too: a clock was wrong."""
    return now < begins or now - begins >= (ends - begins) / 2


def certificate_expiry(pem: str) -> datetime:
    """When a certificate ends."""
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc


def _serves(authority: Authority, path: Path, names: Sequence[str], now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = load_pem_private_key((path.parent / "server.key").read_bytes(), password=None)
        certificate.verify_directly_issued_by(authority.certificate)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and key.public_key() == certificate.public_key()
        and list(held) == [_alternative(name) for name in dict.fromkeys(names)]
        and not is_due(certificate.not_valid_before_utc, certificate.not_valid_after_utc, now)
    )


def _authority(
    key: ec.EllipticCurvePublicKey,
    signer_id: x509.SubjectKeyIdentifier,
    signer: ec.EllipticCurvePrivateKey,
    begins: datetime,
    ends: datetime,
) -> x509.Certificate:
    """A CA's certificate, signed by itself or by the one before.

    All generations have one name. To OpenSSL a link is then "self-issued" and does not count against the path length of
    0, which keeps every key that we sign from becoming a CA.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Headland devices")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer_id), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
