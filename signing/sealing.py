"""Sealing to a server's key what travels by stick: nobody who finds the stick reads a result (ATTACKS.md U3).

HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. Device and kind of what is
sealed stand in HPKE's `info`: the library binds no other data, and what is bound there fails in the same way. Who
sealed it is nobody's claim here; that is what the signature inside says.
"""

from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from protocol.errors import Reason, Refused
from protocol.kits import SEAL_CONTEXT, PieceKind

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def seal(public_key: str, data: bytes, device: str, kind: PieceKind) -> bytes:
    """Seals bytes to a key: 48 bytes more than they were, and other ones each time.

    Args:
        public_key: X25519, 32 raw bytes in hexadecimal.
        data: What only the holder of the private key is to read.
        device: Who sends it.
        kind: Of the piece.

    Raises:
        Refused: `METADATA`: the key is one that no secret can be agreed on with.
    """
    try:
        return _SUITE.encrypt(data, X25519PublicKey.from_public_bytes(bytes.fromhex(public_key)), _info(device, kind))
    except ValueError as error:
        raise Refused(Reason.METADATA, f"the sealing key {public_key[:12]} is no X25519 key") from error


def open_sealed(private_keys: Iterable[X25519PrivateKey], data: bytes, device: str, kind: PieceKind) -> bytes:
    """Opens what `seal` made, with the first of the keys that fits.

    Raises:
        Refused: `BATCH`: it is sealed to another key, is of another device or kind, or was changed.
    """
    for key in private_keys:
        try:
            return _SUITE.decrypt(data, key, _info(device, kind))
        except (InvalidTag, ValueError):
            continue
    raise Refused(Reason.BATCH, f"a {kind} of {device} that none of this server's keys opens")


def public_half(key: X25519PrivateKey) -> str:
    """The public key as it is written everywhere: 32 raw bytes in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def _info(device: str, kind: PieceKind) -> bytes:
    return b"\0".join((SEAL_CONTEXT, device.encode(), kind.encode()))
