"""Private keys in files: a URI scheme `headland-key:PATH` in securesystemslib's dispatch table.

securesystemslib's own `file2:` opens unencrypted keys only, and PKCS#8 encryption runs 2,048 rounds of its key
derivation. Here the private key lies inside scrypt and an AEAD, so that who finds the file must guess the passphrase
at 128 MiB of memory a guess.

The file is a `signing.sealed_file` around the PKCS#8 DER of the private key; its header shows the public key.
"""

from pathlib import Path
from typing import Any, Final, Literal

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
from signing import durable
from signing.online_keys import key_from_dict, key_to_dict
from signing.sealed_file import SCRYPT_N, Format, RandomBytes, Sealed, read, seal

SCHEME: Final = "headland-key"
FORMAT: Final[Format] = "headland-key 1"
KEY_FILE_BYTES: Final = 64 * limits.KIB

Algorithm = Literal["ed25519", "ecdsa", "ml-dsa"]


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
    plain = load_pem_private_key(signer.private_bytes, None).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )
    data = seal(plain, passphrase, random, n, form=FORMAT, public=key_to_dict(signer.public_key))
    try:
        durable.write_new(path, data)
    except FileExistsError as error:
        raise StateError(f"{path} exists already; a key is never overwritten") from error


def open_key_file(
    data: bytes, public_key: Key, passphrase: str, what: str, lost: str = "`headland keys rotate --manager NAME`"
) -> CryptoSigner:
    """Decrypts a key file. `lost`: the command that replaces such a key, for whoever has forgotten the passphrase.

    Raises:
        StateError: The passphrase is wrong, or the file was changed: no one can tell which.
        Refused: `METADATA`: not a key file, or another key than `public_key`.
    """
    sealed = _read(data, what)
    if key_to_dict(key_from_dict(sealed.header.public)) != key_to_dict(public_key) or not isinstance(
        public_key, SSlibKey
    ):
        raise Refused(Reason.METADATA, f"{what} holds another key than {public_key.keyid[:12]}")
    plain = sealed.open(passphrase, hint=f"try once more; a key that is lost is replaced with {lost}")
    key: Any = load_der_private_key(plain, None)
    return CryptoSigner(key, public_key)


def public_key_of(path: Path) -> Key:
    """The public half, from the header; the passphrase is not needed.

    Raises:
        Refused: `METADATA`: not a key file.
    """
    return read_public(path.read_bytes(), str(path))


def read_public(data: bytes, what: str) -> Key:
    """As `public_key_of`, of a file's content."""
    return key_from_dict(_read(data, what).header.public)


def uri_of(path: Path) -> str:
    """The URI of a key file."""
    return f"{SCHEME}:{path}"


def path_of(uri: str) -> Path:
    """The file that a `headland-key:` URI names."""
    return Path(uri.removeprefix(f"{SCHEME}:"))


def _read(data: bytes, what: str) -> Sealed:
    return read(data, what, FORMAT, KEY_FILE_BYTES)
