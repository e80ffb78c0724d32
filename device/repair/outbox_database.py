"""The outbox: whether it can be opened and is whole, and damaged files that wait to be looked through. The agent
salvages them itself while intake goes on."""

from device.outbox.damage import quarantined, why_damaged
from device.repair.fault import Fault, Place
from device.unopened import why_unopenable


def find(place: Place) -> list[Fault]:
    """A disk that does not let it open; damage, at a start by the agent itself; files that were not looked through."""
    path = place.layout.outbox_db
    found = []
    if why := why_unopenable(path):
        found.append(Fault(f"{why}: results are inferred and not kept", advice="free space on its disk"))
    elif place.thorough and (why := why_damaged(path)):
        advice = "the agent that meets it sets the file aside, sends what rows it finds, and counts the lost ones"
        found.append(Fault(f"{path.name} is damaged: {why}", advice=advice))
    return found + [
        Fault(f"{path.name} is a damaged outbox", advice="the running agent looks for its rows and sends what it finds")
        for path in quarantined(path)
    ]
