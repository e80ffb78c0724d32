"""The managers' workspace: the offline side of both repositories in one folder that they share.

    workspace.json     the format
    managers/NAME.json who may sign, with their public keys (`signing.managers`)
    signers/NAME.json  where the private key of NAME is, for those who sign on this computer
    keys/              encrypted key files made here
    online-keys.json   the public halves of the server's keys
    server.json        how to reach the server: address, CA, token; and this place's own name to it
    audit.json         the newest line of the server's audit trail that was seen here
    events/ID/         open signing events (`signing.events`); closed/ID/ those that ended
    signed/REPOSITORY/ every file that was ever published, kept for ever: N.root.json, N.targets.json, N.PRODUCT.json
    blobs/SHA256       manifests and artifacts, to be pushed

The folder may travel by any means (a share, a repository, a stick): what counts is signed, or looked at by each signer.
`signers/`, `keys/`, `server.json` and `audit.json` concern one person and must not travel: a `.gitignore` names them.
Every write is durable before it returns.
"""

import contextlib
import hashlib
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Literal

import msgspec
from tuf.api.metadata import Metadata, Targets

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Token, digest, is_digest
from protocol.wire import Message, decode, encode
from signing import durable
from signing.locks import held
from signing.metadata import parse
from signing.online_keys import OnlineKeys, parse_online_keys, sealing_key_in
from signing.repository import RepositoryKind, RepositorySet
from signing.sealed_file import RandomBytes

CHUNK_BYTES: Final = limits.MIB
PRIVATE: Final = b"/keys/\n/signers/\n/server.json\n/audit.json\n/lock\n.tmp-*\n"
SIGNED_FILE: Final = re.compile(r"^([1-9][0-9]*)\.([a-z0-9][a-z0-9._-]*)\.json\Z")
KINDS: Final[tuple[RepositoryKind, ...]] = ("image", "director")


class WorkspaceFormat(Message):
    """`workspace.json`."""

    format: Literal[1]


class ServerAccess(Message):
    """`server.json`: what `headland-server init` wrote as `operator.json`, and our own name for this place.

    Args:
        url: Of the operators' door.
        ca_pem: CAs to verify it by.
        token: The operators'.
        workspace: Drawn here, and another in each copy: a server that was restored waits for each that has pushed.
    """

    url: str
    ca_pem: str
    token: str
    workspace: Token | None = None


class Workspace:
    """One folder; see the module. Made by `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "Workspace":
        """Makes a workspace, or opens the one that is there."""
        durable.make_dir(path)
        if not (path / "workspace.json").exists():
            durable.write(path / ".gitignore", PRIVATE, 0o644)
            durable.write(path / "workspace.json", encode(WorkspaceFormat(format=1)) + b"\n", 0o644)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "Workspace":
        """Opens a workspace.

        Raises:
            StateError: There is none.
        """
        try:
            content = (path / "workspace.json").read_bytes()
        except FileNotFoundError as error:
            raise StateError(
                f"{path} is no workspace",
                hint="name one with --workspace, or make one: `headland keys add NAME` does",
            ) from error
        decode(content, WorkspaceFormat, limit=limits.KIB)
        return cls(path)

    def alone(self) -> AbstractContextManager[None]:
        """Holds the folder against other commands that build or push here. Signing needs no lock: a file each.

        Raises:
            StateError: Another command works on it.
        """
        return held(
            self.path / "lock",
            StateError(f"another `headland` builds or pushes in {self.path}", hint="wait until it is done"),
        )

    # The server.

    def server_access(self) -> ServerAccess:
        """How to reach the server.

        Raises:
            StateError: The workspace does not know yet.
        """
        try:
            content = (self.path / "server.json").read_bytes()
        except FileNotFoundError as error:
            raise StateError(
                "this workspace knows no server",
                hint="take the server's operator.json: `headland keys init --server operator.json`",
            ) from error
        return decode(content, ServerAccess, limit=64 * limits.KIB)

    def knows_server(self) -> bool:
        """Whether `server_access` will answer."""
        return (self.path / "server.json").exists()

    def set_server_access(self, content: bytes, random: RandomBytes) -> None:
        """Takes the server's `operator.json`; it holds a token, so only its owner may read it.

        Args:
            content: The file's.
            random: Draws the name of this place, unless it has one that can be read.

        Raises:
            Refused: `METADATA`: not such a file.
        """
        access = decode(content, ServerAccess, limit=64 * limits.KIB)
        place = None
        with contextlib.suppress(StateError, Refused):  # none yet, or one that was edited wrong: this replaces it
            place = self.server_access().workspace
        self._set_access(msgspec.structs.replace(access, workspace=place or random(16).hex()))

    def set_server_ca(self, ca_pem: str) -> None:
        """Replaces the CAs of `server.json`; address and token stay."""
        self._set_access(msgspec.structs.replace(self.server_access(), ca_pem=ca_pem))

    def _set_access(self, access: ServerAccess) -> None:
        durable.write(self.path / "server.json", encode(access) + b"\n")

    def online_keys(self) -> OnlineKeys | None:
        """The server's public keys, if known."""
        path = self.path / "online-keys.json"
        return parse_online_keys(path.read_bytes()) if path.exists() else None

    def set_online_keys(self, content: bytes) -> OnlineKeys:
        """Takes the server's `online-keys.json`.

        Raises:
            Refused: `METADATA`.
        """
        keys = parse_online_keys(content)
        durable.write(self.path / "online-keys.json", content, 0o644)
        return keys

    def sealing_key(self) -> str | None:
        """The server's key to which machines seal what a stick takes home, if known."""
        path = self.path / "online-keys.json"
        return sealing_key_in(path.read_bytes()) if path.exists() else None

    # What was signed.

    def current(self, kind: RepositoryKind) -> RepositorySet | None:
        """The newest published state of a repository; None before the first."""
        roots: dict[int, bytes] = {}
        newest: dict[str, int] = {}
        for version, role in self._signed(kind):
            if role == "root":
                roots[version] = self._signed_path(kind, version, role).read_bytes()
            else:
                newest[role] = max(version, newest.get(role, 0))
        if not roots or "targets" not in newest:
            return None
        latest = {role: self._signed_path(kind, version, role).read_bytes() for role, version in newest.items()}
        return RepositorySet(roots=roots, targets=latest.pop("targets"), delegated=latest)

    def need(self, kind: RepositoryKind) -> RepositorySet:
        """As `current`.

        Raises:
            StateError: Nothing was published yet.
        """
        found = self.current(kind)
        if found is None:
            raise StateError(
                "the repositories do not exist yet",
                hint="`headland keys init` proposes them, `keys sign` signs, `release push` publishes",
            )
        return found

    def history(self, role: str) -> tuple[Metadata[Targets], ...]:
        """Every published state of the image's `targets` or of a product's role, oldest first."""
        versions = sorted(version for version, name in self._signed("image") if name == role)
        return tuple(
            parse(self._signed_path("image", version, role).read_bytes(), Targets, role) for version in versions
        )

    def keep(self, kind: RepositoryKind, role: str, version: int, data: bytes) -> None:
        """Keeps a published file for ever; the same one again is fine.

        Raises:
            StateError: Another file of this version was published: two copies of the workspace went apart.
        """
        path = self._signed_path(kind, version, role)
        durable.make_dir(path.parent)
        try:
            durable.write_new(path, data, 0o644)
        except FileExistsError as error:
            if path.read_bytes() != data:
                raise StateError(f"{path.name} was published before with other content") from error

    def _signed(self, kind: RepositoryKind) -> list[tuple[int, str]]:
        folder = self.path / "signed" / kind
        names = [SIGNED_FILE.match(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        return [(int(name.group(1)), name.group(2)) for name in names if name]

    def _signed_path(self, kind: RepositoryKind, version: int, role: str) -> Path:
        return self.path / "signed" / kind / f"{version}.{role}.json"

    # Blobs.

    def blob(self, sha256: str) -> Path:
        """Where a blob lies, or would."""
        if not is_digest(sha256):
            raise Refused(Reason.HASH, f"{sha256!r:.80} is no sha256")
        return self.path / "blobs" / sha256

    def add_blob(self, data: bytes) -> str:
        """Keeps bytes; returns their digest."""
        sha256 = digest(data)
        path = self.blob(sha256)
        if not path.exists():
            durable.make_dir(path.parent)
            durable.write(path, data, 0o644)
        return sha256

    def spool(self, key: str) -> Path:
        """Where what is to become a blob is gathered: the same file for the same key. Renamed to `blob` when whole."""
        folder = self.path / "blobs"
        durable.make_dir(folder)
        return folder / f"{durable.TEMPORARY_PREFIX}{digest(key.encode(errors='surrogatepass'))[:16]}"

    def drop_spools(self) -> None:
        """Removes what commands that never ended have gathered, and nobody went on with. Only while it is `alone`."""
        durable.sweep(self.path / "blobs")

    def add_blob_file(self, source: Path) -> tuple[str, int]:
        """Copies a file of any size; returns the digest and length of what was copied."""
        spool = self.spool(str(source))
        durable.unlink(spool)
        hasher = hashlib.sha256()
        with source.open("rb") as reader, durable.open_part(spool) as part:
            while chunk := reader.read(CHUNK_BYTES):
                hasher.update(chunk)
                part.append(chunk)
            part.sync()
            length = part.length_bytes
        sha256 = hasher.hexdigest()
        durable.rename(spool, self.blob(sha256))
        return sha256, length

    def read_blob(self, sha256: str, limit: int) -> bytes:
        """A small blob, its hash checked.

        Raises:
            StateError: It is not here.
            Refused: `HASH`, `LENGTH`.
        """
        path = self.blob(sha256)
        if not path.exists():
            raise StateError(
                f"blob {sha256[:12]} is not in this workspace", hint="copy blobs/ from who built the release"
            )
        if path.stat().st_size > limit:
            raise Refused(Reason.LENGTH, f"blob {sha256[:12]} is larger than {limit} bytes")
        data = path.read_bytes()
        if digest(data) != sha256:
            raise Refused(Reason.HASH, f"blob {sha256[:12]} was changed in the workspace")
        return data
