"""Stored metadata that cannot be read. Verifying is the keeper's work: here is only what the disk did to the files.

What is removed comes again with the next contact; the floors in `state.db` see to it that nothing older does.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from device.repair.fault import Fault, Place
from protocol import limits


def find(place: Place) -> list[Fault]:
    """Files that hold no metadata."""
    found = []
    for name in ("image", "director"):
        folder = place.layout.state / "trust" / name
        for path in sorted((*folder.glob("*.json"), *folder.glob("root_history/*.json"))):
            if not is_metadata(path):
                found.append(Fault(f"trust/{path.relative_to(folder.parent)} is damaged", _mending(place, path)))
    return found


def is_metadata(path: Path) -> bool:
    """Whether the file is there and looks like signed metadata."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.METADATA_BYTES + 1)
        found = msgspec.json.decode(data)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return len(data) <= limits.METADATA_BYTES and isinstance(found, dict) and {"signed", "signatures"} <= found.keys()


def _mending(place: Place, path: Path) -> Callable[[], str]:
    def mend() -> str:
        if path.name == "root.json":
            kept = [each for each in (path.parent / "root_history").glob("*.root.json") if is_metadata(each)]
            newest = max(kept, key=lambda each: int(each.name.partition(".")[0]), default=None)
            if newest is not None:
                place.disk.write(path, newest.read_bytes())
                return f"{newest.name} of its history stands in its place"
        place.disk.unlink(path)
        return "removed: it comes again with the next contact"

    return mend
