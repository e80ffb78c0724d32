"""How messages and files of ours are written and read: msgspec, strict, length first.

JSON where a person may want to look (manifests, signed objects, sync), MessagePack where bytes count (batches, segment
indexes). Unknown fields are refused: what a newer side must tell an older one stands in `format` and `min_agent`.
"""

import functools
import threading
from typing import Any, Final, TypeVar, dataclass_transform

import msgspec

from protocol.errors import Reason, Refused

T = TypeVar("T")

_FIRST_USE: Final = threading.Lock()
"""msgspec looks at a record's fields when it is first read, and two threads that do so at once end the process."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all records that cross a boundary: frozen, strict, defaults left out."""


def encode(message: Any) -> bytes:
    """JSON bytes, keys in the order of the fields: the same record gives the same bytes."""
    return msgspec.json.encode(message)


def decode(data: bytes | str, kind: type[T], *, limit: int, reason: Reason = Reason.METADATA) -> T:
    """Reads JSON bytes into `kind`.

    Args:
        data: From outside.
        kind: A `Message` or another type that msgspec knows.
        limit: The most bytes that are looked at.
        reason: What a failure is called.

    Raises:
        Refused: Too long, not JSON, or not a `kind`.
    """
    _check_length(data, limit, kind)
    try:
        return json_reader(kind).decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused(reason, f"not a {_name(kind)}: {error}") from error


def json_reader(kind: type[T]) -> msgspec.json.Decoder[T]:
    """What reads `kind` from JSON of our own making; `decode` is for what comes from outside. For any thread."""
    key: Any = kind
    with _FIRST_USE:
        reader: msgspec.json.Decoder[T] = _make_json_reader(key)
    return reader


def pack(message: Any) -> bytes:
    """MessagePack bytes; the same record gives the same bytes."""
    return msgspec.msgpack.encode(message)


def unpack(data: bytes, kind: type[T], *, limit: int, reason: Reason = Reason.METADATA) -> T:
    """Reads MessagePack bytes into `kind`; as `decode`."""
    _check_length(data, limit, kind)
    try:
        return _pack_reader(kind).decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused(reason, f"not a {_name(kind)}: {error}") from error


def _pack_reader(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    key: Any = kind
    with _FIRST_USE:
        reader: msgspec.msgpack.Decoder[T] = _make_pack_reader(key)
    return reader


@functools.cache
def _make_json_reader(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@functools.cache
def _make_pack_reader(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def _check_length(data: bytes | str, limit: int, kind: Any) -> None:
    if len(data) > limit:
        raise Refused(Reason.LENGTH, f"{_name(kind)} of {len(data)} bytes: at most {limit} are read")


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
