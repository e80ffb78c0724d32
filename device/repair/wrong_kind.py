"""A folder where a file of ours belongs, or a file where a folder does: no other check can open what lies there.

Repairing a file system after a cut may leave such things, and so may a person's slip.
"""

from pathlib import Path

from device.damage import LOGS, make_way
from device.layout import Layout
from device.repair.fault import Fault, Place
from device.seal import Seals


def find(place: Place) -> list[Fault]:
    """A link counts as what it leads to: a store may lie on another disk."""
    return [_fault(place, path) for path in _wrong(place.layout)]


def _wrong(layout: Layout) -> list[Path]:
    store, trust = layout.store, layout.state / "trust"
    databases = [path.with_name(path.name + end) for path in (layout.state_db, layout.outbox_db) for end in ("", *LOGS)]
    names = ("key.pem", "cert.pem", "ca.pem", "enrolment.json")
    identity = [layout.identity / name for name in names]
    files = (*databases, *identity, *Seals(layout.state_db).paths, layout.status)
    folders = [layout.identity, store, store / "sha256", store / "parts", layout.sets]
    folders += [trust, trust / "image", trust / "director"]
    wrong = [path for path in files if path.exists() and not path.is_file()]
    wrong += [path for path in folders if path.exists() and not path.is_dir()]
    links = (layout.active, layout.shortcut)
    return [*wrong, *(path for path in links if path.exists() and not path.is_symlink())]


def _fault(place: Place, path: Path) -> Fault:
    def mend() -> str:
        return f"renamed to {make_way(path, place.disk).name}; what belongs here is made anew"

    kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "neither file nor folder"
    return Fault(f"{path} is {kind}, which does not belong there", mend)
