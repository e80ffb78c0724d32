"""Signers by URI: where a manager's private key lives, and how it is opened. One door to securesystemslib's signers.

A URI names the place: `headland-key:FILE` (ours, encrypted), `hsm:...` (PKCS#11), `awskms:`, `gcpkms:`, `azurekms:`,
`hv:` (Vault), or any other scheme that securesystemslib knows. Secrets come from a handler, never from the URI.
"""

from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.signer import HSMSigner, Key, SecretsHandler, Signer, SSlibKey

from protocol.errors import HeadlandError, StateError
from signing import keyfile

keyfile.register()

FILE_SCHEMES: Final = (keyfile.SCHEME, "file2")


def resolve(uri: str, base: Path) -> str:
    """The URI with a relative file made absolute under `base`, so that a workspace can be moved."""
    scheme, _, rest = uri.partition(":")
    if scheme in FILE_SCHEMES and not Path(rest).is_absolute():
        return f"{scheme}:{base / rest}"
    return uri


def open_signer(uri: str, public_key: Key, secrets: SecretsHandler) -> Signer:
    """Opens a private key.

    Args:
        uri: Where it is; files with an absolute path.
        public_key: Its public half, as registered: a signer with another key is refused.
        secrets: Asked for `passphrase` (files) or `pin` (PKCS#11) when needed.

    Raises:
        StateError: The key cannot be reached or opened; the message says why.
    """
    try:
        return Signer.from_priv_key_uri(uri, public_key, secrets)
    except HeadlandError:
        raise
    except Exception as error:
        # Each back end raises what it likes, as securesystemslib documents; none of it is a bug of ours.
        raise StateError(f"cannot open the key {uri.partition('?')[0]}: {_text(error)}") from error


def import_public(uri: str, public_pem: Path | None, secrets: SecretsHandler) -> tuple[str, Key]:
    """The public half of a key that lives elsewhere, to be registered.

    Args:
        uri: Where the private key is. `hsm:` and files are asked; others need `public_pem`.
        public_pem: The public key in PEM, as key management services export it.
        secrets: For tokens that show nothing without a PIN.

    Returns:
        The URI to keep (a token's label added) and the public key.

    Raises:
        StateError: Nothing there, or the scheme needs `public_pem`.
    """
    scheme, _, rest = uri.partition(":")
    try:
        if public_pem is not None:
            public = load_pem_public_key(public_pem.read_bytes())
            return uri, SSlibKey.from_crypto(public)
        if scheme == keyfile.SCHEME:
            return uri, keyfile.public_key_of(Path(rest))
        if scheme == "file2":
            private = load_pem_private_key(Path(rest).read_bytes(), None)
            return uri, SSlibKey.from_crypto(private.public_key())
        if scheme == "hsm":
            return _import_hsm(rest, secrets)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(f"cannot read the public half of {uri.partition('?')[0]}: {_text(error)}") from error
    raise StateError(
        f"the public half of a {scheme}: key cannot be asked for",
        hint="export it as PEM from the key service and add --public-key FILE",
    )


def _import_hsm(rest: str, secrets: SecretsHandler) -> tuple[str, Key]:
    number, _, query = rest.partition("?")
    return HSMSigner.import_(int(number) if number else None, dict(parse_qsl(query)).get("label"), secrets)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
