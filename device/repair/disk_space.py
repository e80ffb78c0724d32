"""A disk that is nearly full: updates wait, and soon results are dropped."""

from device.repair.fault import Fault, Place
from protocol.limits import MIB


def find(place: Place) -> list[Fault]:
    """Less is free than is kept back for everything but releases."""
    free = place.free(place.layout.state)
    if free >= place.keep_free_bytes:
        return []
    return [
        Fault(
            f"{free / MIB:.1f} MiB are free on the disk of {place.layout.state}, "
            f"{place.keep_free_bytes / MIB:.1f} MiB are kept back for results, databases and the log",
            advice="free space on it: what releases and results take has budgets in device.toml",
        )
    ]
