"""Key, certificate, CA and enrolment: without one of them no server is spoken to. They are made at enrolment only."""

from device import identity
from device.repair.fault import Fault, Place
from protocol.errors import StateError

AGAIN = (
    "put it back from a copy, or: headland-device enroll --state DIR --token TOKEN, with a new token for this device"
)


def find(place: Place) -> list[Fault]:
    """What cannot be read of them."""
    folder = place.layout.identity
    if not (folder / "key.pem").exists() and (folder / "enrolment.json").exists():
        return [Fault(f"{folder / 'key.pem'} is missing: this machine cannot show who it is", advice=AGAIN)]
    try:
        who = identity.load(folder)
    except StateError as error:
        return [Fault(error.message, advice=AGAIN)]
    try:
        who.tls()
    except StateError as error:
        return [Fault(error.message, advice=AGAIN)]
    return []
