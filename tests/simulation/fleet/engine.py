"""The container engine of a machine of a play, without processes: what it holds outlives lives, and bad things happen.

It is `tests.fakes.engine`, which keeps the port's contract, in the play's time. Power takes it down with the machine;
beside that it is killed over a call or alone, its disk is full for a while, and somebody removes by hand what is there.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from device.containers.engine import Wish
from protocol.container import spec_digest
from protocol.ids import Digest
from tests.fakes.engine import Behaviour, FakeDaemon, FakeEngine, Moment, _Fate
from tests.simulation.fleet.power import CURRENT
from tests.simulation.fleet.releases import ENDS, SICK, Made

if TYPE_CHECKING:
    from tests.simulation.fleet.machine import Machine

SOON_S: Final = 7.0  # a bad container shows so soon that no machine adds up a trial of short lives
OFF_S: Final = (5.0, 60.0, 3600.0, 20_000.0)
MOMENTS: Final[tuple[Moment, ...]] = ("before", "half", "after")
LOOKS: Final = ("view", "log")


class Daemon(FakeDaemon):
    """See the module.

    Args:
        machine: Whose engine it is.
        chance: Of what happens to it.
    """

    def __init__(self, machine: "Machine", chance: random.Random) -> None:
        super().__init__(machine.world.loop.time, behave=_behave)
        self._machine = machine
        self._chance = chance
        self._harmed_s = 0.0
        self._downs = 0
        self.may_lose_images = True  # what the store has no more is fetched again, while somebody offers it
        self.images_lost = 0

    def is_seen(self, looked_s: float) -> bool:
        """Whether a look of that time shows what runs: no container ended by itself since, and none was taken away."""
        self.running()
        ends_s = [made.ended[0] for made in self.made.values() if made.ended is not None]
        return self.up and looked_s > max(self._harmed_s, *ends_s, 0.0)

    def power(self, on: bool) -> None:
        """Of the machine. The engine is up a while after the machine is."""
        if on:
            self._up_after(self._chance.choice((1.0, 15.0, 120.0)))
        else:
            self.live_restore = False
            self._down()

    def die(self) -> None:
        """It is killed; somebody starts it again."""
        self.live_restore = self._chance.random() < 0.3
        self._machine.world.fault("engine-killed", self._machine.name, self.calls[-1] if self.calls else "")
        self._down()
        self._up_after(self._chance.choice(OFF_S) * self._chance.uniform(0.5, 1.5))

    def calm_down(self) -> None:
        self.dies_at.clear()
        self.room_bytes = None

    def dies_soon(self) -> None:
        """Over one of its next calls, if that many come."""
        self.dies_at = {len(self.calls) + 1 + int(self._chance.random() * 12): self._chance.choice(MOMENTS)}

    async def weather(self) -> None:
        """What happens to it by itself."""
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / 15_000))
            self._chance.choice((self.dies_soon, self.die, self._fill, self._lose_image, self._lose_container))()

    def _fill(self) -> None:
        """Not another byte goes in, for hours."""
        self._machine.world.fault("engine-full", self._machine.name)
        self.room_bytes = sum(self.lengths[name] for name in self.layers)
        self._machine.world.loop.call_later(self._chance.choice((3600.0, 40_000.0)), self.calm_down)

    def _lose_image(self) -> None:
        if self.marked and self.may_lose_images:
            self._machine.world.fault("image-lost", self._machine.name)
            self.images_lost += 1
            self.lose(self._chance.choice(sorted(self.marked)))

    def _lose_container(self) -> None:
        if self.made:
            self._machine.world.fault("container-removed", self._machine.name)
            self._harmed_s = self.clock()
            del self.made[self._chance.choice(list(self.made))]

    def _down(self) -> None:
        self._downs += 1
        self._harmed_s = self.clock()
        super().die()

    def _up_after(self, seconds: float) -> None:
        downs = self._downs

        def start() -> None:
            if downs == self._downs and not self.up and self._machine.plug is not None:
                self.restart()

        self._machine.world.loop.call_later(seconds, start)


class Engine(FakeEngine):
    """What an agent speaks to. What it asks for takes a while, and each change is a moment for the power to go.

    Args:
        daemon: The machine's.
        chance: Of how long it takes.
    """

    def __init__(self, daemon: Daemon, chance: random.Random) -> None:
        super().__init__(daemon)
        self._chance = chance
        self._plug = CURRENT.get()
        assert self._plug is not None

    async def _enter(self, call: str) -> _Fate:
        await asyncio.sleep(self._chance.choice((0.01, 0.2, 3.0)))
        self._without_power_nothing()
        if call not in LOOKS:
            assert self._plug is not None
            self._plug.before(f"engine {call}")
        return await super()._enter(call)

    async def _leave(self, fate: _Fate) -> None:
        self._without_power_nothing()
        await super()._leave(fate)
        await asyncio.sleep(0)

    def _without_power_nothing(self) -> None:
        assert self._plug is not None
        self._plug.check()


def specs_of(made: Made) -> Mapping[str, list[Digest]]:
    """What is to run for a release, as `FakeDaemon.running` tells it."""
    return {
        one.container.name: [spec_digest(one.container.name, one.image.config.sha256, one.container.run)]
        for one in sorted(made.release.containers, key=lambda one: one.container.name)
    }


def images_of(made: Made) -> set[Digest]:
    return {one.image.config.sha256 for one in made.release.containers}


def _behave(wish: Wish) -> Behaviour:
    if wish.command == SICK:
        return Behaviour(healthy_after_s=1.0, unhealthy_after_s=SOON_S)
    return Behaviour(lives_s=SOON_S) if wish.command == ENDS else Behaviour(healthy_after_s=2.0)
