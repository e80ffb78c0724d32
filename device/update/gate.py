"""Between FETCH and TRIAL: the check in a throw-away process, the wait for conditions, the second look."""

import asyncio
from collections.abc import Awaitable, Callable

from device.containers.stock import Stock
from device.update import states
from device.update.judging import Judge, without_engine
from device.update.ports import Canary
from device.update.releases import Library
from device.update.rules import Later
from device.update.states import Event, Offer, UpdateRecord
from device.update.steps import DAMAGE, Step, damage_seen, spent
from device.update.world import UpdateSettings, World
from protocol.errors import Reason, Refused, StateError


class Gate:
    """What stands between a fetched release and its trial.

    Args:
        judge: Of activation.
        canary: Tries candidates.
        library: Loads releases.
        stock: Looks at the engine.
        world: Time.
        settings: Intervals.
    """

    def __init__(
        self, *, judge: Judge, canary: Canary, library: Library, stock: Stock, world: World, settings: UpdateSettings
    ) -> None:
        self._judge = judge
        self._canary = canary
        self._library = library
        self._stock = stock
        self._world = world
        self._settings = settings

    async def check(self, record: UpdateRecord) -> Step:
        """CHECK: loads every model and holds its golden inputs, beside what runs."""
        if states.is_spent(record):
            return spent(record)
        try:
            release = await asyncio.to_thread(self._library.load, _offer(record).release.digest)
        except (Refused, StateError) as error:
            return damage_seen(record, Reason.HASH, error.message)
        try:
            await self._canary.check(release)
        except Refused as refused:
            if refused.reason in DAMAGE:
                return damage_seen(record, refused.reason, refused.message)
            return Step(Event.REFUSED, refused.reason, refused.message)
        return Step(Event.CHECKED)

    async def wait(self, record: UpdateRecord, tell: Callable[[Later], Awaitable[None]]) -> Step:
        """WAIT: until it may be activated.

        Args:
            record: In WAIT.
            tell: Called with why not yet, at each look.
        """
        offer = _offer(record)
        while True:
            try:
                later = await asyncio.to_thread(self._judge.activation, offer, record)
            except Refused as refused:
                return Step(Event.FORBIDDEN, refused.reason, refused.message)
            later = later or await without_engine(offer.release.digest, self._library, self._stock)
            if later is None:
                return Step(Event.READY)
            await tell(later)
            await self._world.sleep(self._settings.look_s)

    async def activate(self, record: UpdateRecord) -> Step:
        """ACTIVATE: hashes first, for they take time; then the look at what changes from one second to the next."""
        offer = _offer(record)
        away = await without_engine(offer.release.digest, self._library, self._stock)
        if away is not None:
            return Step(Event.NOT_NOW, detail=away.why)
        try:
            release = await asyncio.to_thread(self._library.load, offer.release.digest)
            needed = self._library.needed(release.manifest)
            damaged = await asyncio.to_thread(self._library.drop_damaged, needed)
        except (Refused, StateError) as error:
            return damage_seen(record, Reason.HASH, error.message)
        if damaged:
            return damage_seen(record, Reason.HASH, f"{damaged[0][:12]} in the store is not what it was")
        try:
            later = await asyncio.to_thread(self._judge.activation, offer, record)
        except Refused as refused:
            return Step(Event.FORBIDDEN, refused.reason, refused.message)
        return Step(Event.NOT_NOW, detail=later.why) if later is not None else Step(Event.ACTIVATED)


def _offer(record: UpdateRecord) -> Offer:
    assert record.offer is not None
    return record.offer
