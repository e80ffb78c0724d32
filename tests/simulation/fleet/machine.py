"""A machine of a play: the real agent's parts on a real state folder, life after life.

What is not real: its clocks, its air, the processes that infer, and its plug. Everything that `device.parts` puts
together is put together by it.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device import agent
from device.clock import Moment
from device.inference.frames import Frame
from device.kits.settings import KitSettings
from device.layout import Layout
from device.parts import Parts
from device.settings import load as load_settings
from device.trust import keeper
from device.trust.port import KitVerdict, Verdict
from device.trust.wire import LINE_BYTES, Asked, JudgeAsked, JudgeSaid, KitAsked, KitSaid, ReceiptsAsked, ReceiptsSaid
from device.update import states
from device.update.states import State
from protocol.errors import StateError
from protocol.messages import Inventory, SyncAnswer
from protocol.objects import ReceiptsBody
from protocol.wire import decode, encode
from tests.simulation.fleet.engine import Daemon, Engine
from tests.simulation.fleet.faults import CALM, Ills, draw_jump, draw_life, draw_wall
from tests.simulation.fleet.house import House
from tests.simulation.fleet.link import Air, Line, MetadataLine
from tests.simulation.fleet.power import CURRENT, NEVER, Plug, context_of
from tests.simulation.fleet.slot import Slot
from tests.simulation.fleet.world import START_MS, World, ended

if TYPE_CHECKING:
    from tests.simulation.fleet.workers import Workers

INVENTORY = Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=("cpu",))
SETTINGS = """
[server]
poll_max_s = 86400.0
retry_longest_s = 7200.0
retry_first_s = 60.0

[outbox]
budget_bytes = 1048576

[store]
keep_free_bytes = 0

[update]
first_backoff_s = 60.0
longest_backoff_s = 3600.0
look_s = 600.0
watch_s = 5.0

[inference]
frames = "/nowhere"
"""
BUILT_MS = START_MS - 60 * 86_400_000
BULKY_BYTES = 190_000  # five of them fill the outbox
CHANGING = (State.ACTIVATE, State.TRIAL, State.COMMIT, State.ROLLBACK)
FRAME = Frame("a.png", "image/png", b"", 0.0)
BOOT_S = 20.0  # from power on to the agent


LostRange = tuple[str, str, int, int]
"""Token of the epoch, lane, first and last number."""


@dataclass(frozen=True)
class Promise:
    """Where the outbox took a row in.

    Args:
        lane: That it came into.
        number: Of the row.
        epochs: Tokens: another epoch may begin while it is kept.
    """

    lane: str
    number: int
    epochs: frozenset[str]

    def is_in(self, lost: Iterable[LostRange]) -> bool:
        """Whether it is among what is told as lost."""
        return any(
            epoch in self.epochs and lane == self.lane and first <= self.number <= last
            for epoch, lane, first, last in lost
        )


class Machine:
    """One machine over all its lives.

    Args:
        name: Its device id.
        state: Its state folder, enrolled.
        world: Time, chance, log.
        house: The server.
        ills: What may happen to it.
        checker: Looks after each step.
    """

    def __init__(self, name: str, state: Path, world: World, house: House, ills: Ills, checker: Any) -> None:
        self.name = name
        self.layout = Layout(state)
        self.world = world
        self.ills = ills
        self.checker = checker
        self.air = Air(name, world, house, ills)
        self.air.certificate = self._certificate
        self.air.on_read = self._may_jump
        self.plug: Plug | None = None
        self.parts: Parts | None = None
        self.workers: Workers | None = None
        self.wall_off_s = 0.0
        self.boots = 0
        self.booted_s = 0.0
        self.off_s: float | None = None  # until when it stays off, when somebody switched it off
        self.promised: dict[str, Promise] = {}  # rows that the outbox took, by their bytes
        self.produced = 0
        self.results_every_s = 5 * 3600.0
        self._power = world.chance.of(f"{name}/power")
        self._draws = world.chance.of(f"{name}/draws")
        self._labels = world.chance.of(f"{name}/labels")
        self._produce = world.chance.of(f"{name}/results")
        self.contacts_s: list[float] = []
        self._calm_s = 0.0
        self._calls_due = 1  # since then, before it can have heard of everything
        self._ended = asyncio.Event()
        self._certified: tuple[int, bytes] | None = None

        self.engine = Daemon(self, world.chance.of(f"{name}/engine"))
        self.slot = Slot(self, state.parent / f"{name}-media", world.chance.of(f"{name}/sticks"))

        with self.layout.settings.open("a") as file:
            if ills.bulky or ills.ttl_s:
                file.write(f'\n[outbox.results]\nwhen_full = "{ills.when_full}"\nttl_s = {ills.ttl_s}\n')
            if ills.keep_layers != CALM.keep_layers:
                file.write(f'\n[containers]\nkeep_layers = "{ills.keep_layers}"\n')

    # Clocks

    def here(self) -> Moment:
        """What its own clocks say."""
        boot_ms = int((self.world.loop.time() - self.booted_s) * 1000)
        wall_ms = boot_ms if self.wall_off_s == float("-inf") else self.world.now_ms() + int(self.wall_off_s * 1000)
        return Moment(boot_id=f"{self.name}-{self.world.seed}-{self.boots}", boot_ms=boot_ms, wall_ms=max(wall_ms, 0))

    def _may_jump(self) -> None:
        if "jumps" in self.ills.clocks and self._draws.random() < 0.02:
            self._jump()

    def stepped(self, state: State) -> None:
        """An update went on from one state to the next."""
        if "jumps" in self.ills.clocks and state is not State.IDLE and self._draws.random() < 0.1:
            self._jump("clock-jumps-in-update")
        if self.ills.power and self.plug is not None and self._power.random() < 0.15:
            self.plug.at = min(self.plug.at, self.plug.effects + int(self._power.random() * 15))
        if self.ills.engine and self._draws.random() < 0.2:
            self.engine.dies_soon()

    def _jump(self, kind: str = "clock-jumps") -> None:
        self.wall_off_s = draw_jump(self._draws)
        self.world.fault(kind, self.name, f"{self.wall_off_s / 86_400:+.1f} days")

    # Power

    async def drive(self) -> None:
        """Life after life, for as long as the play lasts."""
        while True:
            await self._live()
            off_s = self._power.choice((1.0, 30.0, 600.0, 20_000.0)) * self._power.uniform(0.5, 1.5)
            self.off_s = off_s if self.off_s is None else self.off_s
            while self.off_s is not None:  # winter may come while it is off
                off_s, self.off_s = self.off_s, None
                await asyncio.sleep(off_s)

    def switch_off(self, off_s: float | None = None) -> None:
        """Somebody turns the key."""
        if off_s is not None:
            self.off_s = off_s
        if self.plug is not None:
            self.plug.cut("the key was turned")

    async def _live(self) -> None:
        self.boots += 1
        self.booted_s = self.world.loop.time()
        kind, self.wall_off_s = draw_wall(self._power, self.ills)
        at = draw_life(self._power, self.ills)
        self._ended.clear()
        self.plug = plug = Plug(self, NEVER if at is None else at, self._cut, self.layout.state)
        if kind not in ("right", "jumps"):
            self.world.fault(f"clock-{kind}", self.name)
        self.world.log(self.name, f"boot {self.boots}")
        self.world.seen["boot"] += 1
        self.checker.booted(self)
        self.engine.power(True)
        task = self.world.loop.create_task(self._run(), context=context_of(plug))
        cut = self.world.loop.create_task(self._ended.wait())
        try:
            await asyncio.wait({task, cut}, return_when=asyncio.FIRST_COMPLETED)
            if not plug.dead:
                # Nothing but a cut ends an agent here: what it raised is a bug, or a state that it cannot get out of.
                await task
                raise AssertionError(f"the agent of {self.name} ended")
        finally:
            plug.dead = True
            await ended(task, cut, *plug.tasks)
            self.plug = self.parts = self.workers = None
            plug.bury(self._power)
        self.checker.cut(self)

    def _cut(self, why: str) -> None:
        self.world.fault("power", self.name, why)
        self.world.seen[f"power-in-{self.checker.state_of(self)}"] += 1
        self.world.seen["power-over-an-engine"] += why.startswith("before engine")
        self.engine.power(False)
        self.world.loop.call_soon(self._ended.set)

    def committed(self, database: str) -> None:
        """A transaction that changed something was just committed."""
        self.checker.committed(self, database)

    # The agent

    async def _run(self) -> None:
        await asyncio.sleep(BOOT_S)
        settings = load_settings(self.layout.settings)
        settings = msgspec.structs.replace(settings, kits=KitSettings(folders=(str(self.slot.folder),)))

        def ready(parts: Parts) -> None:
            self.parts = parts

        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run(self.layout, settings, on_ready=ready))
            group.create_task(self._ignition())
            group.create_task(self._jumps())
            group.create_task(self._look())
            group.create_task(self._read_labels())
            if self.ills.engine:
                group.create_task(self.engine.weather())

    def open_engine(self) -> Engine:
        return Engine(self.engine, self.world.chance.of(f"{self.name}/engine/{self.boots}"))

    @property
    def sees_engine(self) -> bool:
        """Whether the agent has seen what runs: of what ended since its last look it cannot know."""
        return self.parts is not None and self.engine.is_seen(self.parts.workers._containers._seen_s)

    async def _read_labels(self) -> None:
        """Which release a result would name now: often while the set changes, now and then otherwise."""
        while True:
            changes = self.checker.state_of(self) in CHANGING or self.world.loop.time() - self.booted_s < 300
            await asyncio.sleep(self._labels.uniform(0.0, 4.0) if changes else self._labels.uniform(0.0, 4000.0))
            if self.parts is None or self.workers is None or self.workers.digest is None:
                continue
            seen, before = self.sees_engine, self.engine.running()
            label = (await self.parts.workers.infer(FRAME)).manifest
            if seen and self.sees_engine:
                self.checker.labelled(self, label, before)

    async def _jumps(self) -> None:
        while "jumps" in self.ills.clocks:
            await asyncio.sleep(self._draws.expovariate(1 / 40_000))
            self._jump()

    async def infer(self, sink: Any) -> None:
        """Results, all along."""
        while True:
            await asyncio.sleep(self._produce.expovariate(1 / self.results_every_s))
            by = self.workers.by if self.workers is not None else None
            if by is None or self.parts is None:
                continue
            outbox = self.parts.outbox
            self.produced += 1
            lane = "alarms" if self._produce.random() < 0.2 else "results"
            padding = " " * (BULKY_BYTES if self.ills.bulky else 0)
            row = json.dumps({"row": self.produced, "of": self.name, "by": by, "_": padding}).encode()
            epoch = outbox.epoch
            (number,) = await sink.enqueue_all([(lane, row)])
            # From here on it is promised.
            self.promised[row.decode()] = Promise(lane, number, frozenset((epoch, outbox.epoch)))
            self.world.log(self.name, f"row {self.produced} is {lane}/{number}")

    async def _ignition(self) -> None:
        if not self.ills.ignition:
            return
        await asyncio.sleep(self._power.choice((60.0, 900.0, 20_000.0, 200_000.0)) * self._power.random())
        if self.plug is not None:
            self.plug.cut("the key was turned")

    async def _look(self) -> None:
        """What must hold a while after the start."""
        await asyncio.sleep(300)
        while True:
            self.checker.looked(self)
            await asyncio.sleep(12 * 3600)

    def _certificate(self) -> bytes | None:
        """As the connection would show it: what lay there when it was opened; a new one after a renewal."""
        path = self.layout.identity / "cert.pem"
        stamp = path.stat().st_mtime_ns
        if self._certified is None or self._certified[0] != stamp:
            self._certified = stamp, x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
        return self._certified[1]

    def calm_down(self) -> None:
        """Nothing bad happens to it any more, but what releases do to it."""
        self.ills = self.air.ills = CALM
        self.air.end_attack()
        self.engine.calm_down()
        self.results_every_s = 1e12
        self._calm_s = self.world.loop.time()
        if self.plug is not None:
            self.plug.at = NEVER
            self.plug.cut("the last time")

    def has_news(self) -> None:
        """People readmitted it, or made it another offer: what it heard before does not count. Nor does one answer: to
        the contact that was answered last before that the server says nothing new, however late it comes again."""
        self._calm_s, self._calls_due = self.world.loop.time(), 2

    def contacts_since_calm(self) -> int:
        """Answers that were judged good since then."""
        return sum(at_s > self._calm_s for at_s in self.contacts_s)

    # What a release does to it

    def is_due(self) -> bool:
        """Whether something is still under way that calm weather would bring to an end."""
        return bool(self.why_due())

    def has_settled(self) -> bool:
        """Whether its first release is committed, and nothing waits."""
        return self.parts is not None and self.parts.updater.record.committed is not None and not self.is_due()

    def why_due(self) -> str:
        parts = self.parts
        if parts is None or not parts.updater.started:
            return "off"
        record = parts.updater.record
        if record.state is not State.IDLE or states.will_retry(record):
            return f"{record.state} {record.paused}"
        if parts.outbox.queued():
            return f"{parts.outbox.queued()} rows wait; {parts.contact_loop.trouble}"
        if parts.contact_loop.trouble:
            return parts.contact_loop.trouble
        if parts.state.pending_statuses(1):  # a contact that is made again tells no more than it did
            return "what became of an update is not told yet"
        if not parts.workers.health().serving:
            return f"what is committed does not serve whole; {parts.workers.health().hindered}"
        return "" if self.contacts_since_calm() >= self._calls_due else "no contact yet"

    def draw_token(self) -> str:
        return f"{self._draws.getrandbits(128):032x}"

    def random(self) -> float:
        return self._draws.random()


def current() -> Machine:
    """Whose code runs now."""
    plug = CURRENT.get()
    assert plug is not None
    machine = plug.owner
    assert isinstance(machine, Machine)
    return machine


class Trust:
    """`device.trust.port.Trust`: the keeper's own code, in this process."""

    def __init__(self, state: Path, *, server: str | None = None, on_damage: Callable[[str], None]) -> None:
        self._on_damage = on_damage
        self._state = state
        self._server = server
        self._machine = current()
        self._open = contextlib.ExitStack()
        self._judge: keeper.Judge | None = None

    async def judge(self, answer: SyncAnswer, nonce: str, asked_boot_s: float) -> Verdict:
        asked = JudgeAsked(answer=answer, nonce=nonce, asked_boot_s=asked_boot_s)
        said = await asyncio.to_thread(self._ask, asked)
        assert isinstance(said, JudgeSaid)
        self._machine.checker.judged(self._machine, said.verdict)
        if said.verdict.may_install:
            self._machine.contacts_s.append(self._machine.world.loop.time())
        return said.verdict

    async def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        said = await asyncio.to_thread(self._ask, ReceiptsAsked(texts=texts))
        assert isinstance(said, ReceiptsSaid)
        return said.receipts

    async def judge_kit(self, folder: str) -> KitVerdict:
        said = await asyncio.to_thread(self._ask, KitAsked(folder=folder))
        assert isinstance(said, KitSaid)
        return said.verdict

    async def close(self) -> None:
        self._open.close()

    def _ask(self, asked: Any) -> Any:
        asked = decode(encode(asked), Asked, limit=LINE_BYTES)  # type: ignore[arg-type]  # a union
        # A keeper that was idle has ended: the next question starts one anew.
        if self._judge is not None and self._machine.random() < 0.3:
            self._open.close()
            self._judge = None
        try:
            if self._judge is None:
                self._judge = self._open.enter_context(keeper._lazily(self._state, self._server))
            return keeper._answer(self._judge, asked)
        except OSError as error:
            raise StateError(str(error)) from error


class Source:
    """In the place of the folder of frames: nothing comes from it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.waiting = 0

    async def start(self) -> None:
        """Nothing comes."""

    async def close(self) -> None:
        """Nothing is open."""


class Pump:
    """In the place of the pump: results without frames."""

    def __init__(self, *, sink: Any, **_: Any) -> None:
        self._machine = current()
        self._sink = sink

    async def run(self) -> None:
        await self._machine.infer(self._sink)


class LocalLink:
    """In the place of the socket for programs on the machine: nobody comes."""

    def __init__(self, _: Path) -> None:
        self.board = SimpleNamespace(show=lambda _: None)
        self.readers = SimpleNamespace(show=lambda _: None)

    async def prepare(self) -> None: ...

    async def run(self, _: Callable[[], int]) -> None:
        await asyncio.Event().wait()


async def keep_up(name: str, task: Callable[[], Awaitable[None]], **_: Any) -> None:
    """In the place of the supervision of tasks: what fails here is a bug, and ends the play."""
    if name in ("desk", "page"):
        await asyncio.Event().wait()  # they bind sockets; what people ask at them is asked behind them here
    await task()
    raise AssertionError(f"{name} ended")


async def tell(*_: Any) -> None:
    """In the place of the agent's account of itself each second."""
    await asyncio.Event().wait()


def bare(bare_tls: Callable[[Any], ssl.SSLContext]) -> Callable[[Any], ssl.SSLContext]:
    """Marks a context that shows no certificate."""

    def marked(identity: Any) -> ssl.SSLContext:
        context = bare_tls(identity)
        context.is_bare = True  # type: ignore[attr-defined]
        return context

    return marked


async def probe(*_: Any) -> Inventory:
    return INVENTORY


class Writer:
    """`device.outbox.writer.Writer` without its thread: groups of rows, then jobs, in the order in which they came."""

    def __init__(self, append: Callable[[Any], list[int]]) -> None:
        self._append = append
        self._waiting: list[tuple[Any, Any, asyncio.Future[Any]]] = []
        self._stopped = False

    def start(self) -> None:
        """Nothing to start."""

    async def append(self, rows: Any, frames: Any = ()) -> list[int]:
        assert not frames, "results come without frames here"
        return await self._put(rows, None)

    async def run(self, job: Callable[[], Any]) -> Any:
        return await self._put(None, job)

    def run_blocking(self, job: Callable[[], Any]) -> Any:
        self._drain()
        return job()

    async def stop(self) -> None:
        self._stopped = True
        self._drain()

    def _put(self, rows: Any, job: Any) -> Awaitable[Any]:
        if self._stopped:
            raise StateError("the outbox is closed")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((rows, job, future))
        loop.call_soon(self._drain)
        return future

    def _drain(self) -> None:
        works, self._waiting = self._waiting, []
        group: list[tuple[Any, asyncio.Future[Any]]] = []
        for rows, job, future in works:
            if job is None:
                group.append((rows, future))
            else:
                self._flush(group)
                group = []
                _settle(future, job)
        self._flush(group)

    def _flush(self, group: list[tuple[Any, "asyncio.Future[Any]"]]) -> None:
        if not group:
            return
        try:
            numbers = iter(self._append([row for rows, _ in group for row in rows]))
        except BaseException as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for rows, future in group:
            mine = [next(numbers) for _ in rows]
            if not future.done():
                future.set_result(mine)


def _settle(future: "asyncio.Future[Any]", job: Callable[[], Any]) -> None:
    try:
        result = job()
    except BaseException as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)


@contextlib.asynccontextmanager
async def switched_on(machine: Machine) -> AsyncIterator[None]:
    """The machine lives its lives inside the block."""
    driving = machine.world.loop.create_task(machine.drive())
    driving.add_done_callback(machine.world.failed)
    try:
        yield
    finally:
        await ended(driving)
        await machine.air.close()


def line_of_current(url: str, tls: ssl.SSLContext, **_: Any) -> Line:
    return current().air.line(tls)


def metadata_of_current(url: str, *_: Any) -> MetadataLine:
    return MetadataLine(current().air, "image" if "/image/" in url else "director")
