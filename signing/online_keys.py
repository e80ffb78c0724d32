"""The public halves of the server's online keys: what it exports and what managers delegate to (`online-keys.json`).

A JSON object: repository, then role, then a TUF key with its `keyid` beside the usual fields. Beside the repositories
`sealing`: the key to which machines seal what a stick takes home; absent in files from before there were field kits.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.kits import PublicKey
from protocol.wire import Message, decode, encode
from signing.metadata import parse
from signing.repository import RepositoryKind, RepositorySet

ONLINE_ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("snapshot", "timestamp"),
    "director": ("snapshot", "timestamp", "assignments", "clock", "receipts"),
}
"""Every role whose key the server holds, by repository. Each has a key of its own."""

OnlineKeys = Mapping[str, Mapping[str, Key]]
"""Public keys by repository and role."""


def named_keys(kind: RepositoryKind, published: RepositorySet) -> dict[str, tuple[str, ...]]:
    """The key ids that the newest signed metadata of a repository names for each online role."""
    root = parse(published.root(), Root, "root.json").signed
    found = {role: tuple(root.roles[role].keyids) for role in ("snapshot", "timestamp")}
    if kind == "director":
        delegations = parse(published.targets, Targets, "targets.json").signed.delegations
        found |= {
            name: tuple(role.keyids)
            for name, role in ((delegations.roles or {}) if delegations is not None else {}).items()
            if name in ONLINE_ROLES[kind]
        }
    return found


class _File(Message):
    image: dict[str, dict[str, Any]]
    director: dict[str, dict[str, Any]]
    sealing: PublicKey | None = None


def render_online_keys(keys: OnlineKeys, sealing_key: str | None = None) -> bytes:
    """The content of `online-keys.json`."""
    content = {kind: {role: key_to_dict(keys[kind][role]) for role in roles} for kind, roles in ONLINE_ROLES.items()}
    return msgspec.json.format(encode(_File(**content, sealing=sealing_key)), indent=2) + b"\n"


def sealing_key_in(data: bytes) -> str | None:
    """The server's public X25519 key that `online-keys.json` names, in hexadecimal; None in an older one.

    Raises:
        Refused: `METADATA`.
    """
    return decode(data, _File, limit=limits.KIB * 256).sealing


def parse_online_keys(data: bytes) -> OnlineKeys:
    """Reads `online-keys.json`.

    Raises:
        Refused: `METADATA`: malformed, a role is missing, or one key stands for two roles.
    """
    file = decode(data, _File, limit=limits.KIB * 256)
    content = {"image": file.image, "director": file.director}
    keys: dict[str, dict[str, Key]] = {}
    for kind, roles in ONLINE_ROLES.items():
        if set(content[kind]) != set(roles):
            raise Refused(Reason.METADATA, f"online keys: the {kind} repository needs keys for {', '.join(roles)}")
        keys[kind] = {role: key_from_dict(content[kind][role]) for role in roles}
    ids = [key.keyid for roles_of in keys.values() for key in roles_of.values()]
    if len(set(ids)) != len(ids):
        raise Refused(Reason.METADATA, "online keys: one key stands for two roles; each needs its own")
    return keys


def key_to_dict(key: Key) -> dict[str, Any]:
    """A public key as JSON holds it, `keyid` included."""
    return {"keyid": key.keyid, **key.to_dict()}


def key_from_dict(content: Mapping[str, Any]) -> Key:
    """Reads what `key_to_dict` wrote.

    Raises:
        Refused: `METADATA`.
    """
    fields = dict(content)
    try:
        return Key.from_dict(fields.pop("keyid"), fields)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Refused(Reason.METADATA, f"not a public key: {error}") from error
