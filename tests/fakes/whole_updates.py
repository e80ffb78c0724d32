"""Updates of a whole set, killed wherever a test says: the update machine's own table over a record that outlives cuts.

It does what `device.update.updater` does of a trial, without disk and network: its states and its watching are the real
ones. `tests/unit/device/update/test_whole_updates.py` has the real thing.
"""

import asyncio
import random
from typing import Any

import msgspec

from device.update import states
from device.update.ports import HinderedError
from device.update.states import Event, Held, Offer, State, UpdateRecord
from device.update.steps import Step, failed, spent
from device.update.watching import Watcher
from device.update.world import UpdateSettings, World
from protocol.errors import Refused
from tests.fakes.engine import FakeEngine
from tests.fakes.whole_sets import RULES, Field, specs_of


class Updates:
    """One machine's updates, and who ends what on the way.

    Args:
        field: The machine.
        old: What it serves at first; committed.
        settings: How often a trial is looked at.
        back_s: After which whoever was killed is started again.
    """

    def __init__(self, field: Field, old: str, settings: UpdateSettings | None = None, back_s: float = 2.0) -> None:
        self.settings = settings or UpdateSettings()
        self.back_s = back_s
        self.field = field
        self.names = {release.digest: name for name, release in field.releases.items()}
        held = self._held(old)
        self.record = UpdateRecord(active=held.digest, committed=held)
        self.writes = 0
        self.calls: list[str] = []  # to the engine, of the last update
        self.cuts_at_write: dict[int, str] = {}  # before or after

    def _held(self, name: str) -> Held:
        release = self.field.releases[name]
        return Held(digest=release.digest, version=release.manifest.version, release_counter=1)

    async def update(self, name: str) -> str:
        """Updates to a release, through whatever ends agent and engine; returns which is committed at the end."""
        offer = Offer(release=self._held(name), rollout="spring", trial=RULES)
        ready = msgspec.structs.replace(self.record, state=State.ACTIVATE, offer=offer)
        self.record = states.advance(ready, Event.ACTIVATED)
        self.field.daemon.calls.clear()
        async with asyncio.timeout(3600):
            while not await self._one_life():
                pass
        return self._committed()

    async def serve(self) -> None:
        """What is committed serves, whole."""
        await self.field.serve(self.names[self.record.active or ""])

    async def _one_life(self) -> bool:
        """Until the update has ended and its outcome runs, or the agent is killed; then it is started again. Tells
        whether it has."""
        engine = self.field.machine.engine
        life = asyncio.create_task(self._live(engine))
        killed = asyncio.create_task(engine.was_cut.wait())
        power = asyncio.create_task(self._keep_engine_up())
        await asyncio.wait({life, killed}, return_when=asyncio.FIRST_COMPLETED)
        for task in (life, killed, power):
            task.cancel()
        await asyncio.gather(life, killed, power, return_exceptions=True)
        if not life.cancelled():
            life.result()
            return True
        await self.field.machine.end_agent()
        await asyncio.sleep(self.back_s)
        self.field.machine.start_agent()
        return False

    async def _live(self, engine: FakeEngine) -> None:
        await self._write(engine, states.resume(self.record))
        if self.record.state is not State.TRIAL:
            await self._follow()
        while self.record.state is not State.IDLE:
            step = await self._work()
            after = states.advance(self.record, step.event, reason=step.reason, detail=step.detail)
            if step.event is Event.HEALTHY:
                running = self.field.running_or_none()
                assert running in (None, specs_of(self._release(self.record.active))), "a verdict on a mixed set"
            await self._write(engine, after)
        await self.field.settled(self._committed())
        self.calls = list(self.field.daemon.calls)

    async def _work(self) -> Step:
        record = self.record
        match record.state:
            case State.TRIAL:
                if states.is_spent(record):
                    return spent(record)
                release = self._release(record.active)
                try:
                    await self.field.whole.converge(release, trial=True)
                except (Refused, HinderedError) as error:
                    return failed(error, record)
                world = World(
                    now=lambda: (0, True),
                    new_id=lambda: "0",
                    random=random.random,
                    time_floor_ms=lambda: 0,
                    monotonic=_time,
                )
                watcher = Watcher(self.field.whole, world, self.settings)
                return await watcher.watch(
                    release, record, keep=self._keep, show=_nothing, another_waits=lambda: False, forbidden=_none
                )
            case State.COMMIT:
                await self._follow()
                return Step(Event.COMMITTED)
            case State.ROLLBACK:
                await self._follow()
                return Step(Event.RESTORED)
            case _:
                if states.will_retry(record):
                    self.record = msgspec.structs.replace(record, offer=None)
                return Step(Event.CLEAN)

    def _committed(self) -> str:
        assert self.record.committed is not None
        assert self.record.active == self.record.committed.digest
        return self.names[self.record.committed.digest]

    async def _follow(self) -> None:
        await self.field.whole.converge(self._release(self.record.active))

    def _release(self, name: str | None) -> Any:
        return self.field.releases[self.names[name or ""]]

    async def _keep(self, watched: Any) -> UpdateRecord:
        record = states.observed(
            self.record,
            healthy_s=watched.healthy_s,
            inferences=watched.inferences,
            errors=watched.errors,
            this_start_s=watched.this_start_s,
        )
        await self._write(self.field.machine.engine, record)
        return record

    async def _write(self, engine: FakeEngine, record: UpdateRecord) -> None:
        """Durable on return, unless the agent is killed before or after it."""
        self.writes += 1
        if engine.was_cut.is_set() or self.cuts_at_write.get(self.writes) == "before":
            engine.cut()
            await asyncio.Event().wait()
        self.record = record
        if self.cuts_at_write.get(self.writes) == "after":
            engine.cut()
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    async def _keep_engine_up(self) -> None:
        """A supervisor starts it again a while after it died."""
        while True:
            await asyncio.sleep(0.75 * self.back_s)
            if not self.field.daemon.up:
                await asyncio.to_thread(self.field.daemon.restart)


def _time() -> float:
    return asyncio.get_running_loop().time()


def _nothing(_: Any) -> None: ...


async def _none() -> None:
    return None
