"""A plain TUF repository in memory, for the trust store without Headland's own roles: a knob for every attack."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

TOP = ("root", "timestamp", "snapshot", "targets")


class PlainRepository:
    """Change the public records, then `publish`; `files` is what a server serves."""

    def __init__(
        self,
        now: datetime,
        *,
        consistent: bool = True,
        hashes: bool = False,
        make_signer: Any = CryptoSigner.generate_ed25519,
    ) -> None:
        self.expires = now + timedelta(days=30)
        self.hashes = hashes
        self.make_signer = make_signer
        self.signers: dict[str, list[Signer]] = {}
        self.root = Root(expires=self.expires, consistent_snapshot=consistent)
        self.timestamp = Timestamp(expires=self.expires)
        self.snapshot = Snapshot(expires=self.expires)
        self.targets = Targets(expires=self.expires)
        self.delegated: dict[str, Targets] = {}
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        for signed in (self.root, self.timestamp, self.snapshot, self.targets):
            signed.version = 0
        for role in TOP:
            self.rotate(role)
        self.publish_root()
        self.publish()

    def rotate(self, role: str, signers: Sequence[Signer] | None = None, threshold: int = 1) -> None:
        """Gives a top-level role new keys; it counts from the next `publish_root`."""
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.signers[role] = list(signers or [self.make_signer()])
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        self.root.roles[role].threshold = threshold

    def publish_root(self, extra: Sequence[Signer] = ()) -> bytes:
        self.root.version += 1
        data = self.sign(self.root, [*self.signers["root"], *extra])
        self.files[f"{self.root.version}.root.json"] = data
        return data

    def delegate(self, name: str, paths: Sequence[str], role: Targets | None = None) -> Targets:
        signer = self.make_signer()
        if self.targets.delegations is None:
            self.targets.delegations = Delegations({}, {})
        assert self.targets.delegations.roles is not None
        self.targets.delegations.roles[name] = DelegatedRole(name, [], 1, terminating=False, paths=list(paths))
        self.targets.add_key(signer.public_key, name)
        self.signers[name] = [signer]
        self.delegated[name] = role or Targets(expires=self.expires)
        self.delegated[name].version = 0
        return self.delegated[name]

    def add_file(self, path: str, data: bytes, role: Targets | None = None) -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        (role or self.targets).targets[path] = target
        head, slash, tail = path.rpartition("/")
        prefix = f"{target.hashes['sha256']}." if self.root.consistent_snapshot else ""
        self.blobs[f"{head}{slash}{prefix}{tail}"] = data

    def publish(self, *, targets: bool = True) -> None:
        """Raises and signs targets, delegated roles, snapshot and timestamp."""
        if targets:
            self.targets.version += 1
            for role in self.delegated.values():
                role.version += 1
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        for name, role in {"targets": self.targets, **self.delegated}.items():
            data = self.sign(role, self.signers[name])
            self._put(name, role.version, data)
            self.snapshot.meta[f"{name}.json"] = self._meta(role.version, data)
        self.snapshot.version += 1
        data = self.sign(self.snapshot, self.signers["snapshot"])
        self._put("snapshot", self.snapshot.version, data)
        self.timestamp.snapshot_meta = self._meta(self.snapshot.version, data)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self.timestamp.version += 1
        self.files["timestamp.json"] = self.sign(self.timestamp, self.signers["timestamp"])

    def sign(self, signed: Any, signers: Sequence[Signer]) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _meta(self, version: int, data: bytes) -> MetaFile:
        return MetaFile.from_data(version, data, ["sha256"]) if self.hashes else MetaFile(version)

    def _put(self, role: str, version: int, data: bytes) -> None:
        name = quote(role, "")
        self.files[f"{version}.{name}.json" if self.root.consistent_snapshot else f"{name}.json"] = data
