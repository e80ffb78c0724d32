"""A whole set without processes: model workers in memory and containers of a `FakeDaemon`, in time that jumps."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device.cancelling import cancel
from device.containers.aim import make_aim
from device.containers.engine import Engine, EngineView, Wish
from device.containers.keeper import ContainerKeeper
from device.containers.reconcile import Wanted
from device.containers.whole import WholeSet
from device.containers.wishes import Places, give_data, make_wish
from device.inference.frames import Frame
from device.inference.replies import FrameReply, ModelReply
from device.inference.workers import WorkersStatus
from device.update.ports import Health, ReleaseSet
from protocol.container import HealthCheck, Image, RunSpec
from protocol.errors import Reason, Refused
from protocol.ids import Digest, digest
from protocol.release import TrialRules
from tests.fakes.container_sets import make_container_release, pack_container
from tests.fakes.engine import Behaviour, FakeDaemon, FakeEngine
from tests.simulation.fleet.world import VirtualLoop

RULES = TrialRules(healthy_s=2.0, min_healthy_s=1.0, max_failed_starts=3, min_inferences=10, max_retries=2)
CHECK = HealthCheck(command=("/check",), interval_s=1.0, retries=2)
OWNER = RunSpec(command=("/one-owner",))
GATEWAY = RunSpec(command=("/gateway",), strategy="start-then-stop", health=CHECK)


def make_releases(folder: Path) -> dict[str, ReleaseSet]:
    """Some that share containers, and some that do not; one has none."""
    driver, gateway = pack_container("driver", OWNER), pack_container("gateway", GATEWAY)
    driver_2 = pack_container("driver", OWNER, layers=(b"base", b"two"))
    gateway_2 = pack_container("gateway", GATEWAY, layers=(b"base", b"two"))
    extra = pack_container("extra", OWNER)
    return {
        "old": make_container_release(folder / "old", driver, gateway, trial=RULES),
        "new": make_container_release(folder / "new", driver_2, gateway_2, version="2.0.0", trial=RULES),
        "same": make_container_release(folder / "same", driver, gateway, version="1.1.0", trial=RULES),
        "other": make_container_release(folder / "other", gateway_2, extra, version="3.0.0", trial=RULES),
        "none": make_container_release(folder / "none", version="4.0.0", trial=RULES),
    }


def play(story: Callable[[], Awaitable[None]]) -> None:
    """Runs a story in time that jumps to what comes next."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(random.Random(0))) as runner:
        runner.run(_within_a_day(story))


async def _within_a_day(story: Callable[[], Awaitable[None]]) -> None:
    try:
        async with asyncio.timeout(86_400):
            await story()
    finally:
        # One cancellation of a task can be lost, and in time that jumps its agent would look again without end.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            await cancel(task)


async def until(is_so: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Waits, in the time of a story."""
    async with asyncio.timeout(limit_s):
        while True:
            if is_so():
                return
            await asyncio.sleep(0.05)


class FakeModelWorkers:
    """The half of a set that infers: answers at once, by the release that serves.

    Args:
        dead: Digests that never come up.
    """

    def __init__(self, dead: frozenset[Digest] = frozenset()) -> None:
        self.dead = dead
        self.takes_s = 0.01
        self.says: Literal["finding", "error"] = "finding"
        self.serving: ReleaseSet | None = None
        self.switches: list[Digest | None] = []

    async def converge(
        self, release: ReleaseSet | None, *, before_switch: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        await asyncio.sleep(0.2)
        if release is not None and release.digest in self.dead:
            raise Refused(Reason.MODEL_LOAD, "it does not load")
        if release is not None and self.serving is not None and self.serving.digest == release.digest:
            return
        if before_switch is not None:
            await before_switch()
        self.serving = release
        self.switches.append(release.digest if release is not None else None)

    async def infer(self, frame: Frame) -> FrameReply:
        await until(lambda: self.serving is not None, 86_400)
        assert self.serving is not None
        release = self.serving
        await asyncio.sleep(self.takes_s)
        replies = [ModelReply(model, digest(b"a model"), "cpu", self.says) for model in release.manifest.models]
        return FrameReply(release.digest, tuple(replies))

    def health(self) -> Health:
        if self.serving is None:
            return Health(digest=None, serving=False)
        return Health(digest=self.serving.digest, serving=True)

    def status(self) -> WorkersStatus:
        return WorkersStatus()

    async def close(self) -> None:
        self.serving = None


class FakeStock:
    """Brings images from releases' files.

    Args:
        engine: Into which.
        files: Where they lie.
    """

    def __init__(self, engine: Engine, files: Mapping[Digest, Path]) -> None:
        self._engine = engine
        self._files = files

    async def bring(self, image: Image) -> None:
        await self._engine.load(image, self._files)

    def saw(self, view: EngineView) -> None: ...


class FakeTrace:
    """Outlives its agent, as `state.db` does."""

    def __init__(self) -> None:
        self.has_used = self.may_run = False

    def uses(self) -> None:
        self.has_used = self.may_run = True


@dataclass
class Machine:
    """One machine: an engine and a trace that last, and an agent that comes and goes."""

    daemon: FakeDaemon
    trace: FakeTrace
    folder: Path
    files: Mapping[Digest, Path]
    connect: Callable[[FakeDaemon], FakeEngine] = FakeEngine

    def __post_init__(self) -> None:
        self.rows: list[tuple[float, Digest | None, dict[str, list[Digest]]]] = []
        self.start_agent()

    def start_agent(self, dead: frozenset[Digest] = frozenset()) -> None:
        """A new life of the agent: nothing of the one before is known."""
        self.engine = self.connect(self.daemon)
        self.workers = FakeModelWorkers(dead)
        self.keeper = ContainerKeeper(
            self.engine,
            FakeStock(self.engine, self.files),
            self.trace,
            self._wish,
            clock=asyncio.get_running_loop().time,
            give_data=lambda one: give_data(one.container, self._places),
        )
        self.whole = WholeSet(self.workers, self.keeper)
        self.camera = asyncio.create_task(self._see(self.whole))

    async def end_agent(self) -> None:
        """It is gone, however it went."""
        self.engine.cut()
        await cancel(self.camera)
        if not self.camera.cancelled():
            self.camera.result()  # what it found wrong
        await self.whole.close()

    @property
    def _places(self) -> Places:
        return Places(self.folder / "sets", self.folder / "link", self.folder / "data")

    def _wish(self, one: Wanted) -> Wish:
        return make_wish(one.container, one.image, self.files[one.image.config.sha256].read_bytes(), self._places)

    async def _see(self, whole: WholeSet) -> None:
        """A frame each 50 ms; what ran when it was answered is kept beside its label."""
        while True:
            before = self.daemon.running()
            reply = await whole.infer(Frame("a", "image/png", b"", 0.0))
            after = self.daemon.running()
            self.rows += [(self.daemon.clock(), reply.manifest, ran) for ran in (before, after)]
            await asyncio.sleep(0.05)


def specs_of(release: ReleaseSet) -> dict[str, list[Digest]]:
    """What is to run for a release, as `FakeDaemon.running` tells it."""
    return {name: [one.spec] for name, one in sorted(make_aim(release, 0.0).wanted.items())}


class Field:
    """A machine that serves `old`, and what each program does there."""

    def __init__(self, folder: Path, releases: dict[str, ReleaseSet]) -> None:
        self.releases = releases
        self.behaviours: dict[str, Behaviour] = {}  # by spec
        loop = asyncio.get_running_loop()
        self.daemon = FakeDaemon(loop.time, behave=self._behave, sleep=asyncio.sleep)
        files = {name: path for release in releases.values() for name, path in release.files.items()}
        self.machine = Machine(self.daemon, FakeTrace(), folder, files)

    @property
    def whole(self) -> WholeSet:
        """Of the agent that runs now."""
        return self.machine.whole

    def _behave(self, wish: Wish) -> Behaviour:
        return self.behaviours.get(wish.spec, Behaviour())

    def behaves(self, release: str, name: str, behaviour: Behaviour) -> None:
        self.behaviours[specs_of(self.releases[release])[name][0]] = behaviour

    async def serve(self, name: str) -> None:
        await self.whole.converge(self.releases[name])
        await self.settled(name)

    async def settled(self, name: str, limit_s: float = 120.0) -> None:
        await until(lambda: self.runs(name) and self.whole.health().serving, limit_s)

    def runs(self, name: str) -> bool:
        """Exactly this release: its workers, its containers, nothing else."""
        release = self.releases[name]
        serving = self.machine.workers.serving
        return (
            serving is not None
            and serving.digest == release.digest
            and self.daemon.running() == specs_of(release)
            and len(self.daemon.made) == len(specs_of(release))
        )

    def running_or_none(self) -> dict[str, list[Digest]] | None:
        """Specs of what runs, by name; None where nobody can know."""
        return self.daemon.running()

    def check_labels(self) -> None:
        """No row names a release but while all of it ran, as far as can be known: what ended by itself is not missed
        before the next look."""
        known = {release.digest: specs_of(release) for release in self.releases.values()}
        known[None] = {}
        mortal = {spec for spec, behaviour in self.behaviours.items() if behaviour.lives_s is not None}
        assert self.machine.rows
        for at_s, manifest, ran in self.machine.rows:
            ended = {name for name, specs in known[manifest].items() if name not in ran and mortal.issuperset(specs)}
            whole = {name: specs for name, specs in known[manifest].items() if name not in ended}
            assert manifest is None or ran == whole, f"a row at {at_s:.2f} s names {known[manifest]}, and {ran} ran"

    async def end(self) -> None:
        await self.machine.end_agent()
        self.check_labels()
