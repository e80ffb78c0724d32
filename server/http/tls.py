"""TLS for both doors: 1.3 and nothing older."""

import ssl
from pathlib import Path

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; Python has no name for it


def device_context(tls: Path, ca: Path) -> ssl.SSLContext:
    """For machines: a client certificate of our CA or none, its dates left to the application.

    A machine whose certificate ran out in the barn must be told so and be able to renew.
    """
    context = operator_context(tls)
    context.load_verify_locations(ca)
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
