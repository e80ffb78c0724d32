"""`kit.json` and its draft: made, signed by managers, and put where machines look, last of all.

Who may sign is what the director's targets say of the role `kits`, and a person counts once: two keys of one owner in
it are refused (ATTACKS.md O27).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Targets

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.kits import DRAFT_FILE, KIT_FILE, KitBody
from protocol.objects import KITS
from signing.managers import Register
from signing.metadata import parse, terms, terms_field
from signing.stick import StickFolder


@dataclass(frozen=True)
class KitObject:
    """A kit as it is signed, or is to be."""

    body: KitBody
    metadata: Metadata[Targets]

    @property
    def expires(self) -> datetime:
        """Of the kit."""
        return self.metadata.signed.expires


@dataclass(frozen=True)
class Signatures:
    """How far a kit is signed. `signed` and `missing`: managers, or keys that are nobody's here."""

    threshold: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def met(self) -> bool:
        """Whether it is a kit."""
        return len(self.signed) >= self.threshold


def make_kit(body: KitBody, expires: datetime) -> KitObject:
    """A kit that nobody signed yet. `expires`: aware, whole seconds."""
    version = max(1, body.created_ms // 1000)
    return KitObject(body, Metadata(Targets(version=version, expires=expires, unrecognized_fields=terms_field(body))))


def read_kit(folder: StickFolder) -> tuple[KitObject, bool] | None:
    """What lies in a kit's folder, and whether it is a draft still; None: nothing. Not verified.

    Raises:
        Refused: Not readable as a kit.
    """
    for name in (KIT_FILE, DRAFT_FILE):
        if folder.length(name) is not None:
            return parse_kit(folder.read(name, limits.KIT_BYTES)), name == DRAFT_FILE
    return None


def parse_kit(data: bytes) -> KitObject:
    """Reads a kit. Not verified.

    Raises:
        Refused: `METADATA`, `LENGTH`.
    """
    metadata = parse(data, Targets, KIT_FILE)
    return KitObject(terms(metadata.signed, KitBody, KIT_FILE), metadata)


def signatures(kit: KitObject, director: Targets, register: Register | None) -> Signatures:
    """Who signed, of those whom the director's targets name.

    Raises:
        StateError: They name nobody: the director is from before there were kits.
        Refused: `SIGNATURE`: two keys of the role are one person's.
    """
    threshold, keys = kit_keys(director)
    owners = {keyid: (register.owner(keyid) if register else None) or f"key {keyid[:12]}" for keyid in keys}
    doubled = {owner for owner in owners.values() if list(owners.values()).count(owner) > 1}
    if doubled:
        raise Refused(Reason.SIGNATURE, f"the role kits trusts two keys of {sorted(doubled)[0]}, who would count twice")
    signed = {keyid for keyid, key in keys.items() if _verifies(kit, key)}
    return Signatures(
        threshold=threshold,
        signed=tuple(sorted(owners[keyid] for keyid in signed)),
        missing=tuple(sorted(owners[keyid] for keyid in keys if keyid not in signed)),
    )


def kit_keys(director: Targets) -> tuple[int, Mapping[str, Key]]:
    """Threshold and keys of the role `kits`.

    Raises:
        StateError: The director is from before there were kits.
    """
    delegations = director.delegations
    role = (delegations.roles or {}).get(KITS) if delegations is not None else None
    if delegations is None or role is None:
        raise StateError(
            "the director's repository names nobody who may sign kits: it is from before there were any",
            hint="`headland keys kits` proposes it; sign and push that first",
        )
    return role.threshold, {keyid: delegations.keys[keyid] for keyid in role.keyids if keyid in delegations.keys}


def signing_key(director: Targets, register: Register, name: str) -> Key:
    """The key with which a manager signs kits.

    Raises:
        StateError: This manager may not.
    """
    _, keys = kit_keys(director)
    mine = [key for key in register.get(name).usable() if key.keyid in keys]
    if not mine:
        allowed = sorted(register.owner(keyid) or f"key {keyid[:12]}" for keyid in keys)
        raise StateError(f"{name} may not sign kits; these may: {', '.join(allowed)}")
    return mine[0]


def add_signature(kit: KitObject, signer: Signer) -> None:
    """Signs; again changes nothing."""
    copy: Metadata[Any] = Metadata(kit.metadata.signed)
    signature = copy.sign(signer)
    kit.metadata.signatures[signature.keyid] = signature


def drop_what_does_not_hold(kit: KitObject, director: Targets) -> None:
    """Removes signatures that are nobody's, or over something else: a stick may bring any number of them."""
    _, keys = kit_keys(director)
    held = {keyid for keyid, key in keys.items() if _verifies(kit, key)}
    for keyid in set(kit.metadata.signatures) - held:
        del kit.metadata.signatures[keyid]


def put_kit(folder: StickFolder, kit: KitObject, *, met: bool) -> str:
    """Writes the kit, durable on return: as `kit.json` when it is signed by enough, else as its draft. The other goes.

    Returns:
        The file's name.
    """
    data = kit.metadata.to_bytes()
    if len(data) > limits.KIT_BYTES:
        raise StateError(
            f"kit.json would have {len(data):,} bytes; {limits.KIT_BYTES:,} are read", hint="fewer releases"
        )
    name, other = (KIT_FILE, DRAFT_FILE) if met else (DRAFT_FILE, KIT_FILE)
    folder.write(name, data)
    folder.remove(other)
    return name


def _verifies(kit: KitObject, key: Key) -> bool:
    signature = kit.metadata.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, kit.metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True
