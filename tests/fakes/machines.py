"""A machine with a real state folder, a real updater and everything around it under the test's hand."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from device.accounts import Accounts
from device.containers.owner import Owner
from device.containers.settings import KeepLayers
from device.containers.stock import Stock
from device.day import Instant
from device.state_db import StateDb
from device.store import Store
from device.totals import Totals
from device.transfer import Transfer, TransferSettings
from device.transfer.applier import in_process
from device.transfer.patch_book import PatchBook
from device.update.ports import Workers
from device.update.rules import Machine
from device.update.sets import Sets
from device.update.states import State
from device.update.updater import Updater
from device.update.world import UpdateSettings, World
from protocol.messages import Inventory, UpdateStatus
from protocol.objects import Budget
from signing.durable import DISK, Disk
from tests.fakes.engine import FakeDaemon, FakeEngine
from tests.fakes.patches import apply_plainly
from tests.fakes.updates import MACHINE, BlobSource, Release, terms
from tests.fakes.workers import FakeCanary, FakeWorkers


async def no_room(need_bytes: int) -> int:
    return 0


class Bench:
    """One machine on the bench. Time passes only where something sleeps, and then at once.

    Args:
        folder: Its state folder.
        source: Where its blobs come from.
    """

    def __init__(self, folder: Path, source: BlobSource, *, disk: Disk = DISK, machine: Machine = MACHINE) -> None:
        self.folder = folder
        self.source = source
        self.stick = BlobSource()  # the same blobs as far as a test puts them there
        self.disk = disk
        self.machine = machine
        self.workers = FakeWorkers()
        self.canary = FakeCanary()
        self.now_ms = 1_790_000_000_000
        self.sure = True
        self.floor_ms = 0
        self.signals_off: set[str] = set()
        self.elapsed_s = 0.0
        self.slept: list[float] = []
        self.free_bytes = 1 << 40
        self.make_room: Callable[[int], Awaitable[int]] = no_room
        self.link = "cellular"
        self.own_budget = Budget()
        self.plugged_in: Inventory | None = None  # what a later look finds; None: what was there at the start
        self.on_sleep: Callable[[float], None] = lambda _: None
        self.last_status: UpdateStatus | None = None
        self.is_dead = False  # for a test that takes the machine down
        self.open_db: Callable[[Path], StateDb] = StateDb
        self.appliers = in_process(apply_plainly)
        self.daemon = FakeDaemon(lambda: self.elapsed_s)
        self.keep_layers: KeepLayers = "while-there-is-room"
        self.has_engine = True
        self.boot_id = "a boot"
        self.engine: FakeEngine
        self.owner: Owner
        self.stock: Stock
        self.db: StateDb
        self.store: Store
        self.updater: Updater
        self.task: asyncio.Task[None] | None = None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.elapsed_s += seconds
        self.now_ms += int(seconds * 1000)
        self.on_sleep(seconds)
        await asyncio.sleep(0.0005)

    async def probe(self, known: Inventory) -> Inventory:
        return self.plugged_in or known

    def instant(self) -> Instant:
        return Instant(self.boot_id, int(self.elapsed_s * 1000), self.now_ms if self.sure else None)

    def boot(self) -> Updater:
        """Builds everything anew on the same folder, as a start of the agent does."""
        self.db = self.open_db(self.folder / "state.db")
        self.store = Store(self.folder / "store", disk=self.disk, free=lambda _: self.free_bytes)
        totals = Totals(self.db)
        self.engine = FakeEngine(self.daemon)
        self.owner = Owner("a machine of tests", self.db, self.boot_id)
        self.stock = Stock(self.engine, self.store, self.owner, keep=self.keep_layers)
        transfer = Transfer(
            self.source,
            self.store,
            TransferSettings(attempts=3),
            count=totals.received,
            notes=PatchBook(self.db, self.machine.inventory.agent),
            appliers=self.appliers,
            elsewhere=self.stock,
            monotonic=lambda: self.elapsed_s,
            sleep=self.sleep,
            random=lambda: 1.0,
        )
        self.updater = Updater(
            db=self.db,
            store=self.store,
            sets=Sets(self.folder, disk=self.disk),
            stock=self.stock,
            fetcher=transfer,
            kit_fetcher=Transfer(
                self.stick,
                self.store,
                TransferSettings(attempts=1),
                count=lambda _: None,
                notes=PatchBook(self.db, self.machine.inventory.agent),
                appliers=self.appliers,
                elsewhere=self.stock,
                monotonic=lambda: self.elapsed_s,
                sleep=self.sleep,
                random=lambda: 1.0,
            ),
            treasury=Accounts(self.db, totals, link=self.link, own=self.own_budget, now=self.instant),
            canary=self.canary,
            workers=self.serving(),
            machine=self.machine,
            world=World(
                now=lambda: (self.now_ms, self.sure),
                new_id=lambda: secrets.token_hex(16),
                random=lambda: 1.0,
                time_floor_ms=lambda: self.floor_ms,
                signals_off=lambda: self.signals_off,
                sleep=self.sleep,
                monotonic=lambda: self.elapsed_s,
                probe=self.probe,
                make_room=self.make_room,
                has_engine=lambda: self.has_engine,
            ),
            settings=UpdateSettings(),
        )
        return self.updater

    def serving(self) -> Workers:
        """What serves in this life of the agent; `boot` has made what it needs."""
        return self.workers

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Updater]:
        """From power on to power off."""
        # The power takes threads away too: none of this life may reach into the next one.
        threads = ThreadPoolExecutor(4)
        asyncio.get_running_loop().set_default_executor(threads)
        updater = self.boot()
        try:
            await updater.start()
            self.task = asyncio.create_task(updater.run_forever())
            yield updater
        finally:
            task, self.task = self.task, None
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            threads.shutdown(wait=True, cancel_futures=True)
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
            self.db.close()
            # A start of the agent finds no workers.
            self.workers.serving = None

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                if self.task is not None and self.task.done():
                    self.task.result()  # what ended it; nothing will come any more
                await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """Until nothing is underway."""
        await self.until(lambda: self.updater.record.state is State.IDLE)

    async def install(self, release: Release, *listed: Release, rollout: str = "spring") -> None:
        """Offers a release and waits for its end."""
        await self.updater.offer(
            release.assignment(rollout), release.manifest_bytes, terms(release, *listed), may_install=True
        )
        await self.until(lambda: self.updater.record.state is not State.IDLE)
        await self.settled()

    def kept(self) -> set[str]:
        """What the store holds."""
        return set(self.store.digests())

    @property
    def active(self) -> str | None:
        try:
            return str((self.folder / "sets/active").readlink())
        except FileNotFoundError:
            return None

    def outcomes(self) -> list[tuple[str, str | None]]:
        """The ends that were told, with their reasons."""
        return [
            (status.outcome, status.reason.value if status.reason else None)
            for status in self.db.pending_statuses(1000)
            if status.outcome is not None
        ]
