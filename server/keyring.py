"""The server's online keys: made here, public halves exported, one key a role, and at times the next one beside it.

Whoever steals them can withhold and delay, as the key table in ATTACKS.md says; nothing that they sign is installable.
By default each is an unencrypted Ed25519 file (0600) in `keys/`, for the process must start without a person; a
setting names any securesystemslib URI instead (an HSM, a KMS).

    keys/REPOSITORY.ROLE.pem       signs
    keys/REPOSITORY.ROLE.next.pem  waits until what the managers signed names it; then it takes the other's place

Which of the two signs is never decided here: the metadata on offer names the key, and with it the server switches, in
the transaction that publishes it. The old key is overwritten after that. What opens sealed results lies beside them
(`server.sealing_keys`).
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SecretsHandler, Signer

from protocol import limits
from protocol.errors import HeadlandError, SettingsError, StateError
from protocol.ids import Millis
from protocol.wire import Message, decode, encode
from server import sealing_keys
from server.settings import OnlineKey
from server.storage.catalog import Session
from signing import durable
from signing.keys import open_signer
from signing.locks import one_by_one
from signing.online_keys import ONLINE_ROLES, key_from_dict, render_online_keys

NAMES: Final = tuple(f"{repository}.{role}" for repository, roles in ONLINE_ROLES.items() for role in roles)
"""Every online role as `REPOSITORY.ROLE`."""

FACT: Final = "named_keys"
LOST_KEY: Final = (
    "put it back from the newest backup; where there is none, `headland-server init` makes another one, and the "
    "managers delegate to it: `headland keys rotate --online-of-server`"
)


class NamedKeys(Message):
    """Which keys the metadata on offer names, by `REPOSITORY.ROLE`, as the last publication left it."""

    keyids: dict[str, str]
    since_ms: dict[str, Millis]  # each of them


class Keyring:
    """All online signers. Safe to use from several threads.

    Args:
        folder: With the key files.
        elsewhere: From the settings, by `REPOSITORY.ROLE`.
        secrets: Asked for the PIN of a token and the like.

    Raises:
        SettingsError: A role that does not exist, a key that is missing or cannot be reached.
    """

    def __init__(self, folder: Path, elsewhere: Mapping[str, OnlineKey], secrets: SecretsHandler) -> None:
        for name in elsewhere:
            check_name(name, "[online_keys]")
        self._folder = folder
        self._elsewhere = elsewhere
        self._secrets = secrets
        self._signers: Mapping[str, tuple[Signer, ...]] = {}
        self._sealing: Mapping[str, X25519PrivateKey] = {}
        self.reload()

    def reload(self) -> None:
        """Takes up keys that a command made since."""
        with one_by_one(self._folder):
            self._signers = {name: self._load(name) for name in NAMES}
            self._sealing = sealing_keys.read_all(self._folder)

    def __getitem__(self, repository: str) -> Mapping[str, Signer]:
        """The present signers of a repository by role; not those that wait."""
        return {role: self._signers[f"{repository}.{role}"][0] for role in ONLINE_ROLES[repository]}

    def wanted(self) -> bytes:
        """The content of `online-keys.json`: what managers should delegate to, the next keys where there are some."""
        return render_online_keys(
            {
                repository: {role: self._signers[f"{repository}.{role}"][-1].public_key for role in roles}
                for repository, roles in ONLINE_ROLES.items()
            },
            next(iter(self._sealing), None),
        )

    def sealing_keys(self) -> Mapping[str, X25519PrivateKey]:
        """What opens what a stick brought home, by public key, the newest first: as they are now, for a command
        may have made one since."""
        return sealing_keys.read_all(self._folder)

    def keyids(self) -> dict[str, tuple[str, ...]]:
        """Of all keys that are here, by `REPOSITORY.ROLE`."""
        return {name: tuple(signer.public_key.keyid for signer in held) for name, held in self._signers.items()}

    def waiting(self) -> dict[str, str]:
        """Key ids that wait to be named, by `REPOSITORY.ROLE`."""
        return {name: held[1].public_key.keyid for name, held in self._signers.items() if len(held) > 1}

    def signer(self, name: str, keyids: Collection[str] | None) -> Signer:
        """The signer of a role.

        Args:
            name: `REPOSITORY.ROLE`.
            keyids: That the metadata on offer names; None: nothing is on offer yet.

        Raises:
            StateError: It names none that this server has.
        """
        held = self._signers[name]
        if keyids is None:
            return held[0]
        for signer in held:
            if signer.public_key.keyid in keyids:
                return signer
        have = " or ".join(signer.public_key.keyid[:12] for signer in held)
        raise StateError(
            f"the managers' metadata does not name this server's key {have} for {name}",
            hint="take its online-keys.json: `headland keys rotate --online online-keys.json`, or put keys/ back",
        )

    def newest(self, name: str, keyids: Collection[str]) -> Signer:
        """The signer of a role under one of these keys, or else the newest that there is."""
        held = self._signers[name]
        return next((signer for signer in held if signer.public_key.keyid in keyids), held[-1])

    def settle(self, named: Mapping[str, str]) -> tuple[str, ...]:
        """Destroys old keys whose successors the metadata on offer names. Safe to repeat. Blocks.

        Returns:
            Their roles.
        """
        done = tuple(name for name, keyid in self.waiting().items() if named.get(name) == keyid)
        with one_by_one(self._folder):
            for name in done:
                if name not in self._elsewhere:
                    durable.rename(_next(self._folder, name), _present(self._folder, name))
        if done:
            self.reload()
        return tuple(name for name in done if name not in self._elsewhere)

    def _load(self, name: str) -> tuple[Signer, ...]:
        if name in self._elsewhere:
            return _open_elsewhere(name, self._elsewhere[name], self._secrets)
        held = [_read(_present(self._folder, name), name)]
        with contextlib.suppress(FileNotFoundError):
            following = _read(_next(self._folder, name), name)
            if following.public_key.keyid != held[0].public_key.keyid:
                held.append(following)
        return tuple(held)


def make_keys(folder: Path, elsewhere: Mapping[str, OnlineKey]) -> None:
    """Makes a file for each online role that has none and is not configured elsewhere; never replaces one."""
    for name in NAMES:
        path = _present(folder, name)
        if name not in elsewhere and not path.exists():
            durable.write_new(path, CryptoSigner.generate_ed25519().private_bytes)


def check_keys(folder: Path, elsewhere: Mapping[str, OnlineKey]) -> None:
    """Opens each key that is a file, sealing keys too, as a server that starts would. Takes no lock.

    Raises:
        SettingsError: One is missing or cannot be read.
    """
    for name in NAMES:
        if name not in elsewhere:
            _read(_present(folder, name), name)
            with contextlib.suppress(FileNotFoundError):
                _read(_next(folder, name), name)
    sealing_keys.read_all(folder)


def ensure_sealing_key(folder: Path) -> None:
    """Makes the first sealing key; a folder that has one stays as it is."""
    with one_by_one(folder):
        sealing_keys.make(folder, after=None)


def next_sealing_key(folder: Path, named: str | None) -> bool:
    """Makes another sealing key, unless the newest waits for the managers still.

    Args:
        folder: With the key files.
        named: The public key that the director's targets name; None: they name none.

    Returns:
        Whether it did.
    """
    with one_by_one(folder):
        return named is not None and sealing_keys.make(folder, after=named)


def make_next(folder: Path, elsewhere: Mapping[str, OnlineKey], names: Sequence[str]) -> None:
    """Makes the next key of each of these roles; one that waits already stays, as its public half may be on its way.

    Raises:
        SettingsError: No such role.
        StateError: The role's key is no file here.
    """
    for name in names:
        check_name(name, "headland-server keys")
        if name in elsewhere:
            raise StateError(
                f"the key of {name} is no file here: {elsewhere[name].uri.partition('?')[0]}",
                hint="make the next one there, and name it as next_uri and next_public in server.toml",
            )
    with one_by_one(folder):
        for name in names:
            if not _next(folder, name).exists():
                durable.write_new(_next(folder, name), CryptoSigner.generate_ed25519().private_bytes)


def drop_next(folder: Path, names: Sequence[str]) -> None:
    """Destroys next keys that nobody is to delegate to after all; their absence is fine."""
    with one_by_one(folder):
        for name in names:
            check_name(name, "headland-server keys")
            durable.unlink(_next(folder, name))


def check_name(name: str, where: str) -> None:
    """Refuses what is no online role.

    Raises:
        SettingsError: With all roles that there are.
    """
    if name not in NAMES:
        raise SettingsError(f"{where}: there is no role {name!r}; roles: {', '.join(NAMES)}")


def read_named(session: Session) -> NamedKeys | None:
    """Which keys the metadata on offer names; None before the first publication."""
    text = session.facts.get(FACT)
    return None if text is None else decode(text, NamedKeys, limit=limits.METADATA_BYTES)


def put_named(session: Session, keyids: Mapping[str, str], now_ms: int) -> tuple[str, ...]:
    """Notes which keys the metadata on offer names from now on.

    Returns:
        Roles whose key is another than before; none at the first publication.
    """
    before = read_named(session)
    if before is not None and before.keyids == keyids:
        return ()
    since_ms = {
        name: before.since_ms[name] if before is not None and before.keyids.get(name) == keyid else now_ms
        for name, keyid in keyids.items()
    }
    session.facts.put(FACT, encode(NamedKeys(keyids=dict(keyids), since_ms=since_ms)).decode())
    if before is None:
        return ()
    return tuple(name for name, keyid in keyids.items() if before.keyids.get(name, keyid) != keyid)


def _open_elsewhere(name: str, key: OnlineKey, secrets: SecretsHandler) -> tuple[Signer, ...]:
    places = [(key.uri, key.public)]
    if key.next_uri:
        places.append((key.next_uri, key.next_public))
    try:
        return tuple(
            open_signer(
                uri, key_from_dict(msgspec.json.decode(Path(public).read_bytes(), type=dict[str, object])), secrets
            )
            for uri, public in places
        )
    except (OSError, msgspec.MsgspecError, HeadlandError) as error:
        raise SettingsError(f"online key {name} cannot be used: {error}") from error


def _read(path: Path, name: str) -> Signer:
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        if path.name.endswith(".next.pem"):
            raise
        raise SettingsError(f"online key {name}: {path.name} is missing", hint=LOST_KEY) from None
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"online key {name}: {path.name} cannot be read: {error}", hint=LOST_KEY) from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise SettingsError(f"online key {name}: {path.name} is no Ed25519 key")
    return CryptoSigner(private)


def _present(folder: Path, name: str) -> Path:
    return folder / f"{name}.pem"


def _next(folder: Path, name: str) -> Path:
    return folder / f"{name}.next.pem"
