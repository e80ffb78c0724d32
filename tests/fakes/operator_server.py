"""The operator's side of a server, in memory: it judges by `signing.repository.accept` as the real one does."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from securesystemslib.signer import CryptoSigner, Signer

from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.release import parse_manifest
from server.ca import Authority
from signing.online_keys import ONLINE_ROLES, render_online_keys
from signing.repository import RepositoryKind, RepositorySet, accept, read_release_list, render_online
from signing.server_client import Progress
from signing.workspace import ServerAccess

T = TypeVar("T")


class OperatorServer:
    """Implements `signing.server_client.Operator`. `answers` holds what `get` and `post` say, by path;
    a function is asked with the query."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.keys: dict[str, dict[str, Signer]] = {
            kind: {role: CryptoSigner.generate_ed25519() for role in roles} for kind, roles in ONLINE_ROLES.items()
        }
        self.sealing_key = os.urandom(32).hex()
        self.online_keys = render_online_keys(
            {kind: {role: key.public_key for role, key in roles.items()} for kind, roles in self.keys.items()},
            self.sealing_key,
        )
        self.authority = Authority.make(now)
        self.trust = {"trust_pem": self.authority.pem()}
        self.sets: dict[str, RepositorySet] = {}
        self.blobs: dict[str, bytes] = {}
        self.answers: dict[str, Any] = {"/devices": {"devices": []}}
        self.posted: list[tuple[str, Any]] = []
        self.published = 0
        self.again: list[bool] = []
        self.held = ""
        self.link_bytes: int | None = None  # that a link carries before it breaks, once

    def connect(self, access: ServerAccess) -> "OperatorServer":
        assert access.token == "t0ken"
        return self

    def operator_json(self) -> bytes:
        return msgspec.json.encode({"url": "https://fake:1", "ca_pem": self.trust["trust_pem"], "token": "t0ken"})

    def get(self, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        own = {"/online-keys": lambda: msgspec.json.decode(self.online_keys), "/ca": lambda: self.trust}
        answer = own[path]() if path in own else self.answers.get(path)
        if answer is None and path.endswith("/receipts"):
            answer = {"receipts": []}
        if answer is None:
            raise StateError(f"no {path}")
        if callable(answer):
            answer = answer(query or {})
        return msgspec.json.decode(msgspec.json.encode(answer), type=kind)

    def post(self, path: str, body: Any, kind: type[T]) -> T:
        self.posted.append((path, body))
        return msgspec.json.decode(msgspec.json.encode(self.answers.get(path, {})), type=kind)

    def send(self, path: str, data: bytes, kind: type[T]) -> T:
        self.posted.append((path, data))
        return msgspec.json.decode(msgspec.json.encode(self.answers[path](data)), type=kind)

    def has_blob(self, sha256: str) -> bool:
        return sha256 in self.blobs

    def put_blob(self, sha256: str, path: Path, progress: Progress) -> None:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Refused(Reason.HASH, "another hash")
        self.blobs[sha256] = data
        progress(len(data))

    def get_blob(self, sha256: str, first: int) -> Iterator[bytes]:
        if sha256 not in self.blobs:
            raise StateError(f"no blob {sha256}")
        data = self.blobs[sha256]
        for at in range(first, len(data), 1000):
            if self.link_bytes is not None:
                self.link_bytes -= 1000
                if self.link_bytes < 0:
                    self.link_bytes = None
                    raise LinkError("the link broke")
            yield data[at : at + 1000]

    def publish(self, files: Mapping[RepositoryKind, Mapping[str, bytes]], *, again: bool = False) -> str:
        new = {kind: accept(kind, self.sets.get(kind), named, self.now) for kind, named in files.items()}
        image = new.get("image")
        for product in image.delegated if image is not None else ():
            assert image is not None
            for release in read_release_list(image, product):
                self._check_blobs(release.manifest_sha256)
        self.sets.update(new)
        self.published += 1
        self.again.append(again)
        return self.held

    def metadata(self, kind: RepositoryKind, name: str) -> bytes:
        keys = self.keys[kind]
        served = render_online(self.sets[kind], keys["snapshot"], keys["timestamp"], 7, self.now)
        if name not in served:
            raise StateError(f"no {name}")
        return served[name]

    def close(self) -> None:
        pass

    def _check_blobs(self, manifest_sha256: str) -> None:
        manifest = self.blobs.get(manifest_sha256)
        if manifest is None:
            raise StateError(f"blob {manifest_sha256[:12]} is missing")
        for artifact in parse_manifest(manifest).artifacts():
            if artifact.sha256 not in self.blobs:
                raise StateError(f"blob {artifact.sha256[:12]} is missing")
