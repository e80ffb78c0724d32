"""Updates on the real updater, store, accounts and transfer: one that is kept, one that fails, one that kills."""

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

import msgspec

from device.state_db import StateDb
from device.store import Store
from device.update.memory import floors_of
from device.update.ports import Health
from device.update.states import Held, State, UpdateRecord
from device.update.updater import Updater
from protocol.container import Image, RunSpec
from protocol.ids import digest
from protocol.limits import KIB
from protocol.objects import Conditions, TransferPlan
from protocol.release import TrialRules
from tests.fakes.container_sets import pack_container
from tests.fakes.machines import Bench
from tests.fakes.patches import PlainPatch
from tests.fakes.updates import BlobSource, Release, noise, permit, terms
from tests.simulation.workload import Promises, leftovers
from tests.simulation.workloads.start import started

CHUNK = 64 * KIB
PERMIT_MS = 1_790_000_000_000
LIVES = 12  # more than any release may take down


class Watched(StateDb):
    """Looks at each step as it is written."""

    def write_record(self, record, *, floors=None, statuses=(), refusal=None, facts=None):
        if record.state is State.COMMIT:
            was = self.record().state
            assert was in (State.TRIAL, State.COMMIT), f"{record.offer.release.version} is committed without a trial"
        super().write_record(record, floors=floors, statuses=statuses, refusal=refusal, facts=facts)


class Told(Watched):
    """Says what became durable, in the moment in which the product may count on it."""

    promise: Promises
    said: set[str]

    def say(self, what: str) -> None:
        if what not in self.said:
            self.said.add(what)
            self.promise(what)

    def write_record(self, record, *, floors=None, statuses=(), refusal=None, facts=None):
        statuses = tuple(statuses)
        super().write_record(record, floors=floors, statuses=statuses, refusal=refusal, facts=facts)
        if record.state is not State.IDLE and record.offer is not None:
            self.say(f"accepted {record.offer.release.version}")
        if floors:
            self.promise(f"committed {record.committed.version}")
        if refusal is not None:
            self.promise(f"refused {refusal.release}")
        for status in statuses:
            self.promise(f"told {status.id}")

    def count_all(self, more, facts):
        super().count_all(more, facts)
        self.promise(f"counted {sum(more.values())}")


class Died(BaseException):
    """The release took the machine down. Nothing of ours may catch it."""


class Updating:
    """A machine on the release OLD is offered NEW.

    Args:
        name: Of the workload.
        old: Installed.
        new: Offered.
        plan: By which it travels; its own when None.
        blobs: What travels besides the releases' own.
    """

    expected = "committed"
    ends = 1

    def __init__(
        self,
        name: str,
        old: Release,
        new: Release,
        plan: TransferPlan | None = None,
        blobs: dict[str, bytes] | None = None,
    ) -> None:
        self.name = name
        self.old = old
        self.new = new
        self.plan = plan or new.plan
        self.blobs = blobs or {}

    def prepare(self, home: Path) -> None:
        state = home / "state"
        state.mkdir(mode=0o700)

        async def install() -> None:
            bench = Bench(state, self.source())
            async with bench.running():
                await bench.install(self.old)
            bench.boot()
            bench.db.drop_statuses(status.id for status in bench.db.pending_statuses(100))
            bench.db.close()

        asyncio.run(install())

    def act(self, home: Path, promise: Promises) -> None:
        told = type("Told", (Told,), {"promise": promise, "said": set()})
        asyncio.run(self.play(home / "state", told, is_offered=True))

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        # What was accepted needs no second word of the server; what was not is offered again at the next contact.
        offered = f"accepted {self.new.version}" not in promised
        asyncio.run(self.play(home / "state", Watched, is_offered=offered))

    def check(self, home: Path, promised: Sequence[str]) -> None:
        state = home / "state"
        db = StateDb(state / "state.db")
        try:
            record, refusals, statuses = db.record(), db.refusals(), db.pending_statuses(1000)
            floors, counters = db.floors("update/"), db.counters()
        finally:
            db.close()
        kept = self.new if self.expected == "committed" else self.old
        assert record.state is State.IDLE, record
        assert record.last is not None, record
        assert record.last.outcome == self.expected, record
        assert record.committed is not None, record
        assert (record.committed.digest, record.active) == (kept.digest, kept.digest), record
        assert floors == self.floors(), "the floor is that of what was committed"
        assert (state / "sets/active").readlink() == Path(kept.digest), "the link follows the record"
        assert (state / "active").readlink() == Path("sets/active"), "readers on the machine find it"
        named = {held.digest: held for held in (record.committed, record.previous) if held is not None}
        releases = [release for release in (self.old, self.new) if release.digest in named]
        wanted = self.kept(releases)
        assert {path.name for path in (state / "sets").iterdir()} == {"active", *named}
        assert {path.name for path in (state / "store/sha256").iterdir()} == wanted, "the store holds what is named"
        store = Store(state / "store", keep_free_bytes=0)
        assert all(store.is_whole(name) for name in wanted), "what the record names is whole"
        assert list((state / "store/parts").iterdir()) == [], "nothing of the download stays"
        assert leftovers(state) == [], "nothing of a write stays"
        assert [refusal.release for refusal in refusals] == (
            [self.new.version] if self.expected == "rolled-back" else []
        )
        # What was told the machine's owner, or may have been told the server.
        known = {status.id for status in statuses}
        assert {line.split()[1] for line in promised if line.startswith("told ")} <= known, "no word is taken back"
        ends = [status.outcome for status in statuses if status.outcome and status.outcome != "deferred"]
        assert ends == [self.expected] * self.ends, "each end is told once"
        counted = sum(int(line.split()[1]) for line in promised if line.startswith("counted "))
        assert sum(counters.values()) >= counted, "what was counted stays counted"
        if f"committed {self.new.version}" in promised:
            assert kept is self.new, "what was committed is never taken back"

    def floors(self) -> dict[str, int]:
        """Of the update, in the end."""
        return floors_of(held(self.new if self.expected == "committed" else self.old))

    def kept(self, releases: Sequence[Release]) -> set[str]:
        """What the store holds of these releases."""
        return {name for release in releases for name in (*release.artifacts, release.digest)}

    def source(self) -> BlobSource:
        found = BlobSource(self.old, self.new, chunk_bytes=CHUNK)
        found.blobs.update(self.blobs)
        return found

    def bench(self, state: Path) -> Bench:
        """The machine and its world."""
        return Bench(state, self.source())

    async def play(self, state: Path, open_db: type[StateDb], *, is_offered: bool) -> None:
        """Lives until the update is over; a life ends when the release takes the machine down."""
        for _ in range(LIVES):
            with contextlib.suppress(Died), started(state):
                bench = self.bench(state)
                bench.open_db = open_db
                return await self.live(bench, is_offered=is_offered)
            is_offered = False
        raise AssertionError(f"{LIVES} lives, and it still tries")

    async def live(self, bench: Bench, *, is_offered: bool) -> None:
        async with bench.running() as updater:
            if updater.record.state is not State.TRIAL:
                assert bench.workers.serving == updater.record.active, "what is active serves before any contact"
            if is_offered:
                await self.offer(updater)
                await bench.until(lambda: self.is_known(updater.record))
            assert self.is_known(updater.record), "what was accepted is forgotten"
            await bench.until(lambda: bench.is_dead or is_at_rest(updater.record))

    async def offer(self, updater: Updater) -> None:
        """As the next contact does."""
        assignment = msgspec.structs.replace(self.new.assignment(), plan=self.plan)
        await updater.offer(assignment, self.new.manifest_bytes, terms(self.old, self.new), may_install=True)

    def is_known(self, record: UpdateRecord) -> bool:
        """Whether the new release is underway, or was."""
        return record.offer is not None or (record.last is not None and record.last.release.digest == self.new.digest)


class RollingBack(Updating):
    """The new release crashes in its trial."""

    expected = "rolled-back"

    def bench(self, state: Path) -> Bench:
        bench = super().bench(state)
        bench.workers.shown[self.new.digest] = Health(digest=self.new.digest, serving=True, crashes=("SIGSEGV",))
        return bench


class Dying(Updating):
    """The new release takes the whole machine down each time that it serves."""

    expected = "unfinished"
    ends = 2  # it is tried again once

    def bench(self, state: Path) -> Bench:
        bench = super().bench(state)
        converge = bench.workers.converge

        async def die(release, *, trial: bool = False) -> None:
            await converge(release, trial=trial)
            if release is not None and release.digest == self.new.digest:
                bench.is_dead = True
                raise Died

        bench.workers.converge = die
        return bench


class GoingBack(Updating):
    """A kit brings an older release, by a permit, and a technician forces it: its window never opens. There is no link,
    and the stick is pulled out once. Nothing that came that way is counted as having come over the air.
    """

    def bench(self, state: Path) -> Bench:
        bench = super().bench(state)
        bench.source.up = False
        bench.stick = self.source()
        bench.stick.drops_at = {self.new.travels_bytes // 2}
        return bench

    async def offer(self, updater: Updater) -> None:
        permits = (permit(self.new, created_ms=PERMIT_MS),)
        known = msgspec.structs.replace(terms(self.old, self.new), permits=permits)
        assignment = self.new.assignment("kit-a", Conditions(not_before_ms=2 * PERMIT_MS))
        await updater.offer(assignment, self.new.manifest_bytes, known, may_install=True, forced="f" * 32)

    def check(self, home: Path, promised: Sequence[str]) -> None:
        super().check(home, promised)
        db = StateDb(home / "state" / "state.db")
        try:
            assert db.counters()["bytes_received"] == self.old.travels_bytes, "what a stick brings is not counted"
        finally:
            db.close()

    def floors(self) -> dict[str, int]:
        return floors_of(held(self.old)) | {"update/permit": PERMIT_MS}  # the floor stays, and the permit is used up


class WithImages(Updating):
    """Both releases have a container, and the store keeps no layer that the engine has: the application travels as a
    patch against one that only the engine holds. What the engine was given it keeps, whatever becomes of the machine.
    """

    told: Promises | None = None
    given: frozenset[str] = frozenset()

    def act(self, home: Path, promise: Promises) -> None:
        self.told = promise
        super().act(home, promise)

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        self.told = None  # whoever heard is gone, also where the same process recovers
        self.given = frozenset(line.split()[1] for line in promised if line.startswith("loaded "))
        super().recover(home, promised)

    def bench(self, state: Path) -> Bench:
        bench = super().bench(state)
        bench.keep_layers = "never"
        put, daemon = bench.daemon.put, bench.daemon
        put(self.image(self.old), self.old.artifacts)
        if self.image(self.new).config.sha256 in self.given:
            put(self.image(self.new), self.new.artifacts)

        def note(image, contents=None) -> None:
            put(image, contents)
            if self.told is not None:
                self.told(f"loaded {image.config.sha256}")

        daemon.put = note
        return bench

    async def live(self, bench: Bench, *, is_offered: bool) -> None:
        async with bench.running() as updater:
            record = updater.record
            is_new = record.committed is not None and record.committed.digest == self.new.digest
            if is_new or record.state not in (State.IDLE, State.FETCH):
                bench.daemon.put(self.image(self.new), self.new.artifacts)  # in a life that is not told of
            if is_offered:
                await self.offer(updater)
                await bench.until(lambda: self.is_known(updater.record))
            assert self.is_known(updater.record), "what was accepted is forgotten"
            # What an engine let go of late goes beside what serves.
            await bench.until(lambda: is_at_rest(updater.record) and not bench.kept() & set(bench.daemon.layers))
            names = {self.image(release).config.sha256 for release in (self.old, self.new)}
            assert bench.daemon.marked == names, "the engine holds the images of both slots"
            for release in (self.old, self.new):
                layers = {layer.artifact.sha256 for layer in self.image(release).layers}
                assert all(bench.daemon.layers[name] == release.artifacts[name] for name in layers)

    def kept(self, releases: Sequence[Release]) -> set[str]:
        layers = {layer.artifact.sha256 for release in releases for layer in self.image(release).layers}
        return super().kept(releases) - layers

    def image(self, release: Release) -> Image:
        return release.containers[0].image


def held(release: Release) -> Held:
    return Held(digest=release.digest, version=release.version, release_counter=release.counter, era=release.era)


def is_at_rest(record: UpdateRecord) -> bool:
    """Whether nothing is underway, and nothing will be tried again."""
    return record.state is State.IDLE and record.offer is None


def _patched() -> Updating:
    """Most of the new release comes as a patch: three groups in two segments."""
    old = Release("1.0.0", 1, noise(60_000, 1))
    groups = [(0, 50_000, 9000), (5, 40_000, 260_000), (7, 10_000, 3000)]
    patch = PlainPatch(groups, base=old.model, is_indexed=True)
    new = Release("1.1.0", 2, patch.result)
    whole = next(step for step in new.plan.steps if step.artifact == patch.step.artifact)
    delta = msgspec.structs.replace(patch.step, full_bytes=whole.travels_bytes())
    steps = tuple(delta if step is whole else step for step in new.plan.steps)
    plan = TransferPlan(steps=steps, full_bytes=new.plan.travels_bytes())
    return Updating("update", old, new, plan, patch.blobs)


def _with_images() -> Updating:
    base, run = noise(3000, 11), RunSpec(command=("/app",))
    patch = PlainPatch([(0, 20_000, 9000), (5, 9000, 300)], base=noise(30_000, 12), is_indexed=True)
    old = Release("1.0.0", 1, noise(900, 1), containers=(pack_container("app", run, (base, patch.base)),))
    new = Release("1.1.0", 2, noise(900, 2), containers=(pack_container("app", run, (base, patch.result)),))
    steps = {step.artifact: step for step in new.plan.steps} | {patch.step.artifact: patch.step}
    lower = steps[digest(base)]
    steps[digest(base)] = msgspec.structs.replace(lower, method="have", payload=None, index=None)
    plan = TransferPlan(steps=tuple(steps.values()), full_bytes=new.plan.travels_bytes())
    return WithImages("images", old, new, plan, patch.blobs)


@functools.cache
def workloads() -> list[Updating]:
    old = Release("1.0.0", 1, noise(4000, 1))
    impatient = TrialRules(healthy_s=3.0, min_healthy_s=1.0, max_failed_starts=2, min_inferences=10, max_retries=1)
    return [
        _patched(),
        RollingBack("rollback", old, Release("1.1.0", 2, noise(4000, 2))),
        Dying("dying", old, Release("1.1.0", 2, noise(4000, 2), trial=impatient)),
        _with_images(),
        GoingBack("kit", Release("1.1.0", 5, noise(4000, 3)), Release("1.0.0", 2, noise(90_000, 4))),
    ]
