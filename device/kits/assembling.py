"""The parts that have to do with kits, made once: sticks on this side of the update machine, people on the other."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from device.clock import Clock
from device.containers.stock import Stock
from device.desk.page_socket import PageSocket
from device.desk.pairing import PageSettings, Pairing
from device.desk.port import Desk
from device.desk.socket import DeskSocket
from device.kits.bringing import STICK, SYNC_BYTES, KitFetcher, NotingSource
from device.kits.choosing import Chooser
from device.kits.export import Export
from device.kits.exporting import Exports
from device.kits.finding import Finder
from device.kits.forcing import Challenge, Forcing
from device.kits.life import Kits
from device.kits.settings import KitSettings
from device.kits.shelf import Shelf
from device.layout import Layout
from device.state_db import StateDb
from device.status import read_status
from device.store import Store
from device.transfer.child_applier import ChildApplier
from device.transfer.fetch import Transfer
from device.transfer.patch_book import PatchBook
from device.trust.port import Trust
from device.trust.roster import load as load_roster
from device.trust.roster import may_force
from device.update.memory import Memory
from device.update.updater import Updater
from protocol.ids import DeviceId, Name, ProductName, Token
from protocol.kits import ForceRequest, PublicKey
from protocol.messages import SignedForce
from protocol.wire import encode


class Sticks:
    """What brings blobs from sticks, to be made before the update machine.

    Args:
        settings: Where sticks are mounted.
        store: Where blobs go.
        patches: Which patches gave no result here.
        stock: What else holds bases of patches.
    """

    def __init__(self, settings: KitSettings, store: Store, patches: PatchBook, stock: Stock) -> None:
        self.finder = Finder(Path(folder) for folder in settings.folders)
        self.shelf = Shelf()
        self.store = store
        self.patches = patches
        self.stock = stock
        source = NotingSource(self.shelf)
        # Bytes from a stick are no bytes over the air: nobody counts them.
        transfer = Transfer(
            source,
            store,
            STICK,
            count=lambda _: None,
            notes=patches,
            appliers=ChildApplier,
            elsewhere=stock,
            sync_bytes=SYNC_BYTES,
        )
        self.fetcher = KitFetcher(transfer, source, self.finder.wake)

    def also(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Tells somebody else, and has kits looked at again: what is known of them depends on the update's state."""

        def both() -> None:
            tell()
            self.finder.wake()

        return both


@dataclass(frozen=True)
class Counter:
    """Where people and kits meet the machine.

    Args:
        kits: The life of kits.
        socket: Serves the desk to commands.
        page: Serves it to browsers.
        exports: Writes results to sticks; None: nothing does.
    """

    kits: Kits
    socket: DeskSocket
    page: PageSocket
    exports: Exports | None


def open_counter(
    layout: Layout,
    settings: KitSettings,
    page: PageSettings,
    sticks: Sticks,
    *,
    device: DeviceId,
    product: ProductName,
    trust: Trust,
    updater: Updater,
    state: StateDb,
    clock: Clock,
    draw_token: Callable[[], Token],
    export: Export | None,
) -> Counter:
    """Makes the rest, once there is an update machine."""
    exports = Exports(export, sticks.finder, updater) if export is not None and settings.results else None
    kits = Kits(
        device=device,
        folder=layout.kits,
        finder=sticks.finder,
        shelf=sticks.shelf,
        chooser=Chooser(
            device=device,
            machine=updater,
            memory=Memory(state),
            store=sticks.store,
            patches=sticks.patches,
            held=sticks.stock.told,
            shelf=sticks.shelf,
            manifests=sticks.fetcher,
            now=clock.now,
        ),
        trust=trust,
        updates=updater,
        state=state,
        apply=settings.apply,
        exports=exports,
    )

    def judge_force(signed: SignedForce, challenge: Challenge) -> ForceRequest:
        return may_force(
            signed,
            load_roster(state),
            device=challenge.device,
            product=challenge.product,
            offer=challenge.offer,
            release=challenge.release,
            manifest=challenge.manifest,
            challenge=challenge.id,
            at_least_ms=clock.at_least_ms(),
        )

    forcing = Forcing(
        device=device,
        product=product,
        kits=kits,
        updates=updater,
        state=state,
        judge=judge_force,
        draw_token=draw_token,
        now_ms=lambda: clock.now().ms,
        monotonic=time.monotonic,
    )
    desk = Desk(
        status=partial(asyncio.to_thread, lambda: encode(read_status(layout))),
        shown=kits.shown,
        look=kits.look,
        apply=kits.apply,
        challenge=forcing.challenge,
        force=forcing.force,
        export=exports.ask if exports is not None else None,
    )
    names = partial(asyncio.to_thread, _names, state)
    pairing = Pairing(layout.page, time.monotonic)
    return Counter(kits, DeskSocket(layout.desk, desk), PageSocket(page, pairing, desk, names), exports)


def named_key(state: StateDb) -> PublicKey | None:
    """What the managers have machines seal to now. Blocking."""
    roster = load_roster(state)
    return None if roster is None else roster.sealing_key


def _names(state: StateDb) -> dict[str, Name]:
    """The technicians' names by their public keys."""
    roster = load_roster(state)
    return {one.public_key: one.name for one in (roster.technicians if roster is not None else ())}
