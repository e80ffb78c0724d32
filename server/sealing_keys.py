"""The keys that open what machines seal for a stick to take home: one is named to the managers, all are kept.

    keys/sealing.NUMBER.PUBLIC.pem   X25519, unencrypted (0600) as the online keys; the highest number is the newest

A stick may come home a season after it was filled: a key is never destroyed here, and a new one is one file more. No
two lives of a server make the same name, so that files of a newer backup can be laid beside those of an older one.
"""

import re
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from protocol.errors import SettingsError
from signing import durable
from signing.sealing import public_half

NAME: Final = "sealing"
FILE: Final = re.compile(r"^sealing\.([1-9][0-9]{0,8})\.([0-9a-f]{16})\.pem\Z")
LOST: Final = "put it back from the newest backup; without the file, nothing that was sealed to it can be opened"


def read_all(folder: Path) -> dict[str, X25519PrivateKey]:
    """Every sealing key by its public half, the newest first; none in a folder from before there were any.

    Raises:
        SettingsError: One cannot be read.
    """
    found: dict[str, X25519PrivateKey] = {}
    for path in _paths(folder):
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"{path.name} cannot be read: {error}", hint=LOST) from error
        if not isinstance(key, X25519PrivateKey):
            raise SettingsError(f"{path.name} is no X25519 key", hint=LOST)
        found[public_half(key)] = key
    return found


def make(folder: Path, *, after: str | None) -> bool:
    """Makes a key where the newest is `after`; with None, where there is none. To be called with the folder held.

    Args:
        folder: With the key files.
        after: The public key that the managers have named: as long as the newest waits for them, there is no other.

    Returns:
        Whether it did.
    """
    if next(iter(read_all(folder)), None) != after:
        return False
    number = max((_order(path)[0] for path in _paths(folder)), default=0) + 1
    key = X25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    durable.write_new(folder / f"{NAME}.{number}.{public_half(key)[:16]}.pem", pem)
    return True


def _paths(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if FILE.match(path.name)), key=_order, reverse=True)


def _order(path: Path) -> tuple[int, str]:
    found = FILE.match(path.name)
    assert found is not None, "only such files are ordered"
    return int(found.group(1)), found.group(2)
