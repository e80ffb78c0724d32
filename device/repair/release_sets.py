"""Folders in `sets/`: those that no release of the record names, and those whose manifest is not what names them."""

from collections.abc import Callable
from pathlib import Path

from device.repair.fault import Fault, Place
from device.repair.opened import opened_state
from device.store import Store
from protocol import limits
from protocol.errors import Refused, StateError
from protocol.ids import digest, is_digest


def find(place: Place) -> list[Fault]:
    """Sets are second names of the store's files, so that they can be made anew at any time."""
    folder = place.layout.sets
    with opened_state(place) as state:
        if state is None or not folder.is_dir():
            return []
        record = state.record()
    offer = record.offer.release if record.offer is not None else None
    named = {held.digest for held in (record.committed, record.previous, offer) if held is not None}
    found = []
    for path in sorted(path for path in folder.iterdir() if is_digest(path.name)):
        if path.name not in named:
            what = f"sets/{path.name[:12]} is of no release that this machine has"
            found.append(Fault(what, _removing(place, path), quiet=True))
        elif not _is_sound(path):
            found.append(Fault(f"sets/{path.name[:12]} lost its manifest", _renaming(place, path)))
    return found


def _is_sound(path: Path) -> bool:
    try:
        return digest((path / "manifest.json").read_bytes()) == path.name
    except OSError:
        return False


def _renaming(place: Place, path: Path) -> Callable[[], str]:
    def mend() -> str:
        store = Store(place.layout.store, disk=place.disk, sweep=False)
        try:
            store.read(path.name, limits.MANIFEST_BYTES)
        except (StateError, Refused):
            return _removing(place, path)()
        place.disk.unlink(path / "manifest.json")
        place.disk.link(store.path(path.name), path / "manifest.json")
        return "it is there again, from the store"

    return mend


def _removing(place: Place, path: Path) -> Callable[[], str]:
    def mend() -> str:
        place.disk.remove_tree(path)
        return "removed: the agent makes the sets that it serves anew"

    return mend
