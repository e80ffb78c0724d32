"""Where plays begin: a server with machines that are enrolled and run release 1.0.0. Made once in a process, in calm
weather, by the product itself; each play begins on a copy.
"""

import asyncio
import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from device.enrol import enrol
from device.layout import Layout
from signing.repository import RepositoryKind
from tests.simulation.fleet import house as houses
from tests.simulation.fleet import machine as machines
from tests.simulation.fleet.checker import Checker
from tests.simulation.fleet.faults import CALM
from tests.simulation.fleet.house import House, running
from tests.simulation.fleet.link import Air
from tests.simulation.fleet.machine import Machine, switched_on
from tests.simulation.fleet.people import RotatingManagers
from tests.simulation.fleet.power import SCRATCH
from tests.simulation.fleet.releases import KINDS, make
from tests.simulation.fleet.stage import staged
from tests.simulation.fleet.world import World

NAMES = ("tractor", "sprayer", "packer")
COUNTERS = (2, 3, 4)


@dataclass(frozen=True)
class Template:
    """What a play copies.

    Args:
        folder: `server`, and one folder for each machine.
        managers: As they stand.
        begins_s: When the play begins.
    """

    folder: Path
    managers: RotatingManagers
    begins_s: float

    def copy_to(self, folder: Path, names: tuple[str, ...]) -> None:
        # With its hard links: `sets/` holds second names of the store's files.
        subprocess.run(["cp", "-a", *(str(self.folder / name) for name in ("server", *names)), str(folder)], check=True)


def scratch() -> Path:
    """A folder in memory where there is one, for a play syncs thousands of times. `HEADLAND_SCRATCH` names another."""
    memory = os.environ.get("HEADLAND_SCRATCH") or ("/dev/shm" if Path("/dev/shm").is_dir() else None)
    return Path(tempfile.mkdtemp(prefix=SCRATCH, dir=memory))


@cache
def template() -> Template:
    folder = scratch()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    world = World(0)
    managers = RotatingManagers(world.now())
    houses.prepare(folder / "server", managers, world.now_ms())
    house = House(folder / "server", managers, world, poll_s=60)
    with staged(world):
        world.loop.run_until_complete(_prologue(folder, world, house))
    world.loop.close()
    return Template(folder, house.managers, world.loop.time() + 60)


async def _prologue(folder: Path, world: World, house: House) -> None:
    async with running(house):
        await house.push("both repositories")
        for number in COUNTERS:
            for kind in KINDS:
                await house.put(make(number, kind))
        await house.put(make(1, "good"))
        await house.release(make(1, "good"))
        await house.prepare_payloads(make(number, kind) for number in COUNTERS for kind in KINDS)
        await house.rollout("first", "1.0.0", 10.0)
        for name in NAMES:
            (folder / name).mkdir()
            await _enrol(folder / name, name, world, house)
        await asyncio.gather(*(_install(folder / name, name, world, house) for name in NAMES))


async def _enrol(state: Path, name: str, world: World, house: House) -> None:
    air = Air(name, world, house, CALM)
    token = await house.token(name)
    layout = Layout(state)
    layout.settings.write_text(machines.SETTINGS)
    await enrol(layout, token, open_door=lambda _, tls: air.line(tls), random=lambda: 0.5)


async def _install(state: Path, name: str, world: World, house: House) -> None:
    machine = Machine(name, state, world, house, CALM, Checker(world))
    async with switched_on(machine), asyncio.timeout(2 * 86_400):
        while not machine.has_settled():  # noqa: ASYNC110  (it is virtual time that passes)
            await asyncio.sleep(60)


@cache
def roots(kind: RepositoryKind, count: int) -> Mapping[int, bytes]:
    """The next roots, signed ahead: each changes a key, and is signed by enough holders of it and of the one before."""
    managers: Any = template().managers
    first = max((managers.image if kind == "image" else managers.director).roots) + 1
    return {number: managers.sign(managers.make_root(kind, number)) for number in range(first, first + count)}
