"""The outbox: damaged files that wait to be looked through. The agent salvages them itself while intake goes on."""

from device.outbox.damage import quarantined
from device.repair.fault import Fault, Place


def find(place: Place) -> list[Fault]:
    """Files set aside that were not looked through yet."""
    return [
        Fault(f"{path.name} is a damaged outbox", advice="the running agent looks for its rows and sends what it finds")
        for path in quarantined(place.layout.outbox_db)
    ]
