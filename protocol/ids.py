"""Names and digests: how each is spelt, and the one place that checks it.

Parse at the edge; inside, a `Digest` or a `DeviceId` is known to be well formed, so that it can be part of a path, a
URL or a TUF target name without further thought.
"""

import hashlib
import re
from typing import Annotated, Final

import msgspec

from protocol.errors import Reason, Refused

DIGEST_PATTERN: Final = r"^[0-9a-f]{64}\Z"
NAME_PATTERN: Final = r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z"  # no slash, no dot at the ends, at most 64
VERSION_PATTERN: Final = r"^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(?:[-+][0-9A-Za-z.-]{1,64})?\Z"
RESERVED_ROLES: Final = frozenset(
    {"root", "timestamp", "snapshot", "targets", "assignments", "clock", "receipts", "kits", "technicians"}
)

Digest = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
"""sha256 of the exact bytes, 64 lower-case hexadecimal digits."""
NAME_RULE: Final = "1 to 64 of a-z, 0-9, '.', '_', '-', a letter or digit at both ends"
DeviceId = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description=NAME_RULE)]
ProductName = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description=NAME_RULE)]
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description=NAME_RULE)]
Version = Annotated[
    str, msgspec.Meta(pattern=VERSION_PATTERN, description="three numbers, such as 1.2.3, or these and -NAME or +NAME")
]
Token = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""128 random bits: an epoch, a contact id, a sync token, a nonce."""
Millis = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
"""Milliseconds since 1970-01-01 UTC."""
Length = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


def digest(data: bytes) -> str:
    """sha256 of `data` as a `Digest`."""
    return hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    """Whether `text` is spelt as a digest."""
    return re.match(DIGEST_PATTERN, text) is not None


def is_name(text: str) -> bool:
    """Whether `text` can name a device, a product, a group or a person."""
    return re.match(NAME_PATTERN, text) is not None


def parse_name(text: str, what: str) -> str:
    """Returns `text` if it is a name.

    Args:
        text: From outside.
        what: The word for the message: `device`, `product`.

    Raises:
        Refused: `METADATA`, with the rule in words.
    """
    if not is_name(text):
        raise Refused(
            Reason.METADATA,
            f"{text!r:.80} cannot name a {what}: {NAME_RULE}",
        )
    return text


def parse_product(text: str) -> str:
    """Returns `text` if it can name a product, whose name is that of its TUF role.

    Raises:
        Refused: `METADATA`: misspelt, or the name of one of the other roles.
    """
    if parse_name(text, "product") in RESERVED_ROLES:
        raise Refused(Reason.METADATA, f"{text!r} is the name of a role of its own and cannot name a product")
    return text
