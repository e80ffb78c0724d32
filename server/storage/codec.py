"""How records stand in the catalog's text columns: JSON, read strictly."""

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from protocol.wire import json_reader

T = TypeVar("T")


def to_json(value: Any) -> str:
    """JSON text; escaped, so that no NUL ever reaches the database."""
    return msgspec.json.encode(value).decode()


def from_json(text: str, kind: type[T]) -> T:
    """What `to_json` wrote. A failure is a bug or a damaged catalog, never input."""
    return json_reader(kind).decode(text)


def pairs(rows: Iterable[Any]) -> dict[Any, Any]:
    """Rows of two columns, the first being the key."""
    return {row[0]: row[1] for row in rows}
