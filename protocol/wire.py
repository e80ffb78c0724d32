"""How messages and files of ours are written and read: msgspec, strict, length first.

JSON where a person may want to look (manifests, signed objects, sync), MessagePack where bytes count (batches, segment
indexes). Unknown fields are refused: what a newer side must tell an older one stands in `format` and `min_agent`.
"""

from typing import Any, TypeVar, dataclass_transform

import msgspec

from protocol.errors import Reason, Refused

T = TypeVar("T")


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
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused(reason, f"not a {_name(kind)}: {error}") from error


def pack(message: Any) -> bytes:
    """MessagePack bytes; the same record gives the same bytes."""
    return msgspec.msgpack.encode(message)


def unpack(data: bytes, kind: type[T], *, limit: int, reason: Reason = Reason.METADATA) -> T:
    """Reads MessagePack bytes into `kind`; as `decode`."""
    _check_length(data, limit, kind)
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused(reason, f"not a {_name(kind)}: {error}") from error


def _check_length(data: bytes | str, limit: int, kind: Any) -> None:
    if len(data) > limit:
        raise Refused(Reason.LENGTH, f"{_name(kind)} of {len(data)} bytes: at most {limit} are read")


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
