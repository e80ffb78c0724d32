"""Workers and the `active` link follow the record, without any network. What cannot be followed is tried again.

Mending runs beside whatever the update does before it activates anything: an offer that waits for its window for weeks
must not keep the committed release from serving. From ACTIVATE on the record says anew what serves, and it stops.
"""

import asyncio
import logging
from typing import Final, overload

from device.cancelling import cancel
from device.containers.stock import Stock
from device.store import Store
from device.threads import to_its_end
from device.update import rules
from device.update.hardware import Hardware
from device.update.memory import Memory
from device.update.ports import ReleaseSet, Workers
from device.update.releases import Library
from device.update.sets import Sets
from device.update.states import Held, UpdateRecord
from device.update.world import UpdateSettings, World
from protocol.container import Image
from protocol.errors import HeadlandError, Reason, Refused, StateError
from protocol.ids import Digest

log = logging.getLogger(__name__)

LATE_LOOKS: Final = 3  # some 30 seconds by the first waits: a bus is enumerated long before


class Serving:
    """What serves on one machine.

    Args:
        workers: What serves.
        library: Loads releases.
        store: Where their manifests lie.
        sets: What outside readers see.
        stock: Knows which images are lost.
        memory: Knows what the managers withdrew.
        hardware: Looked at again where a release does not come up.
        world: Time and chance.
        settings: Intervals.
    """

    def __init__(
        self,
        *,
        workers: Workers,
        library: Library,
        store: Store,
        sets: Sets,
        stock: Stock,
        memory: Memory,
        hardware: Hardware,
        world: World,
        settings: UpdateSettings,
    ) -> None:
        self._workers = workers
        self._library = library
        self._store = store
        self._sets = sets
        self._stock = stock
        self._images: tuple[Image, ...] = ()  # of what serves
        self._memory = memory
        self._hardware = hardware
        self._world = world
        self._settings = settings
        self._damaged = ""
        self._link_lags = False
        self._mending: asyncio.Task[None] | None = None

    @property
    def damaged(self) -> str:
        """Why the release that the record names cannot serve, or not as a whole; empty when it does."""
        return self._damaged or self._stock.lost(self._images)

    async def follow(self, record: UpdateRecord) -> None:
        """Workers and `active` follow the record; when its release cannot serve, another one does meanwhile."""
        wanted = [record.active, record.committed.digest if record.committed is not None else None]
        if record.previous is not None and await self._may_fall_back(record.previous):
            wanted.append(record.previous.digest)
        damaged = ""  # told only at the end: this may be interrupted, and nothing is whole that was not seen to be
        for name in dict.fromkeys(name for name in wanted if name is not None):
            try:
                release = await self.converge(name)
            except (Refused, StateError, OSError) as error:
                damaged = damaged or str(error)
                log.warning("release %s cannot serve: %s", (name or "")[:12], error)
                continue
            await self._show_or_later(release)
            break
        else:  # and what was rolled back must not go on either
            await self.converge(None)
            await self._show_or_later(None)
        self._damaged = damaged

    def start_mending(self, record: UpdateRecord) -> None:
        """Where something is damaged or `active` is behind, follows again until neither is, in a task of its own.

        Args:
            record: Names what serves, for as long as this goes on.
        """
        if self._is_behind and (self._mending is None or self._mending.done()):
            self._mending = asyncio.create_task(self._mend(record))

    async def stop_mending(self) -> None:
        """On return nothing of it goes on."""
        task, self._mending = self._mending, None
        if task is not None:
            await cancel(task)

    @overload
    async def converge(self, name: Digest, *, trial: bool = False) -> ReleaseSet: ...
    @overload
    async def converge(self, name: None) -> None: ...
    async def converge(self, name: Digest | None, *, trial: bool = False) -> ReleaseSet | None:
        """Loads a release and makes the workers serve it.

        Args:
            name: Digest of its manifest; None for no release.
            trial: As `Workers.converge`, whose errors it has.

        Raises:
            StateError: A file is missing.
            Refused: A file is not what it was, or the release does not come up.
        """
        release = await asyncio.to_thread(self._library.load, name) if name is not None else None
        await self._workers.converge(release, trial=trial)
        self._images = tuple(release.images.values()) if release is not None else ()
        return release

    async def bring_up(self, name: Digest) -> ReleaseSet:
        """As `converge` for a trial, but waits a while for hardware that is not there: a boot may enumerate it late."""
        looks = 0
        while True:
            try:
                return await self.converge(name, trial=True)
            except Refused as refused:
                if refused.reason is not Reason.WRONG_HARDWARE or looks == LATE_LOOKS:
                    raise
            looks += 1
            await self._world.sleep(self._settings.backoff_s(looks, self._world.random()))
            await self._hardware.look_again()

    async def show(self, release: ReleaseSet) -> None:
        """Makes `active` the release on trial that the workers serve."""
        await to_its_end(self._show, release)
        self._damaged = ""

    async def _may_fall_back(self, previous: Held) -> bool:
        try:
            terms = await asyncio.to_thread(self._memory.terms)
        except StateError:
            terms = None
        return rules.may_fall_back(previous, terms)

    @property
    def _is_behind(self) -> bool:
        return bool(self._damaged) or self._link_lags

    async def _mend(self, record: UpdateRecord) -> None:
        """After longer and longer waits. At a boot it may be the accelerator that is not there yet."""
        times = 0
        while self._is_behind:
            times += 1
            await self._world.sleep(self._settings.backoff_s(times, self._world.random()))
            try:
                if self._damaged:
                    await self._hardware.look_again()
                await self.follow(record)
            except (HeadlandError, OSError) as error:
                log.warning("what should serve cannot be followed: %s", error)
            except Exception:
                # A bug: nobody else would begin this again before something happens to the update.
                log.exception("what should serve cannot be followed")

    async def _show_or_later(self, release: ReleaseSet | None) -> None:
        """A full disk must not keep a release from serving: `active` follows once it can."""
        try:
            await to_its_end(self._show, release)
        except OSError as error:
            self._link_lags = True
            log.warning("the link `active` is behind: %s", error)

    def _show(self, release: ReleaseSet | None) -> None:
        if release is None:
            self._sets.hide()
        else:
            self._sets.show(release, self._store.path(release.digest))
        self._link_lags = False
