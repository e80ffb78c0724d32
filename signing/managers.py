"""Who may sign: the register of managers and their public keys, one key a person.

Two keys of one owner would meet a threshold of two alone (ATTACKS.md O27), and so would one key under two names:
both are refused here, where people are enrolled, and again when an event is opened and signed.
"""

from collections.abc import Mapping
from typing import Any, Literal

from securesystemslib.signer import Key

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Name, parse_name
from protocol.wire import Message, decode, encode
from signing import durable
from signing.metadata import shared_public_keys
from signing.online_keys import key_from_dict, key_to_dict
from signing.workspace import Workspace


class Manager(Message):
    """`managers/NAME.json`. `next_key` is proposed by a rotation and becomes `key` when that is published."""

    format: Literal[1]
    name: Name
    key: dict[str, Any]
    next_key: dict[str, Any] | None = None
    former_keys: tuple[dict[str, Any], ...] = ()

    def current(self) -> Key:
        """The key that counts now."""
        return key_from_dict(self.key)

    def usable(self) -> tuple[Key, ...]:
        """The keys that this manager signs with: the present one, and the next while a rotation is open."""
        return tuple(key_from_dict(key) for key in (self.key, self.next_key) if key is not None)

    def all_keys(self) -> tuple[Key, ...]:
        """Every key that was ever this manager's."""
        return (*self.usable(), *(key_from_dict(key) for key in self.former_keys))


class SignerPlace(Message):
    """`signers/NAME.json`: where the private keys of a manager are, by key id, as URIs."""

    uris: dict[str, str]


class Register:
    """The managers of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._folder = workspace.path / "managers"

    def all(self) -> dict[str, Manager]:
        """Every manager by name, in the order of names."""
        paths = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        found = [decode(path.read_bytes(), Manager, limit=limits.MIB) for path in paths]
        return {manager.name: manager for manager in found}

    def get(self, name: str) -> Manager:
        """One manager.

        Raises:
            StateError: Not registered.
        """
        managers = self.all()
        if name not in managers:
            known = ", ".join(managers) or "nobody yet"
            raise StateError(f"no manager {name!r}; registered: {known}", hint="`headland keys add NAME` registers one")
        return managers[name]

    def check_new(self, name: str) -> None:
        """Refuses a second key for one person before it is made.

        Raises:
            StateError: This manager has a key.
        """
        parse_name(name, "manager")
        if name in self.all():
            raise StateError(
                f"{name} has a key already: two keys of one owner would meet a threshold of two alone",
                hint=f"to replace it: `headland keys rotate --manager {name}`",
            )

    def add(self, name: str, key: Key, uri: str) -> Manager:
        """Registers a manager with a first key.

        Raises:
            StateError: The name has a key already.
            Refused: `SIGNATURE`: the key is another manager's, or the server's.
        """
        self.check_new(name)
        self._check_unused(name, key)
        manager = Manager(format=1, name=name, key=key_to_dict(key))
        self._set_place(name, key.keyid, uri)
        self._write(manager)
        return manager

    def propose_key(self, name: str, key: Key, uri: str) -> Manager:
        """Gives a manager the key that a rotation will bring in."""
        manager = self.get(name)
        self._check_unused(name, key)
        self._set_place(name, key.keyid, uri)
        changed = Manager(
            format=1, name=name, key=manager.key, next_key=key_to_dict(key), former_keys=manager.former_keys
        )
        self._write(changed)
        return changed

    def settle(self, name: str, *, rotated: bool) -> None:
        """Ends a rotation: the next key takes over, or is put away."""
        manager = self.get(name)
        if manager.next_key is None:
            return
        key, gone = (manager.next_key, manager.key) if rotated else (manager.key, manager.next_key)
        self._write(Manager(format=1, name=name, key=key, former_keys=(*manager.former_keys, gone)))

    def owner(self, keyid: str) -> str | None:
        """Whose key it is or was."""
        for name, manager in self.all().items():
            if keyid in {key.keyid for key in manager.all_keys()}:
                return name
        return None

    def uri(self, name: str, keyid: str) -> str:
        """Where the private half of a manager's key is.

        Raises:
            StateError: This workspace does not know: the manager signs elsewhere.
        """
        found = self._place(name).uris.get(keyid)
        if found is None:
            raise StateError(
                f"the private key of {name} ({keyid[:12]}) is not known on this computer",
                hint=f"on the computer of {name}: `headland keys add {name} --here --uri URI`",
            )
        return found

    def set_uri(self, name: str, key: Key, uri: str) -> None:
        """Says where the private half of a registered key is, on this computer.

        Raises:
            Refused: `SIGNATURE`: it is not this manager's registered key.
        """
        if key.keyid not in {mine.keyid for mine in self.get(name).usable()}:
            raise Refused(Reason.SIGNATURE, f"the key {key.keyid[:12]} is not the one that is registered for {name}")
        self._set_place(name, key.keyid, uri)

    def _check_unused(self, name: str, key: Key) -> None:
        for other in self.all().values():
            if any(shared_public_keys((key, theirs)) for theirs in other.all_keys()):
                whose = "was this manager's before" if other.name == name else f"is the key of {other.name}"
                raise Refused(
                    Reason.SIGNATURE, f"the key {key.keyid[:12]} {whose}; each manager needs a key of their own"
                )
        online: Mapping[str, Mapping[str, Key]] = self._workspace.online_keys() or {}
        if any(shared_public_keys((key, theirs)) for roles in online.values() for theirs in roles.values()):
            raise Refused(Reason.SIGNATURE, f"the key {key.keyid[:12]} is one of the server's online keys")

    def _write(self, manager: Manager) -> None:
        durable.make_dir(self._folder)
        durable.write(self._folder / f"{manager.name}.json", encode(manager) + b"\n", 0o644)

    def _place(self, name: str) -> SignerPlace:
        path = self._workspace.path / "signers" / f"{name}.json"
        return decode(path.read_bytes(), SignerPlace, limit=limits.MIB) if path.exists() else SignerPlace(uris={})

    def _set_place(self, name: str, keyid: str, uri: str) -> None:
        folder = self._workspace.path / "signers"
        durable.make_dir(folder)
        place = SignerPlace(uris=self._place(name).uris | {keyid: uri})
        durable.write(folder / f"{name}.json", encode(place) + b"\n")
