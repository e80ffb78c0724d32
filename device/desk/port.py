"""What a running agent can be asked, whoever brings the question."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from device.kits.exporting import ExportsShown
from device.kits.forcing import Challenge, Forced
from device.kits.shown import KitShown, KitsShown
from protocol.ids import Name
from protocol.kits import KitId
from protocol.messages import SignedForce


@dataclass(frozen=True)
class Desk:
    """What the routes lead to.

    Args:
        status: Everything that `headland-device status` tells, as JSON. May take a while.
        shown: The kits.
        look: Has sticks looked at again.
        apply: Has a kit installed.
        challenge: Asks for a technician's signature.
        force: Carries a technician's request out.
        export: Writes results to a folder, or to the sticks that are there; None: nothing writes any here.
    """

    status: Callable[[], Awaitable[bytes]]
    shown: Callable[[], KitsShown]
    look: Callable[[Path | None], Awaitable[KitsShown]]
    apply: Callable[[KitId], Awaitable[KitShown]]
    challenge: Callable[[Name], Awaitable[Challenge]]
    force: Callable[[SignedForce], Awaitable[Forced]]
    export: Callable[[Path | None], Awaitable[ExportsShown]] | None = None
