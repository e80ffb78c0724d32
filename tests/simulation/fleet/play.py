"""One play: a seed becomes a story, the story is lived in bad weather, and calm weather must bring everybody home."""

import asyncio
import contextlib
import gc
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web_app

from device.update.states import State
from protocol.kits import is_kit
from tests.simulation.fleet.checker import BrokenError, Checker
from tests.simulation.fleet.field import Field
from tests.simulation.fleet.house import House, running
from tests.simulation.fleet.machine import Machine, switched_on
from tests.simulation.fleet.power import NEVER
from tests.simulation.fleet.releases import GOOD, make
from tests.simulation.fleet.stage import staged
from tests.simulation.fleet.story import WINTER_S, Act, Story, draw_kits, draw_story
from tests.simulation.fleet.template import roots, scratch, template
from tests.simulation.fleet.world import DAY_S, World, ended

CALM_S = 12 * DAY_S
"""As long as calm weather may take to bring everybody home: what an attack or a back-off may cost, and no more."""

ALONE_S = 3 * DAY_S
"""Of calm weather, in which nobody brings a stick: what waits for one must not hold up what the server has."""

CHAIN = 310
"""Roots signed ahead: as many as one rotation brings at most, and what the winter signs besides."""

SHOWN = ("rollouts", "releases", "devices")


@dataclass
class Played:
    """How a play went.

    Args:
        seed: That replays it.
        story: What happened, in a line.
        wrong: What did not hold; empty when all is well.
        hash: Of the log.
        lines: The log.
        seen: How often each fault happened.
        steps: How often the checker looked.
        cpu_s: What it took.
        days: Of virtual time.
    """

    seed: int
    story: str = ""
    wrong: str = ""
    hash: str = ""
    lines: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    cpu_s: float = 0.0
    days: float = 0.0


def play(seed: int, story: Story | None = None) -> Played:
    """Plays one seed. Whatever goes wrong stands in the answer.

    Args:
        seed: Decides everything.
        story: Instead of the one that is drawn.
    """
    made = template()
    began_s = time.process_time()
    world = World(seed, made.begins_s)
    story = story or draw_kits(world.chance.of("kits"), draw_story(world.chance.of("story")))
    played = Played(seed, story.told())
    with _folder() as folder, _collected_afterwards():
        made.copy_to(folder, story.machines)
        checker = Checker(world)
        house = House(folder / "server", made.managers, world, story.poll_s)
        house.released["1.0.0"] = make(1, "good")
        machines = [Machine(name, folder / name, world, house, story.ills, checker) for name in story.machines]
        for machine in machines:
            machine.engine.may_lose_images = all(act.kind != "delist" for act in story.acts)
        field = Field(folder / "field", house, world, world.chance.of("field"))
        if story.has_kits:
            field.note_makers()
            checker.kits.field = field
        with staged(world):
            try:
                world.loop.run_until_complete(_Stage(world, house, machines, story, checker, field).all())
            except Exception as error:
                played.wrong = f"{type(error).__name__}: {error}"
                if not isinstance(error, BrokenError):
                    import traceback

                    played.wrong += "\n" + "".join(traceback.format_exception(error)[-12:])
            finally:
                world.loop.close()
    played.hash, played.lines, played.seen = world.hash(), world.lines, dict(world.seen)
    played.steps, played.days = checker.steps, world.loop.time() / DAY_S
    played.cpu_s = time.process_time() - began_s
    return played


class _Stage:
    def __init__(
        self, world: World, house: House, machines: list[Machine], story: Story, checker: Checker, people: Field
    ) -> None:
        self.world = world
        self.house = house
        self.machines = machines
        self.story = story
        self.checker = checker
        self.field = people
        self._helped: set[str] = set()

    async def all(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(running(self.house))
            for machine in self.machines:
                await stack.enter_async_context(switched_on(machine))
            whole = self.world.loop.create_task(self._whole())
            try:
                await asyncio.wait({whole, self.world.broken}, return_when=asyncio.FIRST_COMPLETED)
                if self.world.broken.done():
                    self.world.broken.result()
                await whole
            finally:
                await ended(whole)
                await self.field.end()

    async def _whole(self) -> None:
        began_s = self.world.loop.time()
        winter_s = 0.0
        for act in self.story.acts:
            await self._until(began_s + act.at_s + winter_s)
            self.world.log("story", f"{act.kind} {act.what or ''}".rstrip())
            if act.kind == "winter":
                await self._winter()
                winter_s += WINTER_S
            else:
                await self._act(act)
        await self._until(began_s + self.story.lasts_s + winter_s)
        await self._calm()

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.world.loop.time()))

    async def _act(self, act: Act) -> None:
        match act.kind:
            case "release":
                number, kind, error_percent, floor = act.what
                made = make(number, kind)  # type: ignore[arg-type]  # as the story says
                await self.house.release(made, floor)  # type: ignore[arg-type]
                if error_percent is None:
                    return  # by kit only
                await self.house.rollout(f"r{number}", made.release.version, error_percent)  # type: ignore[arg-type]
            case "delist":
                permitted = {one.release for one in self.field.permits}  # those are listed as long as the permit is
                if f"{act.what[0]}.0.0" in self.house.released.keys() - permitted:
                    await self.house.delist(f"{act.what[0]}.0.0")
            case "roots":
                repository, count = act.what
                self.world.fault(f"roots-{count}", "people")
                await self.house.rotate(repository, count, roots(repository, CHAIN))  # type: ignore[arg-type]  # one of its words
            case "attack":
                _, attack, seconds = act.what
                machine = self._machine(act)
                machine.air.begin_attack(attack)  # type: ignore[arg-type]
                self.world.loop.call_later(seconds, machine.air.end_attack)  # type: ignore[arg-type]
            case "copied":
                await self._machine(act).air.call_from_a_copy()
            case "readmit":
                machine = self._machine(act)
                if await self.house.readmit(machine.name):
                    machine.has_news()
            case "crash":
                if self.house.plug is not None:
                    self.house.plug.at = self.house.plug.effects + int(act.what[0])  # type: ignore[call-overload]
            case "rollout":
                await self.house.rollout(f"r{act.what[0]}", f"{act.what[0]}.0.0", 100.0)
            case "kit":
                await self.field.build(*act.what)  # type: ignore[arg-type]  # as the story says
            case "makers":
                await self.field.set_makers(*act.what)  # type: ignore[arg-type]
            case "list":
                await self.field.publish_list(*act.what)  # type: ignore[arg-type]
            case "permit":
                await self.field.permit(*act.what)  # type: ignore[arg-type]
            case "visit":
                self.field.begin_visit(self._machine(act), act.what[1])  # type: ignore[arg-type]
            case _:
                raise AssertionError(act.kind)

    def _machine(self, act: Act) -> Machine:
        (machine,) = [one for one in self.machines if one.name == act.what[0]]
        return machine

    async def _winter(self) -> None:
        """Eight months in the barn, all of them; the managers go on and sign what runs out."""
        for machine in self.machines:
            machine.switch_off(WINTER_S)
        await asyncio.sleep(WINTER_S / 2)
        await self.house.sign_anew()
        await asyncio.sleep(WINTER_S / 2)
        await self.house.sign_anew()

    async def _calm(self) -> None:
        """No faults any more. People halt what they know to be bad, and switch on what is off."""
        self.world.log("story", "calm")
        for kind in self.story.kinds():
            self.world.seen[kind] += 1
        if self.house.plug is not None:
            self.house.plug.at = NEVER
        await self.house.up()
        self.house.crash_at = NEVER
        for number, made in sorted(self.house.released.items()):
            if made.kind not in GOOD:
                await self.house.halt(f"r{number.partition('.')[0]}")
        if self.story.has_kits:
            await self.field.all_home(self.machines)
        for machine in self.machines:
            machine.calm_down()
        until_s = self.world.loop.time() + CALM_S
        quiet = 0
        again: set[str] = set()
        while quiet < 3:
            await asyncio.sleep(3600)
            await self._roll_out_again(again)
            for machine in self.machines:
                if machine.air.copies and await self.house.readmit(machine.name):
                    machine.has_news()
            if self.world.loop.time() > until_s - CALM_S + ALONE_S:
                await self._bring_sticks()
            quiet = 0 if any(machine.is_due() for machine in self.machines) else quiet + 1
            if self.world.loop.time() > until_s:
                due = [f"{machine.name}: {machine.why_due()}" for machine in self.machines if machine.is_due()]
                raise BrokenError(f"locked out, or never at rest: {'; '.join(due)}")
        self.world.log("story", "everything has settled")
        shown = {what: (await self.house.must("GET", f"/api/v1/{what}"))[what] for what in SHOWN}
        self.checker.final(self.machines, shown)

    async def _bring_sticks(self) -> None:
        """What waits for a stick with a kit gives way to anything else by itself; to nothing else it waits on."""
        for machine in self.machines:
            record = machine.parts.updater.record if machine.parts is not None else None
            if record is None or record.offer is None or not is_kit(record.offer.rollout):
                continue
            if machine.name not in self._helped:
                self._helped.add(machine.name)
                self.checker.kits.waits(machine, record, await self._offered(machine))
            self.world.seen["kit-brought-again"] += record.state is State.FETCH
            self.field.help(machine, record.offer.rollout)

    async def _offered(self, machine: Machine) -> list[int]:
        """Counters of the good releases that are rolled out, and that a machine has not given up."""
        rollouts = (await self.house.must("GET", "/api/v1/rollouts"))["rollouts"]
        versions = {one["release"] for one in rollouts if one["state"] == "active"}
        found = [made for version, made in self.house.released.items() if version in versions and made.kind in GOOD]
        return [
            made.release.counter
            for made in found
            if made.release.counter >= self.house.floor and self.field.is_listed(made.release.counter)
            if not self.checker.has_given_up(machine, made.release.digest)
        ]

    async def _roll_out_again(self, done: set[str]) -> None:
        """A machine that was cut off in too many trials gives an offer up; people see that, and make it another."""
        for version, made in sorted(self.house.released.items()):
            if made.kind not in GOOD or version in done:
                continue
            if any(self.checker.has_given_up(machine, made.release.digest) for machine in self.machines):
                done.add(version)
                self.world.seen["rolled-out-again"] += 1
                await self.house.rollout(f"r{version.partition('.')[0]}-again", version, 100.0)
                for machine in self.machines:
                    machine.has_news()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _collected_afterwards() -> Iterator[None]:
    """A play is short: what it leaves behind is collected at its end, and not searched for all along. What closes by
    being collected thus never does so in the midst of a play, either."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
        web_app._cached_build_middleware.cache_clear()  # it keeps the last thousand doors, and with each a whole play
        gc.collect()


def tail(played: Played, count: int = 60) -> str:
    """The end of a log, for whoever reads a failure."""
    return os.linesep.join(played.lines[-count:])
