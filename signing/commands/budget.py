"""`--budget`: how many bytes over the air a rollout allows each machine."""

import re
from collections.abc import Sequence
from typing import Any, Final

from protocol.errors import StateError
from protocol.ids import parse_name

_UNITS: Final = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}
_FORMS: Final = "such as --budget release=40M --budget cellular=5M, or --budget none"


def parse_budget(specs: Sequence[str]) -> dict[str, Any] | None:
    """Reads `release=40M` (for the release on a machine) and `LINK=5M` (for a day over links of that kind).

    Returns:
        A `Budget` for the server; None when nothing was said: the server's default holds.

    Raises:
        StateError: With the forms that are understood.
    """
    if not specs:
        return None
    if "none" in specs:
        if len(specs) > 1:
            raise StateError("--budget none stands alone", hint=_FORMS)
        return {}
    budget: dict[str, Any] = {}
    for spec in specs:
        what, _, size = spec.partition("=")
        if what == "release":
            budget["release_bytes"] = parse_size(size)
        else:
            budget.setdefault("day_bytes", {})[parse_name(what, "kind of link")] = parse_size(size)
    return budget


def parse_size(text: str) -> int:
    """Bytes, with k, M or G for thousands, millions and so on.

    Raises:
        StateError: Another form.
    """
    found = re.fullmatch(r"([0-9]{1,12})([kMG]?)B?", text)
    if found is None:
        raise StateError(f"{text!r} is no number of bytes", hint="such as 500k, 40M or 4GB")
    return int(found[1]) * _UNITS[found[2]]


def show_budget(budget: dict[str, Any]) -> str:
    """A budget in words; empty when nothing is limited."""
    limits = [f"{bytes_:,} a day over {link}" for link, bytes_ in budget.get("day_bytes", {}).items()]
    if budget.get("release_bytes") is not None:
        limits.insert(0, f"{budget['release_bytes']:,} for the release")
    return f"bytes: at most {', '.join(limits)}" if limits else ""
