"""Spares a play what python-tuf and cryptography do over and over: the same bytes parse to the same metadata, and the
same signature by the same key over the same bytes holds again. Nothing is judged otherwise, only sooner.

Metadata that was read is shared by all who read it: nobody in the product changes what it read.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from unittest import mock

from securesystemslib.signer import Signature, SSlibKey
from sqlalchemy import URL, Engine, create_engine
from tuf.api.serialization.json import CanonicalJSONSerializer, JSONDeserializer

from device import hardware
from device.identity import Identity
from server.storage import catalog

KEPT = 4096
_CANONICAL = "_canonical_of_the_play"

_deserialize = JSONDeserializer.deserialize
_serialize = CanonicalJSONSerializer.serialize
_agent_version = lru_cache(hardware.agent_version)
_load_tls = Identity.tls
_verify = SSlibKey.verify_signature


@lru_cache(KEPT)
def _read(data: bytes) -> Any:
    metadata = _deserialize(JSONDeserializer(), data)
    setattr(metadata.signed, _CANONICAL, _serialize(CanonicalJSONSerializer(), metadata.signed))
    return metadata


def _canonical(serializer: CanonicalJSONSerializer, signed: Any) -> bytes:
    kept: bytes | None = getattr(signed, _CANONICAL, None)
    return kept if kept is not None else _serialize(serializer, signed)


@lru_cache(4 * KEPT)
def _holds(keyid: str, scheme: str, public: str, signer: str, signature: str, data: bytes) -> None:
    key = SSlibKey(keyid, "ed25519", scheme, {"public": public})
    _verify(key, Signature(signer, signature), data)


def _verified(key: SSlibKey, signature: Signature, data: bytes) -> None:
    if key.keytype != "ed25519":
        _verify(key, signature, data)
        return
    # What does not hold raises, and is not remembered.
    _holds(key.keyid, key.scheme, key.keyval["public"], signature.keyid, signature.signature, data)


_engines: dict[str, Engine] = {}


def _engine(url: URL, **more: Any) -> Engine:
    """Statements that a server of this process has put into words once are not put into words again by the next."""
    engine = create_engine(url, **more)
    first = _engines.setdefault(url.drivername, engine)
    engine.dialect, engine._compiled_cache = first.dialect, first._compiled_cache
    return engine


@lru_cache(KEPT)
def _context(files: tuple[bytes, ...], reader: "_Reader") -> ssl.SSLContext:
    return reader.read()


class _Reader:
    """Reads an identity's files; any two are equal, for what is read of the same bytes is the same."""

    def __init__(self, identity: Identity) -> None:
        self.read = lambda: _load_tls(identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reader)

    def __hash__(self) -> int:
        return 0


def _tls(identity: Identity) -> ssl.SSLContext:
    """Nobody shakes hands with it here; that the files fit together is what it is made for."""
    try:
        files = tuple((identity.folder / name).read_bytes() for name in ("ca.pem", "cert.pem", "key.pem"))
    except OSError:
        return _load_tls(identity)
    return _context(files, _Reader(identity))


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """For one play."""
    replaced: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
        (Identity, "tls", _tls),
        (catalog, "create_engine", _engine),
        (hardware, "agent_version", _agent_version),
        (JSONDeserializer, "deserialize", lambda _, data: _read(data)),
        (CanonicalJSONSerializer, "serialize", _canonical),
        (SSlibKey, "verify_signature", _verified),
    )
    with contextlib.ExitStack() as stack:
        for kind, name, value in replaced:
            stack.enter_context(mock.patch.object(kind, name, value))
        yield
