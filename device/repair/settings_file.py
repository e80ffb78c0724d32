"""A `device.toml` that an agent cannot start with; one that has run starts with the settings of its last start."""

from device.last_settings import why_unusable
from device.repair.fault import Fault, Place


def find(place: Place) -> list[Fault]:
    """What the settings' own reader says."""
    error = why_unusable(place.layout)
    if error is None:
        return []
    return [Fault(error.message, advice=error.hint or "correct the file; device/README.md lists what may stand there")]
