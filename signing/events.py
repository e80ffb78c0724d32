"""Signing events: a proposed change that managers look at and sign together.

An event is a folder: `event.json`, the unsigned files under `payload/REPOSITORY/ROLE.json`, and one file a signer under
`signatures/`, so that copies of a workspace merge without conflict. Nothing in it is trusted: each signer sees the
difference between what is published and the payload itself, and signatures are counted only as far as they verify.

No two open events touch the same role. When every file has its threshold (a new root: that of the old root too), the
event can be assembled; what was assembled once is kept, so that a push that was cut repeats the same bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Millis, Name
from protocol.objects import MANAGERS_ROLES
from protocol.wire import Message, decode, encode
from signing import durable
from signing.managers import Register
from signing.metadata import parse
from signing.proposals import Proposal
from signing.repository import RepositoryKind
from signing.workspace import KINDS, Workspace

FILE_NAME: Final = re.compile(r"^(image|director)/([a-z0-9][a-z0-9._-]{0,63})\Z")


class EventRecord(Message):
    """`event.json`."""

    format: Literal[1]
    id: Name
    title: str
    created_ms: Millis
    files: tuple[str, ...]  # `REPOSITORY/ROLE`


class SignatureEntry(Message):
    """One signature."""

    keyid: str
    sig: str


class SignatureFile(Message):
    """`signatures/NAME.json`: by `REPOSITORY/ROLE`; more than one in a rotation, where old and new key sign."""

    files: dict[str, tuple[SignatureEntry, ...]]


@dataclass(frozen=True)
class Need:
    """How far one file of an event is signed.

    Args:
        file: `REPOSITORY/ROLE`.
        by: `role` for the ordinary threshold, `old root` for that of the root before.
        threshold: Signatures needed.
        signed: Managers whose signature verifies.
        missing: Managers who could sign and have not.
    """

    file: str
    by: Literal["role", "old root"]
    threshold: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def met(self) -> bool:
        """Whether the threshold is reached."""
        return len(self.signed) >= self.threshold


class Event:
    """An open signing event in a workspace."""

    def __init__(self, workspace: Workspace, record: EventRecord, folder: Path) -> None:
        self.record = record
        self.folder = folder
        self._workspace = workspace
        self._register = Register(workspace)
        self._published = {kind: workspace.current(kind) for kind in KINDS}
        self.payload: dict[tuple[RepositoryKind, str], Metadata[Any]] = {}
        for name in record.files:
            kind, role = split_name(name)
            data = (folder / "payload" / kind / f"{role}.json").read_bytes()
            self.payload[kind, role] = parse(data, Root if role == "root" else Targets, name)

    @property
    def id(self) -> str:
        """Its name, in the order of opening."""
        return self.record.id

    def needs(self) -> tuple[Need, ...]:
        """What each file needs, and who signed it so far."""
        found = []
        for (kind, role), metadata in self.payload.items():
            by: Literal["role", "old root"]
            for by, delegator in self._delegators(kind, role):
                keyids = _keyids(delegator, role)
                signed = {keyid for keyid in keyids if self._verified(kind, role, delegator.get_key(keyid), metadata)}
                found.append(
                    Need(
                        file=f"{kind}/{role}",
                        by=by,
                        threshold=delegator.get_delegated_role(role).threshold,
                        signed=self._names(keyid for keyid in keyids if keyid in signed),
                        missing=self._names(keyid for keyid in keyids if keyid not in signed),
                    )
                )
        return tuple(found)

    def ready(self) -> bool:
        """Whether every threshold is reached."""
        return all(need.met for need in self.needs())

    def keys_wanted(self, name: str) -> tuple[Key, ...]:
        """The keys of a manager that some file of this event can use."""
        wanted: set[str] = set()
        for kind, role in self.payload:
            for _, delegator in self._delegators(kind, role):
                wanted.update(_keyids(delegator, role))
        return tuple(key for key in self._register.get(name).usable() if key.keyid in wanted)

    def sign(self, name: str, signers: Mapping[str, Signer]) -> None:
        """Adds a manager's signatures, durable on return. Signing again changes nothing.

        Args:
            name: The manager.
            signers: By key id, for all of `keys_wanted(name)`.

        Raises:
            StateError: This manager signs nothing here.
            Refused: `SIGNATURE`: some owner would hold two keys of a role (ATTACKS.md O27).
        """
        self.check_owners()
        files: dict[str, tuple[SignatureEntry, ...]] = {}
        for (kind, role), metadata in self.payload.items():
            entries: dict[str, SignatureEntry] = {}
            for _, delegator in self._delegators(kind, role):
                for keyid in _keyids(delegator, role):
                    if keyid in signers and keyid not in entries:
                        signature = _sign(signers[keyid], metadata)
                        entries[keyid] = SignatureEntry(keyid=signature.keyid, sig=signature.signature)
            if entries:
                files[f"{kind}/{role}"] = tuple(entries.values())
        if not files:
            raise StateError(f"{name} holds no key that {self.record.title!r} needs")
        durable.make_dir(self.folder / "signatures")
        content = encode(SignatureFile(files=files)) + b"\n"
        durable.write(self.folder / "signatures" / f"{name}.json", content, 0o644)

    def assemble(self) -> dict[RepositoryKind, dict[str, bytes]]:
        """The files with the signatures they have, as `signing.repository.accept` takes them. Judges nothing."""
        assembled: dict[RepositoryKind, dict[str, bytes]] = {kind: {} for kind in get_args(RepositoryKind)}
        for (kind, role), metadata in self.payload.items():
            whole: Metadata[Any] = Metadata(metadata.signed)
            for _, delegator in self._delegators(kind, role):
                for keyid in sorted(_keyids(delegator, role)):
                    signature = self._verified(kind, role, delegator.get_key(keyid), metadata)
                    if signature is not None:
                        whole.signatures[keyid] = signature
            name = f"{metadata.signed.version}.root.json" if role == "root" else f"{role}.json"
            assembled[kind][name] = whole.to_bytes()
        return assembled

    def freeze(self) -> dict[RepositoryKind, dict[str, bytes]]:
        """As `assemble`, but the first answer stays: a signature that comes later must not change pushed bytes."""
        folder = self.folder / "assembled"
        if not folder.exists():
            draft = self.folder / "assembling"
            durable.remove_tree(draft)
            durable.make_dir(draft)
            for kind, files in self.assemble().items():
                durable.make_dir(draft / kind)
                for name, data in files.items():
                    durable.write(draft / kind / name, data, 0o644)
            durable.rename(draft, folder)
        return {
            kind: {path.name: path.read_bytes() for path in sorted((folder / kind).glob("*.json"))}
            for kind in get_args(RepositoryKind)
        }

    def close(self, *, published: bool) -> None:
        """Ends the event: its folder moves to `closed/`. Idempotent rotation bookkeeping comes first."""
        for name, manager in self._register.all().items():
            if manager.next_key is not None and self._concerns(manager.next_key["keyid"]):
                self._register.settle(name, rotated=published)
        closed = self._workspace.path / "closed"
        durable.make_dir(closed)
        durable.rename(self.folder, closed / self.folder.name)

    def check_owners(self) -> None:
        """Refuses a role that one person could meet the threshold of with two keys, or that names a stranger's key.

        Raises:
            Refused: `SIGNATURE`.
        """
        owners = {key.keyid: name for name, manager in self._register.all().items() for key in manager.all_keys()}
        for (kind, _), metadata in self.payload.items():
            for role, keyids in _offline_roles(kind, metadata.signed).items():
                seen: dict[str, str] = {}
                for keyid in keyids:
                    owner = owners.get(keyid)
                    if owner is None:
                        raise Refused(
                            Reason.SIGNATURE, f"{kind} {role} would trust the key {keyid[:12]}, which is nobody's here"
                        )
                    if owner in seen:
                        raise Refused(
                            Reason.SIGNATURE,
                            f"{kind} {role} would trust two keys of {owner}, who could meet a threshold of two alone",
                        )
                    seen[owner] = keyid

    def _concerns(self, keyid: str) -> bool:
        return any(
            keyid in keyids
            for (kind, _), metadata in self.payload.items()
            for keyids in _offline_roles(kind, metadata.signed).values()
        )

    def _delegators(self, kind: RepositoryKind, role: str) -> list[tuple[Literal["role", "old root"], Root | Targets]]:
        """Who says which keys sign `role`: the proposed delegator where there is one, else the published."""
        published = self._published[kind]
        if role == "root":
            own: list[tuple[Literal["role", "old root"], Root | Targets]] = [("role", self.payload[kind, role].signed)]
            if published is not None:
                own.append(("old root", parse(published.root(), Root, "root").signed))
            return own
        above = "root" if role == "targets" else "targets"
        if (kind, above) in self.payload:
            return [("role", self.payload[kind, above].signed)]
        if published is None:
            raise StateError(f"the event {self.id} builds on {kind} {above}, which is not in this workspace")
        if above == "root":
            return [("role", parse(published.root(), Root, "root").signed)]
        return [("role", parse(published.targets, Targets, "targets").signed)]

    def _verified(self, kind: RepositoryKind, role: str, key: Key, metadata: Metadata[Any]) -> Signature | None:
        for entries in self._signature_files():
            for entry in entries.get(f"{kind}/{role}", ()):
                if entry.keyid != key.keyid:
                    continue
                signature = Signature(entry.keyid, entry.sig)
                try:
                    key.verify_signature(signature, metadata.signed_bytes)
                except UnverifiedSignatureError:
                    continue
                return signature
        return None

    def _signature_files(self) -> list[dict[str, tuple[SignatureEntry, ...]]]:
        paths = sorted((self.folder / "signatures").glob("*.json"))
        found = []
        for path in paths:
            try:
                found.append(decode(path.read_bytes(), SignatureFile, limit=limits.MIB).files)
            except Refused as error:
                hint = f"remove it; {path.stem} signs again"
                raise Refused(error.reason, f"{path} is damaged: {error.message}", hint=hint) from error
        return found

    def _names(self, keyids: Any) -> tuple[str, ...]:
        return tuple(sorted(self._register.owner(keyid) or f"key {keyid[:12]}" for keyid in keyids))


def open_event(workspace: Workspace, proposal: Proposal, now: datetime) -> Event:
    """Writes a proposal down as an open event.

    Raises:
        StateError: An open event touches the same role already.
        Refused: `SIGNATURE`: a role would trust two keys of one owner, or a stranger's.
    """
    check_free(workspace, proposal.files)
    folder = workspace.path / "events"
    closed = workspace.path / "closed"
    number = 1 + sum(len(list(each.glob("[0-9]*"))) for each in (folder, closed) if each.is_dir())
    slug = re.sub(r"[^a-z0-9.-]+", "-", proposal.slug.lower()).strip("-.")[:56].rstrip("-.")
    record = EventRecord(
        format=1,
        id=f"{number:04d}-{slug}",
        title=proposal.title,
        created_ms=int(now.timestamp() * 1000),
        files=tuple(f"{kind}/{role}" for kind, role in proposal.files),
    )
    # A half-written event must not be seen: it is made aside and appears by one rename.
    draft = folder / f"{durable.TEMPORARY_PREFIX}{record.id}"
    durable.remove_tree(draft)
    for (kind, role), signed in proposal.files.items():
        durable.make_dir(draft / "payload" / kind)
        unsigned: Metadata[Any] = Metadata(signed)
        durable.write(draft / "payload" / kind / f"{role}.json", unsigned.to_bytes(), 0o644)
    durable.write(draft / "event.json", encode(record) + b"\n", 0o644)
    try:
        Event(workspace, record, draft).check_owners()
    except Refused:
        durable.remove_tree(draft)
        raise
    durable.rename(draft, folder / record.id)
    return Event(workspace, record, folder / record.id)


def open_events(workspace: Workspace) -> tuple[Event, ...]:
    """The open events, oldest first."""
    folder = workspace.path / "events"
    paths = sorted(folder.glob("[0-9]*/event.json")) if folder.is_dir() else []
    return tuple(_load(workspace, path) for path in paths)


def find_event(workspace: Workspace, wanted: str | None) -> Event:
    """One open event: the named one, or the only one.

    Raises:
        StateError: None, or not clear which.
    """
    events = open_events(workspace)
    if wanted is not None:
        events = tuple(event for event in events if event.id == wanted)
    if not events:
        raise StateError("no signing event is open" if wanted is None else f"no open signing event {wanted!r}")
    if len(events) > 1:
        raise StateError(f"several events are open: {', '.join(e.id for e in events)}", hint="name one with --event")
    return events[0]


def check_free(workspace: Workspace, files: Any) -> None:
    """Refuses to touch roles that an open event touches.

    Args:
        workspace: Where to look.
        files: Pairs of repository and role.

    Raises:
        StateError: With the event that is in the way.
    """
    for event in open_events(workspace):
        shared = sorted(f"{kind} {role}" for kind, role in set(files) & set(event.payload))
        if shared:
            raise StateError(
                f"the event {event.id} ({event.record.title}) is open and touches {', '.join(shared)} too",
                hint="sign and push it first, or `headland release cancel`",
            )


def split_name(name: str) -> tuple[RepositoryKind, str]:
    """`REPOSITORY/ROLE` taken apart.

    Raises:
        Refused: `METADATA`: not such a name.
    """
    found = FILE_NAME.match(name)
    if found is None:
        raise Refused(Reason.METADATA, f"an event names {name!r:.80}, which is no role")
    kind: RepositoryKind = "image" if found.group(1) == "image" else "director"
    return kind, found.group(2)


def _load(workspace: Workspace, path: Path) -> Event:
    return Event(workspace, decode(path.read_bytes(), EventRecord, limit=limits.MIB), path.parent)


def _keyids(delegator: Root | Targets, role: str) -> list[str]:
    try:
        return list(delegator.get_delegated_role(role).keyids)
    except ValueError as error:
        raise Refused(Reason.METADATA, f"nothing delegates to {role}") from error


def _offline_roles(kind: RepositoryKind, signed: Root | Targets) -> dict[str, list[str]]:
    """Roles whose keys are managers', with their key ids, as `signed` delegates them."""
    if isinstance(signed, Root):
        return {role: list(signed.roles[role].keyids) for role in ("root", "targets")}
    delegated = (signed.delegations.roles or {}) if signed.delegations is not None else {}
    return {name: list(role.keyids) for name, role in delegated.items() if kind == "image" or name in MANAGERS_ROLES}


def _sign(signer: Signer, metadata: Metadata[Any]) -> Signature:
    copy: Metadata[Any] = Metadata(metadata.signed)
    try:
        return copy.sign(signer)
    except UnsignedMetadataError as error:
        cause = error.__cause__ or error
        raise StateError(f"the key {signer.public_key.keyid[:12]} could not sign: {cause}") from error
