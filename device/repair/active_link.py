"""The link `active`: outside readers go by it, and it follows the update record."""

from collections.abc import Callable

from device.repair.fault import Fault, Place
from device.repair.opened import opened_state


def find(place: Place) -> list[Fault]:
    """A link that leads nowhere, or to another release than the record names."""
    link = place.layout.state / "active"
    with opened_state(place) as state:
        if state is None:
            return []
        wanted = state.record().active
    shown = link.readlink().name if link.is_symlink() else None
    leads = (link / "manifest.json").exists()
    if wanted is None:
        return [] if shown is None else [Fault("`active` names a release, and none is active", _hiding(place))]
    if shown == wanted and leads:
        return []
    what = "is missing" if shown is None else f"leads to {shown[:12]}{'' if leads else ', which is not there'}"
    what = f"`active` {what}; {wanted[:12]} is active"
    if not (place.layout.state / "sets" / wanted / "manifest.json").exists():
        return [Fault(what, advice="the agent makes the set and the link when it starts", quiet=True)]

    def mend() -> str:
        place.disk.point(link, f"sets/{wanted}")
        return "it leads there now"

    return [Fault(what, mend, quiet=True)]


def _hiding(place: Place) -> Callable[[], str]:
    def mend() -> str:
        place.disk.unlink(place.layout.state / "active")
        return "removed"

    return mend
