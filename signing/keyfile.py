"""Private keys in files: a URI scheme `headland-key:PATH` in securesystemslib's dispatch table.

securesystemslib's own `file2:` opens unencrypted keys only, and PKCS#8 encryption runs 2,048 rounds of its key
derivation. Here the private key lies inside scrypt and an AEAD, so that who finds the file must guess the passphrase
at 128 MiB of memory a guess.

The file is two lines of text: a JSON header (`KeyFileHeader`: parameters and the public key), and base64 of
ChaCha20-Poly1305 over the PKCS#8 DER of the private key. The exact bytes of the header's line are the associated data:
who changes a parameter or swaps the public key makes a file that does not open.
"""

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, SecretsHandler, SSlibKey

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.wire import Message, decode, encode
from signing import durable
from signing.online_keys import key_from_dict, key_to_dict

SCHEME: Final = "headland-key"
SCRYPT_N: Final = 1 << 17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
PASSPHRASE_MIN: Final = 8
KEY_FILE_BYTES: Final = 64 * limits.KIB

Algorithm = Literal["ed25519", "ecdsa", "ml-dsa"]
RandomBytes = Callable[[int], bytes]


class KeyFileHeader(Message):
    """The first line. `n` is bounded above, for a file must not exhaust memory; the tool itself writes `SCRYPT_N`."""

    format: Literal["headland-key 1"]
    kdf: Literal["scrypt"]
    n: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 20)]
    r: Literal[8]
    p: Literal[1]
    salt: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    cipher: Literal["chacha20-poly1305"]
    nonce: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{24}\Z")]
    public: dict[str, Any]  # as `signing.online_keys.key_to_dict`


class KeyFileSigner(CryptoSigner):
    """A signer from an encrypted key file. Asks the secrets handler for `passphrase`."""

    SCHEME = SCHEME

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> CryptoSigner:
        """Opens the file that the URI names.

        Raises:
            StateError: The passphrase is wrong, or there is nobody to ask.
            Refused: `METADATA`: not a key file, or it holds another key than `public_key`.
        """
        path = path_of(priv_key_uri)
        if secrets_handler is None:
            raise StateError(f"{path} is encrypted and there is nobody to ask for the passphrase")
        return open_key_file(path.read_bytes(), public_key, secrets_handler("passphrase"), str(path))


def register() -> None:
    """Makes `headland-key:` known to `Signer.from_priv_key_uri`; idempotent."""
    SIGNER_FOR_URI_SCHEME[SCHEME] = KeyFileSigner


def generate(algorithm: Algorithm) -> CryptoSigner:
    """A new key pair, in memory."""
    match algorithm:
        case "ed25519":
            return CryptoSigner.generate_ed25519()
        case "ecdsa":
            return CryptoSigner.generate_ecdsa()
        case "ml-dsa":
            return CryptoSigner.generate_mldsa()


def write_key_file(path: Path, signer: CryptoSigner, passphrase: str, random: RandomBytes, n: int = SCRYPT_N) -> None:
    """Writes an encrypted key file, mode 0600, durable on return; never replaces one.

    Args:
        path: Its folder must exist.
        signer: The private key to keep.
        passphrase: At least 8 characters.
        random: `os.urandom`.
        n: scrypt's cost, a power of two; tests take less than the default.

    Raises:
        StateError: The file exists, or the passphrase is too short.
    """
    if len(passphrase) < PASSPHRASE_MIN:
        raise StateError(f"a passphrase of {len(passphrase)} characters; at least {PASSPHRASE_MIN} are needed")
    header = KeyFileHeader(
        format="headland-key 1",
        kdf="scrypt",
        n=n,
        r=SCRYPT_R,
        p=SCRYPT_P,
        salt=random(16).hex(),
        cipher="chacha20-poly1305",
        nonce=random(12).hex(),
        public=key_to_dict(signer.public_key),
    )
    line = encode(header)
    plain = load_pem_private_key(signer.private_bytes, None).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )
    sealed = _cipher(header, passphrase).encrypt(bytes.fromhex(header.nonce), plain, line)
    try:
        durable.write_new(path, line + b"\n" + base64.b64encode(sealed) + b"\n")
    except FileExistsError as error:
        raise StateError(f"{path} exists already; a key is never overwritten") from error


def open_key_file(data: bytes, public_key: Key, passphrase: str, what: str) -> CryptoSigner:
    """Decrypts a key file.

    Raises:
        StateError: The passphrase is wrong, or the file was changed: no one can tell which.
        Refused: `METADATA`: not a key file, or another key than `public_key`.
    """
    header, line, sealed = _split(data, what)
    if key_to_dict(key_from_dict(header.public)) != key_to_dict(public_key) or not isinstance(public_key, SSlibKey):
        raise Refused(Reason.METADATA, f"{what} holds another key than {public_key.keyid[:12]}")
    try:
        plain = _cipher(header, passphrase).decrypt(bytes.fromhex(header.nonce), sealed, line)
    except InvalidTag as error:
        raise StateError(
            f"{what}: the passphrase is wrong, or the file was changed",
            hint="try once more; a key that is lost is replaced with `headland keys rotate --manager NAME`",
        ) from error
    key: Any = load_der_private_key(plain, None)
    return CryptoSigner(key, public_key)


def public_key_of(path: Path) -> Key:
    """The public half, from the header; the passphrase is not needed.

    Raises:
        Refused: `METADATA`: not a key file.
    """
    header, _, _ = _split(path.read_bytes(), str(path))
    return key_from_dict(header.public)


def uri_of(path: Path) -> str:
    """The URI of a key file."""
    return f"{SCHEME}:{path}"


def path_of(uri: str) -> Path:
    """The file that a `headland-key:` URI names."""
    return Path(uri.removeprefix(f"{SCHEME}:"))


def _split(data: bytes, what: str) -> tuple[KeyFileHeader, bytes, bytes]:
    if len(data) > KEY_FILE_BYTES:
        raise Refused(Reason.LENGTH, f"{what}: too long for a key file")
    line, _, rest = data.partition(b"\n")
    header = decode(line, KeyFileHeader, limit=KEY_FILE_BYTES)
    if header.n & (header.n - 1):
        raise Refused(Reason.METADATA, f"{what}: not a key file: scrypt's n is a power of two")
    try:
        return header, line, base64.b64decode(rest.strip(), validate=True)
    except binascii.Error as error:
        raise Refused(Reason.METADATA, f"{what}: not a key file: {error}") from error


def _cipher(header: KeyFileHeader, passphrase: str) -> ChaCha20Poly1305:
    kdf = Scrypt(salt=bytes.fromhex(header.salt), length=32, n=header.n, r=header.r, p=header.p)
    return ChaCha20Poly1305(kdf.derive(passphrase.encode("utf-8")))
