"""FETCH: brings what an offer needs. Whatever stands in its way pauses it, and it goes on once that is gone."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import Final

from device.containers.engine import EngineAwayError, EngineError
from device.containers.stock import Stock
from device.store import NoSpaceError, Store
from device.threads import to_its_end
from device.transfer import (
    ApplierEndedError,
    OverBudgetError,
    PatchFailedError,
    Purse,
    Unlimited,
    adopt_finished,
    bases,
    begun_bases,
    held_bytes,
)
from device.update.cleaning import clean, named
from device.update.memory import Memory
from device.update.progress import Progress
from device.update.releases import Library
from device.update.sets import Sets
from device.update.states import Event, State, UpdateRecord
from device.update.steps import Step
from device.update.world import Fetcher, Treasury, UpdateSettings, World
from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import Digest
from protocol.kits import is_kit
from protocol.objects import AssignmentBody, Payload, TransferPlan
from protocol.release import ReleaseManifest, parse_manifest

ENGINE_LOOK_S: Final = 15.0  # how often a paused fetch looks whether its engine is back


class Obstacle(Enum):
    """What a paused fetch waits for, as far as it can be told that it is gone."""

    NONE = auto()
    LINK = auto()
    STICK = auto()  # of the kit that brings it
    # The server lacks a blob, or planned for what we do not have, what failed here, or what costs too much.
    PLAN = auto()
    ENGINE = auto()


class Fetching:
    """Brings the record's offer.

    Args:
        memory: Its assignment and plan.
        store: Where its artifacts go.
        library: Says which ones are needed.
        sets: Of releases that may have to go for it.
        stock: Takes its images into the engine.
        fetcher: Brings blobs over the air.
        kit_fetcher: Brings them from the stick of a kit; None: no kits are used here.
        treasury: Pays for what comes over the air.
        world: Time and chance.
        settings: Intervals.
    """

    def __init__(
        self,
        *,
        memory: Memory,
        store: Store,
        library: Library,
        sets: Sets,
        stock: Stock,
        fetcher: Fetcher,
        kit_fetcher: Fetcher | None = None,
        treasury: Treasury,
        world: World,
        settings: UpdateSettings,
    ) -> None:
        self._memory = memory
        self._store = store
        self._library = library
        self._sets = sets
        self._stock = stock
        self._fetcher = fetcher
        self._kit_fetcher = kit_fetcher
        self._treasury = treasury
        self._world = world
        self._settings = settings
        self._obstacle = Obstacle.NONE
        self._underway = False
        self._delay = False

    @property
    def obstacle(self) -> Obstacle:
        """What stopped it last."""
        return self._obstacle

    @property
    def underway(self) -> bool:
        """It is not paused."""
        return self._underway

    def delay(self, wanted: bool) -> None:
        """Whether a fetch that is begun again waits first: not after a start, nor when its obstacle went away."""
        self._delay = wanted

    def parts(self) -> dict[Digest, int]:
        """Of the payloads that are being fetched, the bytes that need not travel again. Blocking."""
        try:
            assignment = self._memory.assignment()
            steps = assignment.plan.steps if assignment is not None else ()
            return {name: held for step in steps for name, held in held_bytes(self._store, step).items()}
        except (StateError, OSError):  # what the disk does not tell must keep no contact from being made
            return {}

    async def fetch(self, record: UpdateRecord, show: Callable[[Progress], None]) -> Step:
        """Brings all that is missing.

        Args:
            record: In FETCH.
            show: Told of the bytes that came.
        """
        again = record.failures or record.damages
        if again and self._delay:
            await self._wait(self._settings.backoff_s(again, self._world.random()))
        self._obstacle = Obstacle.NONE
        self._underway = True
        try:
            await self._bring(record, show)
        except (Refused, PatchFailedError, LinkError, StateError, OSError) as error:
            return self._hindered(error, record)
        finally:
            self._underway = False
        return Step(Event.FETCHED)

    async def _wait(self, wait_s: float) -> None:
        """For an engine that was away no longer than until it is back. One that ends over each load is asked as
        rarely as for anything else that goes wrong."""
        if self._obstacle is not Obstacle.ENGINE:
            await self._world.sleep(wait_s)
            return
        ends_s = self._world.monotonic() + wait_s
        while (left_s := ends_s - self._world.monotonic()) > 0:
            await self._world.sleep(min(left_s, ENGINE_LOOK_S))
            with contextlib.suppress(EngineAwayError, EngineError):
                await self._stock.look()
                return

    async def _bring(self, record: UpdateRecord, show: Callable[[Progress], None]) -> None:
        assignment = await asyncio.to_thread(self._memory.assignment)
        if assignment is None:
            self._obstacle = Obstacle.PLAN
            raise StateError("the offer's assignment is not in state.db: the next contact brings it")
        fetcher, purse = self._source(assignment)
        await to_its_end(self._take_in_finished, assignment, purse)
        await self._stock.give_up_others(bases(assignment.plan))
        await clean(record, self._memory, self._library, self._sets, self._stock)
        manifest = await self._manifest(assignment.manifest, fetcher)
        needed = self._library.needed(manifest)
        images = self._library.images(manifest)
        if images:
            # Before anything travels: what an engine holds counts as here, and for one that is away nothing is spent.
            self._obstacle = Obstacle.ENGINE
            await self._stock.look()
            self._obstacle = Obstacle.NONE
            self._stock.learn(await asyncio.to_thread(lambda: self._library.all_images(named(record, self._library))))
            self._stock.learn(images)
        # Files may have their length and not their bytes: looked at once, not again after each pause.
        find = self._library.missing if record.failures else self._library.drop_damaged
        missing = await asyncio.to_thread(find, needed)
        steps = [step for step in assignment.plan.steps if step.artifact in missing]
        total = await asyncio.to_thread(
            lambda: sum(step.travels_bytes() - sum(held_bytes(self._store, step).values()) for step in steps)
        )
        progress = Progress(State.FETCH, bytes_total=total)
        show(progress)

        def received(count: int) -> None:
            nonlocal progress
            progress = replace(progress, bytes_done=progress.bytes_done + count)
            show(progress)

        lacking = [artifact for artifact in needed if artifact.sha256 in missing]
        try:
            if images:
                needed_bases = [step.base for step in steps if step.base is not None]
                await self._with_room(assignment.plan, lambda: self._stock.hold_room(images, needed_bases))
            await self._with_room(assignment.plan, lambda: fetcher.fetch(assignment.plan, lacking, received, purse))
            for image in images:
                show(replace(progress, why="images go into the engine"))
                await self._with_room(assignment.plan, partial(self._stock.bring, image))
        finally:
            if images:
                await self._stock.give_room_back()

    def _source(self, assignment: AssignmentBody) -> tuple[Fetcher, Purse]:
        """What brings an offer's blobs and what pays for them: what a stick brings costs nothing and counts nowhere."""
        if not is_kit(assignment.rollout):
            return self._fetcher, self._treasury.purse(assignment.manifest.sha256, assignment.budget)
        if self._kit_fetcher is None:
            raise LinkError("no field kits are used here")
        return self._kit_fetcher, Unlimited(lambda _: None)

    async def _with_room(self, plan: TransferPlan, step: Callable[[], Awaitable[None]]) -> None:
        """Does it; where there is no room for it, once more after the others on this disk gave back what they can."""
        try:
            await step()
        except NoSpaceError as error:
            begun = await asyncio.to_thread(begun_bases, self._store, plan)
            given = await self._stock.give_back(max(error.lacks_bytes, error.over_bytes), begun)
            if given < error.lacks_bytes:
                given += await self._world.make_room(error.lacks_bytes - given)
            if not given:
                raise
            await step()

    def _take_in_finished(self, assignment: AssignmentBody, purse: Purse) -> None:
        """What another plan finished is taken in before the rest of it, which nothing names any more, is deleted."""
        with contextlib.suppress(StateError, Refused):  # without the manifest nothing is known to be needed
            needed = self._library.needed(self._library.manifest(assignment.manifest.sha256))
            adopt_finished(self._store, needed, purse)

    async def _manifest(self, signed: Payload, fetcher: Fetcher) -> ReleaseManifest:
        """The manifest from the store, or again from the source when the store lost it."""
        with contextlib.suppress(StateError, Refused):
            return await asyncio.to_thread(self._library.manifest, signed.sha256)
        data = await fetcher.small(signed, limits.MANIFEST_BYTES)
        await to_its_end(self._store.put, data)
        return parse_manifest(data)

    def _hindered(
        self, error: Refused | PatchFailedError | LinkError | StateError | OSError, record: UpdateRecord
    ) -> Step:
        """What stands in the way of a fetch. Only a rule ends the update; everything else pauses it."""
        match error:
            case Refused(reason=Reason.WRONG_HARDWARE):  # an accelerator was unplugged since the offer came
                return Step(Event.FORBIDDEN, error.reason, error.message)
            case Refused():  # the source is bad, not the release: nothing is remembered against it
                return Step(Event.PAUSED, error.reason, error.message)
            case PatchFailedError():
                # Nothing is fetched in its place: the server is told, and its next plan has a price that the budget
                # judges.
                self._obstacle = Obstacle.PLAN
                return Step(Event.PAUSED, error.reason, f"patch: {error.message}")
            case ApplierEndedError():
                # After a few of these the machine says that it applies no patches, and the next plan does without.
                self._obstacle = Obstacle.PLAN
                return Step(Event.PAUSED, detail=f"applier: {error}")
            case OverBudgetError():
                self._obstacle = Obstacle.PLAN
                return Step(Event.PAUSED, Reason.BUDGET, f"budget: {error.message}", needs_bytes=error.needs_bytes)
            case NoSpaceError() | EngineAwayError() | EngineError():
                where = "space" if isinstance(error, NoSpaceError) else "engine"
                return Step(Event.PAUSED, detail=f"{where}: {error.message}")
            case LinkError():
                return self._out_of_reach(error, record)
            case _:
                return Step(Event.PAUSED, detail=f"disk: {error}")

    def _out_of_reach(self, error: LinkError, record: UpdateRecord) -> Step:
        kit = record.offer.rollout if record.offer is not None else ""
        if is_kit(kit):
            self._obstacle = Obstacle.STICK
            return Step(Event.PAUSED, detail=f"stick: plug in one with {kit}, and it goes on ({error.message})")
        self._obstacle = Obstacle.LINK if error.retryable else Obstacle.PLAN
        return Step(Event.PAUSED, detail=f"link: {error.message}")
