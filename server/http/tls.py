"""TLS for both doors: 1.3 and nothing older, and certificates that change while the doors stay open."""

import ssl
from pathlib import Path
from typing import Any

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; Python has no name for it


class Front:
    """A listener's context that hands each new connection to the context that holds now.

    A context that listens cannot be changed safely (another thread may be shaking hands with it) and forgets no CA; so
    new ones are made beside it. OpenSSL asks at every handshake, whether or not the client names a server.

    Args:
        context: Holds until the first `renew`.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self._now = context
        context.sni_callback = self._hand_over

    def renew(self, context: ssl.SSLContext) -> None:
        """From the next handshake on. Connections that stand go on."""
        self._now = context

    def _hand_over(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._now


def device_context(tls: Path, authorities: str) -> ssl.SSLContext:
    """For machines: a client certificate of a CA of ours or none, its dates left to the application.

    A machine whose certificate ran out in the barn must be told so and be able to renew.

    Args:
        tls: The folder of the server's certificate.
        authorities: PEM of every CA that ever signed for machines.
    """
    context = operator_context(tls)
    context.load_verify_locations(cadata=authorities)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_flags = ssl.VerifyFlags(int(context.verify_flags) | NO_CHECK_TIME)
    return context


def operator_context(tls: Path) -> ssl.SSLContext:
    """For people: the server's certificate only, they show a token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(tls / "server.pem", tls / "server.key")
    return context
