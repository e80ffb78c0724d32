"""What an agent that was cut off left in `run/`: nothing there outlives the agent."""

from device.repair.fault import Fault, Place


def find(place: Place) -> list[Fault]:
    """Everything but the lock, what the agent said of itself last, and the folder that containers have mounted."""
    run, ours = place.layout.run, {place.layout.lock, place.layout.status}
    if place.layout.link.is_dir() and not place.layout.link.is_symlink():
        ours.add(place.layout.link)
    found = sorted(path for path in run.iterdir() if path not in ours) if run.is_dir() else []
    if not found:
        return []

    def mend() -> str:
        place.remove_all(found)
        return "removed"

    names = ", ".join(path.name for path in found[:5]) + (" and more" if len(found) > 5 else "")
    return [Fault(f"left in {run} by an agent that does not run: {names}", mend, quiet=True)]
