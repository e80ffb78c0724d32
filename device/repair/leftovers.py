"""Temporary files that a cut left behind. Nothing refers to them; each cut may leave one."""

from collections.abc import Iterator
from pathlib import Path

from device.repair.fault import Fault, Place
from signing.durable import TEMPORARY_PREFIX


def find(place: Place) -> list[Fault]:
    """In every folder that is written to, but for `trust`: its keeper sweeps there, and may still be at work."""
    found = [path for folder in _folders(place) for path in sorted(folder.glob(f"{TEMPORARY_PREFIX}*"))]
    if not found:
        return []

    def mend() -> str:
        place.remove_all(found)
        return "removed"

    return [Fault(f"{len(found)} unfinished files of a start that was cut off", mend, quiet=True)]


def _folders(place: Place) -> Iterator[Path]:
    layout = place.layout
    yield from (layout.state, layout.identity, layout.store / "sha256", layout.store / "parts", layout.state / "sets")
