"""The server's online keys: made here, public halves exported, one key a role.

Whoever steals them can withhold and delay, as the key table in ATTACKS.md says; nothing that they sign is installable.
By default each is an unencrypted Ed25519 file (0600) in `keys/`, for the process must start without a person; a
setting names any securesystemslib URI instead (an HSM, a KMS).
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SecretsHandler, Signer

from protocol.errors import HeadlandError, SettingsError
from server.settings import OnlineKey
from signing import durable
from signing.keys import open_signer
from signing.online_keys import ONLINE_ROLES, key_from_dict, render_online_keys

Keyring = Mapping[str, Mapping[str, Signer]]
"""Signers by repository and role."""


def make_keys(folder: Path, elsewhere: Mapping[str, OnlineKey]) -> None:
    """Makes a file for each online role that has none and is not configured elsewhere; never replaces one."""
    for name in _names():
        path = folder / f"{name}.pem"
        if name not in elsewhere and not path.exists():
            durable.write_new(path, CryptoSigner.generate_ed25519().private_bytes)


def load_keys(folder: Path, elsewhere: Mapping[str, OnlineKey], secrets: SecretsHandler) -> Keyring:
    """All online signers.

    Args:
        folder: With the key files.
        elsewhere: From the settings, by `REPOSITORY.ROLE`.
        secrets: Asked for the PIN of a token and the like.

    Raises:
        SettingsError: A role that does not exist, a key that is missing or cannot be reached.
    """
    for name in elsewhere:
        if name not in _names():
            raise SettingsError(f"[online_keys]: there is no role {name!r}; roles: {', '.join(_names())}")
    return {
        repository: {role: _load(folder, f"{repository}.{role}", elsewhere, secrets) for role in roles}
        for repository, roles in ONLINE_ROLES.items()
    }


def export_public(keyring: Keyring) -> bytes:
    """The content of `online-keys.json`: what managers delegate to."""
    return render_online_keys(
        {repository: {role: signer.public_key for role, signer in of.items()} for repository, of in keyring.items()}
    )


def _load(folder: Path, name: str, elsewhere: Mapping[str, OnlineKey], secrets: SecretsHandler) -> Signer:
    if name in elsewhere:
        key = elsewhere[name]
        try:
            public = key_from_dict(msgspec.json.decode(Path(key.public).read_bytes(), type=dict[str, object]))
            return open_signer(key.uri, public, secrets)
        except (OSError, msgspec.MsgspecError, HeadlandError) as error:
            raise SettingsError(f"online key {name} cannot be used: {error}") from error
    path = folder / f"{name}.pem"
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"online key {name}: {path.name} cannot be read: {error}",
            hint="`headland-server init` makes keys that are missing",
        ) from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise SettingsError(f"online key {name}: {path.name} is no Ed25519 key")
    return CryptoSigner(private)


def _names() -> list[str]:
    return [f"{repository}.{role}" for repository, roles in ONLINE_ROLES.items() for role in roles]
