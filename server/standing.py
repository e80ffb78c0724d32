"""What a machine may do with the certificate that it shows. Pure: the handshake only proved that the key is its own.

The handshake looks at no date and takes certificates of every CA that there ever was, for what is turned away there
looks to a machine like a dropped link. Which key is which machine is the catalog's word; the CA's word alone lets
nobody in, so an old CA's stolen key makes nobody a machine.
"""

from collections.abc import Sequence
from datetime import datetime

from protocol.errors import Reason, Refused
from protocol.messages import TrustMark
from server.authorities import Authorities
from server.ca import ClientCertificate, is_due


def only_renewal(
    certificate: ClientCertificate, known: tuple[bytes, bool] | None, authorities: Authorities, now: datetime
) -> str:
    """Judges a request.

    Args:
        certificate: That the connection was made with.
        known: The machine's key by the catalog, and whether it was revoked; None when it was never enrolled.
        authorities: The CAs.
        now: Aware.

    Returns:
        Why it may renew its certificate and nothing else; empty when everything is open to it.

    Raises:
        Refused: `CERTIFICATE`: unknown, or another key is that machine's now; `REVOKED`.
    """
    if known is None:
        raise Refused(Reason.CERTIFICATE, f"no device {certificate.device} is enrolled here")
    key, revoked = known
    if revoked:
        raise Refused(Reason.REVOKED, f"{certificate.device} was revoked")
    if key != certificate.public_key:
        raise Refused(Reason.CERTIFICATE, f"{certificate.device} was enrolled again with another key")
    if certificate.not_after <= now:
        return f"the certificate of {certificate.device} expired at {certificate.not_after:%Y-%m-%d}"
    if authorities.standing(certificate.issuer) == "ended":
        return f"the certificate of {certificate.device} is of a CA that has ended"
    return ""


def should_renew(
    certificate: ClientCertificate, trusts: Sequence[TrustMark], authorities: Authorities, now: datetime
) -> bool:
    """Whether a machine is told to renew: half the life is over, or it is behind a rotation of the CA.

    Args:
        certificate: That it shows.
        trusts: Marks of the CAs that it trusts, as it says.
        authorities: The CAs.
        now: Aware.
    """
    return (
        is_due(certificate.not_before, certificate.not_after, now)
        or authorities.standing(certificate.issuer) != "current"
        or authorities.marks[0] not in trusts
        or not set(trusts) <= set(authorities.marks)
    )
