"""What this machine can run, as it was last looked at: an accelerator may be enumerated after the agent has started."""

import logging
from dataclasses import replace

from device.update.rules import Machine
from device.update.world import World
from protocol.errors import StateError
from protocol.messages import Inventory

log = logging.getLogger(__name__)


class Hardware:
    """Of one machine.

    Args:
        machine: As it was found at the start.
        world: Looks again.
    """

    def __init__(self, machine: Machine, world: World) -> None:
        self._machine = machine
        self._world = world

    @property
    def machine(self) -> Machine:
        """With the newest inventory."""
        return self._machine

    @property
    def inventory(self) -> Inventory:
        """The newest."""
        return self._machine.inventory

    async def look_again(self) -> None:
        """Looks what is there now. It takes seconds: for when a release does not come up."""
        try:
            found = await self._world.probe(self.inventory)
        except StateError as error:
            log.warning("the hardware cannot be looked at: %s", error)
            return
        if found != self.inventory:
            log.info("accelerators: %s; before: %s", found.accelerators, self.inventory.accelerators)
        self._machine = replace(self._machine, inventory=found)
