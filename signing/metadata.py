"""TUF metadata as this house reads and writes it: the one edge where bytes become `Metadata` and back.

Leaves the judgement (who signed, which version, is it fresh) to `signing.repository` and `signing.trust_store`.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.kits import LIST_PROPOSED_DAYS
from protocol.objects import FIELD, TECHNICIANS
from protocol.wire import decode

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)
T = TypeVar("T")

LIFETIMES: Final[Mapping[str, timedelta]] = {
    # Offline roles outlive a season and the winter after it, so that managers sign them at leisure.
    "root": timedelta(days=365),
    "targets": timedelta(days=365),
    # How long all online keys in wrong hands can keep a delisting from a machine (DESIGN section 3).
    "product": timedelta(days=180),
    # How long a lost stick's key can go on forcing on machines that see neither the server nor a newer kit.
    TECHNICIANS: timedelta(days=LIST_PROPOSED_DAYS),
    # Online roles are re-signed by the server at half of it. A week lets a machine come home on Monday with what it
    # fetched on Friday, and bounds how long a stolen timestamp hides news.
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=7),
}
"""How long a role's metadata is good for. A product's role is `product`."""

SIGNATURES_MAX: Final = 64  # more managers than any farm has; each signature costs a verification
KEYS_MAX: Final = 256
ROLES_MAX: Final = 256
VERSION_MAX: Final = 1 << 53  # what every JSON reader holds exactly


def lifetime(role: str) -> timedelta:
    """The lifetime of `role`'s metadata; any name that is neither TUF's own nor `technicians` is a product's."""
    return LIFETIMES.get(role, LIFETIMES["product"])


def parse(data: bytes, kind: type[S], what: str) -> Metadata[S]:
    """Reads metadata of one type. Nothing is verified but its shape and our limits.

    Args:
        data: From outside.
        kind: `Root`, `Targets`, `Snapshot` or `Timestamp`.
        what: The file's name, for messages.

    Raises:
        Refused: `METADATA`, `LENGTH` or `LIMIT`.
    """
    if len(data) > limits.METADATA_BYTES:
        raise Refused(Reason.LENGTH, f"{what}: {len(data)} bytes, at most {limits.METADATA_BYTES} are read")
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except (DeserializationError, RepositoryError, RecursionError, ValueError) as error:
        raise Refused(Reason.METADATA, f"{what}: not TUF metadata: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise Refused(Reason.METADATA, f"{what}: metadata of type {metadata.signed.type}, not {kind.type}")
    _check_limits(metadata, what)
    return metadata


def terms(signed: Targets, kind: type[T], what: str) -> T:
    """Our field `headland` inside the signed part.

    Raises:
        Refused: `METADATA`: absent, or not a `kind`.
    """
    field = signed.unrecognized_fields.get(FIELD)
    if field is None:
        raise Refused(Reason.METADATA, f"{what}: the field {FIELD!r} is absent from the signed part")
    return decode(msgspec.json.encode(field), kind, limit=limits.METADATA_BYTES)


def terms_field(record: Any) -> dict[str, Any]:
    """What to hand as `unrecognized_fields` so that `record` stands in the signed part."""
    return {FIELD: plain(record)}


def plain(record: Any) -> Any:
    """A record as the JSON types that TUF's canonical form knows; for fields that TUF carries and does not read."""
    return msgspec.json.decode(msgspec.json.encode(record))


def expiry(now: datetime, role: str) -> datetime:
    """When metadata of `role` signed at `now` expires, whole seconds, UTC."""
    return (now.astimezone(UTC) + lifetime(role)).replace(microsecond=0)


def shared_public_keys(keys: Iterable[Key]) -> bool:
    """Whether one public key stands behind two key ids: it would count twice towards a threshold."""
    seen = [(key.keytype, msgspec.json.encode(key.keyval, order="sorted")) for key in keys]
    return len(set(seen)) != len(seen)


def _check_limits(metadata: Metadata[Any], what: str) -> None:
    signed = metadata.signed
    if signed.version > VERSION_MAX:
        raise Refused(Reason.LIMIT, f"{what}: version {signed.version} is above {VERSION_MAX}")
    if len(metadata.signatures) > SIGNATURES_MAX:
        raise Refused(Reason.LIMIT, f"{what}: more than {SIGNATURES_MAX} signatures")
    keys: Mapping[str, Key] = {}
    roles = 0
    if isinstance(signed, Root):
        keys, roles = signed.keys, len(signed.roles)
    elif isinstance(signed, Targets) and signed.delegations is not None:
        keys, roles = signed.delegations.keys, len(signed.delegations.roles or {})
    if len(keys) > KEYS_MAX or roles > ROLES_MAX:
        raise Refused(Reason.LIMIT, f"{what}: more than {KEYS_MAX} keys or {ROLES_MAX} roles")
