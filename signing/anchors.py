"""Following a CA to its successors: which certificates may be trusted next, by the word of those that are trusted now.

A CA's end is prepared by its own key: before the key goes, it signs the new CA's key. That certificate is a *link*
(RFC 4210 calls it "new with old"), and links are kept for ever, so that whoever slept through any number of rotations
can follow them all. Only signatures count here, never dates: whoever follows may have no clock. Pure.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.errors import Reason, Refused
from protocol.ids import Digest
from protocol.messages import TrustMark

CERTIFICATES_MAX: Final = 64
"""Rotations in the life of a fleet, and then some; each costs a signature to check."""

PEM_BYTES: Final = 4096
"""Of one certificate of ours, generously."""

Certificates = tuple[x509.Certificate, ...]


def read(pem: str) -> Certificates:
    """The certificates of a PEM bundle, in its order.

    Raises:
        Refused: `CERTIFICATE`: none, too many, or not certificates of CAs with P-256 keys.
    """
    if len(pem) > CERTIFICATES_MAX * PEM_BYTES:
        raise Refused(Reason.CERTIFICATE, f"CA certificates of {len(pem)} bytes")
    try:
        found = tuple(x509.load_pem_x509_certificates(pem.encode()))
    except ValueError as error:
        raise Refused(Reason.CERTIFICATE, f"the server's CA is not a certificate: {error}") from error
    if len(found) > CERTIFICATES_MAX:
        raise Refused(Reason.CERTIFICATE, f"{len(found)} CA certificates, at most {CERTIFICATES_MAX} are read")
    for certificate in found:
        _check_authority(certificate)
    return found


def render(certificates: Iterable[x509.Certificate]) -> str:
    """A PEM bundle."""
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def sha256(certificate: x509.Certificate) -> Digest:
    """Of the DER: what an enrolment token carries."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def marks(anchors: Iterable[x509.Certificate]) -> tuple[TrustMark, ...]:
    """How a machine says which CAs it trusts. Tells them apart; nothing is proven by it."""
    return tuple(sha256(certificate)[:16] for certificate in anchors)


def vouched(anchors: Sequence[x509.Certificate], links: Sequence[x509.Certificate]) -> Certificates:
    """The anchors, and of the links those that an anchor's key vouches for, directly or through other links."""
    known = list(anchors)
    waiting = list(links)
    while True:
        found = [link for link in waiting if any(_issued(link, by) for by in known)]
        if not found:
            return tuple(known)
        known += found
        waiting = [link for link in waiting if link not in found]


def follow(
    anchors: Sequence[x509.Certificate], offered: Sequence[x509.Certificate], links: Sequence[x509.Certificate]
) -> Certificates:
    """What is to be trusted from now on.

    Args:
        anchors: Trusted now, newest first.
        offered: To be trusted instead, newest first, each signed by itself.
        links: Who vouches for them.

    Returns:
        The newest of `offered`, and of the rest those that a trusted key vouches for: who came after a rotation needs
        no CA from before it.

    Raises:
        Refused: `CERTIFICATE`: no key that is trusted vouches for the newest, or it would go back.
    """
    if not offered:
        raise Refused(Reason.CERTIFICATE, "no CA is offered")
    for certificate in offered:
        if not _issued(certificate, certificate):
            raise Refused(Reason.CERTIFICATE, f"the CA {sha256(certificate)[:16]} did not sign itself")
    keys = {_key(certificate) for certificate in vouched(anchors, links)}
    # An older one that is trusted still must not take the place of the newest: its key may be what was stolen.
    if _key(offered[0]) not in {_key(certificate) for certificate in vouched(anchors[:1], links)}:
        why = (
            "is older than the one trusted here" if _key(offered[0]) in keys else "is vouched for by none trusted here"
        )
        raise Refused(Reason.CERTIFICATE, f"the CA {sha256(offered[0])[:16]} {why}")
    return tuple(certificate for certificate in dict.fromkeys(offered) if _key(certificate) in keys)


def issued_by(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> bool:
    """Whether one of them signed it."""
    return any(_issued(certificate, authority) for authority in authorities)


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _key(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.subject.public_bytes(), spki


def _check_authority(certificate: x509.Certificate) -> None:
    try:
        key = certificate.public_key()
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType) as error:
        raise Refused(Reason.CERTIFICATE, f"the server's CA is no CA: {error}") from error
    if not constraints.ca or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused(Reason.CERTIFICATE, "the server's CA is no CA with a P-256 key")
