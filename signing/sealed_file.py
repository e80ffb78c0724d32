"""Bytes under a passphrase, for files that hold secrets and travel: scrypt and an AEAD, as `signing.keyfile` does it.

Two lines of text: a JSON header (`SealedHeader`), and base64 of ChaCha20-Poly1305 over the content. The exact bytes of
the header's line are the associated data.
"""

import base64
import binascii
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.wire import Message, decode, encode
from signing.keyfile import PASSPHRASE_MIN, SCRYPT_N, SCRYPT_P, SCRYPT_R, RandomBytes

SEALED_BYTES: Final = 16 * limits.MIB  # keys and settings: a few kilobytes


class SealedHeader(Message):
    """The first line; as `signing.keyfile.KeyFileHeader`."""

    format: Literal["headland-sealed 1"]
    kdf: Literal["scrypt"]
    n: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 20)]
    r: Literal[8]
    p: Literal[1]
    salt: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    cipher: Literal["chacha20-poly1305"]
    nonce: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{24}\Z")]


def seal(content: bytes, passphrase: str, random: RandomBytes, n: int = SCRYPT_N) -> bytes:
    """Seals bytes.

    Args:
        content: Held in memory.
        passphrase: At least 8 characters.
        random: `os.urandom`.
        n: scrypt's cost, a power of two; tests take less.

    Raises:
        StateError: The passphrase is too short.
    """
    if len(passphrase) < PASSPHRASE_MIN:
        raise StateError(f"a passphrase of {len(passphrase)} characters; at least {PASSPHRASE_MIN} are needed")
    header = SealedHeader(
        format="headland-sealed 1",
        kdf="scrypt",
        n=n,
        r=SCRYPT_R,
        p=SCRYPT_P,
        salt=random(16).hex(),
        cipher="chacha20-poly1305",
        nonce=random(12).hex(),
    )
    line = encode(header)
    sealed = _cipher(header, passphrase).encrypt(bytes.fromhex(header.nonce), content, line)
    return line + b"\n" + base64.b64encode(sealed) + b"\n"


def unseal(data: bytes, passphrase: str, what: str) -> bytes:
    """Opens what `seal` made.

    Args:
        data: From outside.
        passphrase: As given then.
        what: For messages.

    Raises:
        StateError: The passphrase is wrong, or the bytes were changed: no one can tell which.
        Refused: `METADATA`, `LENGTH`: not a sealed file.
    """
    if len(data) > 2 * SEALED_BYTES:
        raise Refused(Reason.LENGTH, f"{what}: too long for a sealed file")
    line, _, rest = data.partition(b"\n")
    header = decode(line, SealedHeader, limit=limits.KIB)
    if header.n & (header.n - 1):
        raise Refused(Reason.METADATA, f"{what}: not a sealed file: scrypt's n is a power of two")
    try:
        sealed = base64.b64decode(rest.strip(), validate=True)
        return _cipher(header, passphrase).decrypt(bytes.fromhex(header.nonce), sealed, line)
    except binascii.Error as error:
        raise Refused(Reason.METADATA, f"{what}: not a sealed file: {error}") from error
    except InvalidTag as error:
        raise StateError(f"{what}: the passphrase is wrong, or the file was changed") from error


def _cipher(header: SealedHeader, passphrase: str) -> ChaCha20Poly1305:
    kdf = Scrypt(salt=bytes.fromhex(header.salt), length=32, n=header.n, r=header.r, p=header.p)
    return ChaCha20Poly1305(kdf.derive(passphrase.encode("utf-8")))
