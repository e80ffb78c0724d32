"""The first root of a repository, with which its trust begins where nothing is stored: kept at enrolment only."""

from collections.abc import Callable
from pathlib import Path

from device.repair.fault import Fault, Place
from device.repair.trust_files import is_metadata


def find(place: Place) -> list[Fault]:
    """A first root that is gone or cannot be read. What is trusted by now may stand for it."""
    if not (place.layout.identity / "enrolment.json").exists():
        return []
    found = []
    for name in ("image", "director"):
        path = place.layout.identity / f"{name}.root.json"
        if is_metadata(path):
            continue
        what = f"{path} is {'damaged' if path.exists() else 'missing'}"
        trusted = place.layout.state / "trust" / name / "root.json"
        if not is_metadata(trusted):
            found.append(Fault(what, advice="put it back from a copy of this folder; every machine has the same one"))
            continue
        found.append(Fault(what, _copying(place, trusted, path)))
    return found


def _copying(place: Place, trusted: Path, path: Path) -> Callable[[], str]:
    def mend() -> str:
        place.disk.write(path, trusted.read_bytes(), mode=0o644)
        return "the newest root that is trusted here stands in its place"

    return mend
