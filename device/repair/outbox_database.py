"""The outbox: whether it can be opened, and damaged files that wait to be looked through. The agent salvages them
itself while intake goes on."""

from device.outbox.damage import quarantined
from device.repair.fault import Fault, Place
from device.unopened import why_unopenable


def find(place: Place) -> list[Fault]:
    """A disk that does not let it open, and files set aside that were not looked through yet."""
    why = why_unopenable(place.layout.outbox_db)
    unopened = [Fault(f"{why}: results are inferred and not kept", advice="free space on its disk")] if why else []
    return unopened + [
        Fault(f"{path.name} is a damaged outbox", advice="the running agent looks for its rows and sends what it finds")
        for path in quarantined(place.layout.outbox_db)
    ]
