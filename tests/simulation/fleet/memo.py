"""Spares a play what python-tuf and cryptography do over and over: the same bytes parse to the same metadata, and the
same signature by the same key over the same bytes holds again. Nothing is judged otherwise, only sooner.

Metadata that was read is shared by all who read it: nobody in the product changes what it read.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from unittest import mock

from securesystemslib.signer import Signature, SSlibKey
from tuf.api.serialization.json import CanonicalJSONSerializer, JSONDeserializer

KEPT = 4096
_CANONICAL = "_canonical_of_the_play"

_deserialize = JSONDeserializer.deserialize
_serialize = CanonicalJSONSerializer.serialize
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


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """For one play."""
    replaced: tuple[tuple[type, str, Callable[..., Any]], ...] = (
        (JSONDeserializer, "deserialize", lambda _, data: _read(data)),
        (CanonicalJSONSerializer, "serialize", _canonical),
        (SSlibKey, "verify_signature", _verified),
    )
    with contextlib.ExitStack() as stack:
        for kind, name, value in replaced:
            stack.enter_context(mock.patch.object(kind, name, value))
        yield
