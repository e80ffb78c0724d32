"""`device.toml` that an agent could not start with."""

from device.repair.fault import Fault, Place
from device.settings import load
from protocol.errors import SettingsError, StateError


def find(place: Place) -> list[Fault]:
    """What the settings' own reader says."""
    try:
        load(place.layout.settings)
    except (SettingsError, StateError) as error:
        advice = error.hint or "correct the file; device/README.md lists what may stand there"
        return [Fault(error.message, advice=advice)]
    return []
