"""Technicians of a play: they carry kits from the managers to machines, results home, and force what may wait.

What is on a stick is what real managers signed and the real server served when the kit was made. What is wrong with a
kit is drawn: it is old, its signers have lost the right to sign, it has expired, a byte of it is another.
"""

import asyncio
import random
import shutil
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.metadata import Snapshot, Targets, Timestamp

from protocol.errors import HeadlandError, Refused, StateError
from protocol.kits import (
    FORCE_CONTEXT,
    KIT_FILE,
    KITS_FOLDER,
    RESULTS_FOLDER,
    ForceRequest,
    KitId,
    PermitTerms,
    Technician,
)
from protocol.messages import SignedForce
from protocol.objects import Conditions
from protocol.release import manifest_path
from protocol.wire import encode
from server.app import open_pieces
from server.storage.catalog import Catalog
from signing.kits.bringing import bring_home
from signing.metadata import parse
from signing.repository import RepositoryKind
from tests.fakes.kits import kit_body, sign_kit, write_blob
from tests.simulation.fleet.house import House, no_secret
from tests.simulation.fleet.power import context_of
from tests.simulation.fleet.releases import PRODUCT
from tests.simulation.fleet.slot import NEVER, ROOM_BYTES, Plugged
from tests.simulation.fleet.world import World, ended

if TYPE_CHECKING:
    from tests.simulation.fleet.machine import Machine

REPOSITORIES: Final[tuple[RepositoryKind, ...]] = ("image", "director")
STICKS: Final = ("blue", "red")
PERSONS: Final = ("eva", "rita", "otto", "udo", "nils", "mallory", "nobody")
"""Eva may force; Rita may until she is taken from the list; Otto may only look; Udo is for another machine; Nils has an
entry that has expired; Mallory calls herself Eva, and nobody is in no list."""
LISTS: Final = ("all", "without rita", "short", "empty")
PULLED_AFTER: Final = (0, 5, 15, 25, 40, 80)
DAMAGES: Final = (
    "",
    "",
    "",
    "kit.json",
    "director/timestamp.json",
    "image/timestamp.json",
    "blobs",
    "blobs",
    "missing",
)


@dataclass(frozen=True)
class Made:
    """A kit as it was made.

    Args:
        folder: Where it lies.
        counters: Of the releases in it.
        signers: Who signed it.
        expires_ms: When.
        machines: Whom it is for; None: all.
    """

    kit: KitId
    folder: Path
    counters: tuple[int, ...]
    signers: frozenset[str]
    expires_ms: int
    machines: tuple[str, ...] | None


@dataclass(frozen=True, repr=False)
class Visit:
    """What a technician does at a machine.

    Args:
        kits: Numbers of those that are carried; the newest of that number.
        stick: Which.
        damage: File of the kit that is another than was signed, `missing`: one blob is not there; empty: none is.
        stays_s: How long the stick stays in.
        left: After so many reads and writes it is pulled.
        room_bytes: For results.
        by_hand: Whether the technician also asks for the kit by name.
        forces: Who tries to force it; empty: nobody.
        home_s: How long later the stick is at home; None: it never is.
        is_copied: Whether a copy of it comes home as well, much later.
    """

    kits: tuple[int, ...]
    stick: str = "blue"
    damage: str = ""
    stays_s: float = 6 * 3600.0
    left: int = NEVER
    room_bytes: int = ROOM_BYTES
    by_hand: bool = False
    forces: str = ""
    home_s: float | None = 3600.0
    is_copied: bool = False

    def __repr__(self) -> str:
        """What is not as usual."""
        said = [f"{one.name}={getattr(self, one.name)}" for one in fields(self)[1:]]
        usual = {f"{one.name}={one.default}" for one in fields(self)[1:]}
        return f"Visit({', '.join([str(self.kits), *(text for text in said if text not in usual)])})"


@dataclass
class Field:
    """All that people do with sticks in one play.

    Args:
        folder: For kits and sticks.
        house: The server, and the managers beside it.
        world: Time and log.
        chance: What is damaged, and where.
    """

    folder: Path
    house: House
    world: World
    chance: random.Random
    kits: list[Made] = field(default_factory=list)
    makers: list[tuple[int, frozenset[str]]] = field(default_factory=list)
    """Who may sign kits, from which version of the director's targets on."""
    lists: dict[int, Mapping[str, Technician]] = field(default_factory=dict)
    """Lists of technicians, by their version."""
    permits: list[PermitTerms] = field(default_factory=list)
    asked: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Machine, person and manifest of each request, by its challenge."""
    forced: set[str] = field(default_factory=set)
    """Requests that a machine said it carried out."""
    _visits: "set[asyncio.Task[None]]" = field(default_factory=set)
    _out: dict[str, str] = field(default_factory=dict)  # which machine a stick is in

    # The managers

    async def build(self, number: int, counters: Sequence[int], days: float, machines: Any, window: Any) -> None:
        """A kit of these releases, as far as they are listed by now, with what the server serves now."""
        listed = [self.house.released[f"{counter}.0.0"] for counter in counters if self.is_listed(counter)]
        if not listed:
            return
        await self.house.up()
        now, made = self.world.now(), len(self.kits)
        folder = self.folder / "kits" / f"{made}"
        for kind in REPOSITORIES:
            (folder / kind).mkdir(parents=True)
            for name, data in self._served(kind).items():
                (folder / kind / name).write_bytes(data)
        (folder / "blobs").mkdir()
        for one in listed:
            for content in one.release.blobs.values():
                write_blob(folder, content)
        kit, expires = f"kit-{number}", (now + timedelta(days=days)).replace(microsecond=0)
        body = kit_body(
            [one.release for one in listed], now, kit=kit, machines=machines, conditions=Conditions(window_utc=window)
        )
        signers = self.house.managers.kit_makers[:2]
        keys = [self.house.managers.keys[name] for name in signers]
        (folder / KIT_FILE).write_bytes(sign_kit(body, keys, expires))
        of = tuple(one.release.counter for one in listed)
        expires_ms = int(expires.timestamp() * 1000)
        self.kits.append(Made(kit, folder, of, frozenset(signers), expires_ms, machines))
        self.world.log("people", f"made {kit} of {of} for {machines or 'all'}, {days} days")

    def is_listed(self, counter: int) -> bool:
        """Whether the managers list a release."""
        return manifest_path(PRODUCT, f"{counter}.0.0") in self.house.managers.current_product().targets

    def _served(self, kind: RepositoryKind) -> dict[str, bytes]:
        """Every file that a machine would ask for."""
        found: dict[str, bytes] = {}

        def take(name: str) -> bytes | None:
            data = self.house.metadata(kind, name)
            if data is not None:
                found[name] = data
            return data

        number = 1
        while take(f"{number}.root.json") is not None:
            number += 1
        stamp = take("timestamp.json")
        assert stamp is not None
        version = parse(stamp, Timestamp, "timestamp").signed.snapshot_meta.version
        shot = take(f"{version}.snapshot.json")
        assert shot is not None
        for name, meta in parse(shot, Snapshot, "snapshot").signed.meta.items():
            assert take(f"{meta.version}.{name}") is not None, name
        return found

    async def set_makers(self, names: tuple[str, ...]) -> None:
        """From now on these sign kits; what the others signed is revoked."""
        managers = self.house.managers
        managers.now = self.world.now()
        managers.kit_makers = names
        managers.delegate_online("director", "clock")
        self.note_makers()
        self.world.fault("kit-makers", "people", " ".join(names))
        await self.house.push(f"kits are signed by {', '.join(names)}")

    def note_makers(self) -> None:
        """Who signs kits, by the director that was published last."""
        managers = self.house.managers
        version = parse(managers.director.targets, Targets, "targets").signed.version
        self.makers.append((version, frozenset(managers.kit_makers)))

    async def publish_list(self, which: str) -> None:
        """A new list of technicians."""
        managers = self.house.managers
        managers.now = self.world.now()
        data = managers.technicians(*self._entries(which), days=2.0 if which == "short" else 60.0)
        version = parse(data, Targets, "technicians").signed.version
        self.lists[version] = {one.name: one for one in self._entries(which)}
        await self.house.push(f"technicians: {which}")

    def _entries(self, which: str) -> list[Technician]:
        until_ms = self.world.now_ms() + 50 * 86_400_000
        entries = [
            Technician(name="eva", public_key=public_of("eva"), expires_ms=until_ms, may_force=True),
            Technician(name="rita", public_key=public_of("rita"), expires_ms=until_ms, may_force=True),
            Technician(name="otto", public_key=public_of("otto"), expires_ms=until_ms),
            Technician(
                name="udo", public_key=public_of("udo"), expires_ms=until_ms, may_force=True, machines=("elsewhere",)
            ),
            Technician(
                name="nils", public_key=public_of("nils"), expires_ms=self.world.now_ms() + 1000, may_force=True
            ),
        ]
        return [] if which == "empty" else [one for one in entries if one.name != "rita" or which != "without rita"]

    async def permit(self, machine: str, counter: int, days: float) -> None:
        """This machine may go back to this release, once."""
        if not self.is_listed(counter):
            return
        managers, now_ms = self.house.managers, self.world.now_ms()
        managers.now = self.world.now()
        permit = PermitTerms(
            kind="permit",
            permit=f"{self.chance.getrandbits(128):032x}",
            device=machine,
            release=f"{counter}.0.0",
            manifest=self.house.released[f"{counter}.0.0"].release.digest,
            created_ms=now_ms,
            expires_ms=now_ms + int(days * 86_400_000),
            reason="the newer one is blind at dusk",
        )
        managers.permit(permit)
        self.permits.append(permit)
        self.world.fault("permit", "people", f"{machine} may go back to {counter}.0.0")
        await self.house.push("a permit")

    # The technicians

    def begin_visit(self, machine: "Machine", visit: Visit) -> None:
        """Goes on by itself."""
        self._spawn(self._visit(machine, visit))

    def _spawn(self, going: Coroutine[Any, Any, None]) -> None:
        task = self.world.loop.create_task(going)
        self._visits.add(task)

        def done(one: "asyncio.Task[None]") -> None:
            self._visits.discard(one)
            if not one.cancelled() and one.exception() is not None:
                self.world.failed(one)

        task.add_done_callback(done)

    async def _visit(self, machine: "Machine", visit: Visit) -> None:
        if visit.stick in self._out:
            return  # somebody else has it
        self._out[visit.stick] = machine.name
        stick = self.folder / visit.stick
        try:
            stick.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(stick / KITS_FOLDER, ignore_errors=True)
            carried = [made for number in visit.kits if (made := self._newest(number)) is not None]
            for made in carried:
                shutil.copytree(made.folder, stick / KITS_FOLDER / made.kit)
                if visit.damage:
                    self._damage(stick / KITS_FOLDER / made.kit, visit.damage)
            (stick / RESULTS_FOLDER).mkdir(exist_ok=True)
            machine.slot.plug(stick, Plugged(stick, visit.left, visit.room_bytes))
            self.world.seen["stick-visited"] += 1
            until_s = self.world.loop.time() + visit.stays_s
            if visit.by_hand or visit.forces:
                await asyncio.sleep(visit.stays_s / 4)
                for made in carried:
                    await self._by_hand(machine, made.kit, visit)
            await asyncio.sleep(until_s - self.world.loop.time())
        finally:
            machine.slot.pull(visit.stick)
        copy = None
        if visit.is_copied:
            copy = self.folder / f"copy-{self.chance.getrandbits(32):08x}"
            shutil.copytree(stick, copy)
        if visit.home_s is not None:
            await asyncio.sleep(visit.home_s)
            await self.bring_home(stick, keep=self.chance.random() < 0.2)
        del self._out[visit.stick]
        if copy is not None:
            await asyncio.sleep(self.chance.uniform(0, 2 * 86_400))
            await self.bring_home(copy, keep=False)

    def _newest(self, number: int) -> Made | None:
        return next((made for made in reversed(self.kits) if made.kit == f"kit-{number}"), None)

    def _damage(self, kit: Path, what: str) -> None:
        self.world.fault("kit-damaged", "people", what)
        # By length: names are drawn by chance anew in each process.
        blobs = sorted((path.stat().st_size, path.read_bytes(), path) for path in (kit / "blobs").iterdir())
        if what == "missing":
            blobs[-1][2].unlink()
            return
        path = blobs[-1][2] if what == "blobs" else kit / what
        data = bytearray(path.read_bytes())
        data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        path.write_bytes(data)

    async def _by_hand(self, machine: "Machine", kit: KitId, visit: Visit) -> None:
        """As at the machine's page, or with its command."""
        plug = machine.plug
        if plug is None or plug.dead or machine.parts is None:
            return
        going = self._force(machine, kit, visit.forces) if visit.forces else self._apply(machine, kit)
        task = self.world.loop.create_task(going, context=context_of(plug))
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None and not plug.dead:
            self.world.break_off(error)

    async def _apply(self, machine: "Machine", kit: KitId) -> None:
        assert machine.parts is not None
        desk = machine.parts.desk._desk
        try:
            await desk.look(None)
            await desk.apply(kit)
        except HeadlandError as error:
            self.world.log(machine.name, f"{kit} is not applied: {type(error).__name__}")

    async def _force(self, machine: "Machine", kit: KitId, person: str) -> None:
        assert machine.parts is not None
        desk = machine.parts.desk._desk
        try:
            given = await desk.challenge(kit)
        except HeadlandError as error:
            self.world.log(machine.name, f"{kit} gives {person} no challenge: {type(error).__name__}")
            return
        name = "eva" if person == "mallory" else person
        request = ForceRequest(
            id=given.id,
            device=given.device,
            product=given.product,
            offer=given.offer,
            release=given.release,
            manifest=given.manifest,
            technician=name,
            reason="nobody comes before May",
            at_ms=given.at_ms,
        )
        text = encode(request).decode()
        signed = SignedForce(request=text, signature=key_of(person).sign(FORCE_CONTEXT + text.encode()).hex())
        self.asked[given.id] = (machine.name, person, given.manifest)
        await asyncio.sleep(self.chance.choice((5.0, 5.0, 5.0, 400.0, 700.0)))
        for again in (False, True):  # the same request once more does nothing
            try:
                await desk.force(signed)
                assert not again, "a request was good twice"
                self.forced.add(given.id)
                self.world.fault("forced", machine.name, f"{kit} by {person}")
            except Refused as error:
                self.world.seen["force-refused"] += not again
                self.world.log(machine.name, f"{person} may not force {kit}: {error.reason}")
            except StateError as error:
                self.world.log(machine.name, f"{person} cannot force {kit}: {error.message[:20]}")

    # At home

    async def bring_home(self, stick: Path, *, keep: bool) -> None:
        """`headland-server kit import` beside the server, or without one."""
        if not (stick / RESULTS_FOLDER).is_dir():
            return
        catalog = Catalog(f"sqlite:///{self.house.state / 'catalog.db'}", migrate=False)
        try:
            pieces = open_pieces(self.house.state, catalog, self.world.now_ms, no_secret)
            found = bring_home(stick, partial(pieces.take, who="ada"), keep=keep)
        finally:
            catalog.close()
        for device, brought in sorted(found.items()):
            told = f"{brought.pieces} pieces, {brought.rows} new, {brought.known} known, {len(brought.complaints)} bad"
            self.world.log("people", f"{stick.name[:5]} from {device}: {told}")
            self.world.seen["brought-home"] += brought.rows
            self.world.seen["brought-again"] += brought.known

    async def end(self) -> None:
        """Nobody is on the way any more."""
        await ended(*self._visits)

    async def all_home(self, machines: "Sequence[Machine]") -> None:
        """In calm weather all sticks are pulled, and what lies on them is brought home."""
        await self.end()
        for machine in machines:
            for name in list(machine.slot.inside):
                machine.slot.pull(name)
        self._out.clear()
        for stick in STICKS:
            await self.bring_home(self.folder / stick, keep=False)

    def help(self, machine: "Machine", kit: KitId) -> None:
        """A machine has waited for a stick with this kit for long: somebody brings one, and leaves it there."""
        numbers = tuple({int(made.kit.removeprefix("kit-")): None for made in self.kits if made.kit == kit})
        free = next((stick for stick in STICKS if stick not in self._out), None)
        if free is not None and machine.name not in self._out.values():
            self.world.log("people", f"{machine.name} gets a stick with {kit}")
            self.begin_visit(machine, Visit(numbers, free, stays_s=86_400.0, home_s=60.0))


def key_of(person: str) -> Ed25519PrivateKey:
    """The same in each process."""
    return Ed25519PrivateKey.from_private_bytes(sha256(person.encode()).digest())


def public_of(person: str) -> str:
    return key_of(person).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
