"""The links `active`: outside readers and containers go by them, and they follow the update record."""

from collections.abc import Callable
from pathlib import Path

from device.repair.fault import Fault, Place
from device.repair.opened import opened_state
from device.update.sets import SHORTCUT


def find(place: Place) -> list[Fault]:
    """`sets/active` that leads nowhere, or to another release than the record names; `active` that does not lead to
    it."""
    layout = place.layout
    with opened_state(place) as state:
        if state is None:
            return []
        wanted = state.record().active
    shown = str(layout.active.readlink()) if layout.active.is_symlink() else None
    if wanted is None:
        if shown is None:
            return []
        return [Fault("`sets/active` names a release, and none is active", _hiding(place))]
    if shown == wanted and (layout.active / "manifest.json").exists():
        return _shortcut(place)
    leads = shown is not None and layout.active.exists()
    what = "is missing" if shown is None else f"leads to {shown[:12]}{'' if leads else ', which is not there'}"
    what = f"`sets/active` {what}; {wanted[:12]} is active"
    if not (layout.sets / wanted / "manifest.json").exists():
        return [Fault(what, advice="the agent makes the set and the link when it starts", quiet=True)]
    return [Fault(what, _pointing(place, layout.active, wanted), quiet=True), *_shortcut(place)]


def _shortcut(place: Place) -> list[Fault]:
    link = place.layout.shortcut
    if link.is_symlink() and str(link.readlink()) == SHORTCUT:
        return []
    return [Fault(f"`active` does not lead to {SHORTCUT}", _pointing(place, link, SHORTCUT), quiet=True)]


def _pointing(place: Place, link: Path, target: str) -> Callable[[], str]:
    def mend() -> str:
        place.disk.point(link, target)
        return "it leads there now"

    return mend


def _hiding(place: Place) -> Callable[[], str]:
    def mend() -> str:
        place.disk.unlink(place.layout.active)
        return "removed"

    return mend
