"""All parts of the agent: each made once, handed what it needs, and closed in the opposite order."""

import asyncio
import contextlib
import logging
import random
import secrets
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from device import hardware, identity
from device.accounts import Accounts
from device.clock import Clock
from device.contact import Contact, Facts
from device.contact_loop import ContactLoop, News
from device.containers.checking import ContainerCanary
from device.containers.engine import Engine, Wish
from device.containers.keeper import ContainerKeeper
from device.containers.opening import open_engine
from device.containers.owner import Owner, find_owner
from device.containers.reconcile import Wanted
from device.containers.settings import SOCKETS, is_there
from device.containers.stock import Stock
from device.containers.troubles import Troubles
from device.containers.whole import WholeSet
from device.containers.wishes import Places, give_data, make_wish
from device.desk.page_socket import PageSocket
from device.desk.socket import DeskSocket
from device.drain import Drain
from device.fallbacks import Fallbacks
from device.giving_back import SignedFiles
from device.inference.alarms import make_sinks
from device.inference.canary_client import SubprocessCanary
from device.inference.folder_source import FolderSource
from device.inference.frames import Mark
from device.inference.pump import ALARMS, Pump, Rows
from device.inference.workers import ProcessWorkers
from device.kits.assembling import Sticks, named_key, open_counter
from device.kits.export import Export
from device.kits.exporting import Exports
from device.kits.life import Kits
from device.layout import Layout
from device.link import Link
from device.local.link import LocalLink
from device.outbox.box import Outbox
from device.renewal import Renewal
from device.repair.examine import tell
from device.repair.fault import Finding
from device.rescue import open_state
from device.settings import DeviceSettings
from device.state_db import StateDb
from device.store import Store
from device.totals import Totals
from device.transfer.child_applier import ChildApplier
from device.transfer.fetch import Transfer
from device.transfer.patch_book import PatchBook
from device.trust.client import KeeperTrust
from device.unopened import UnopenedOutbox, opened_or_not
from device.update.rules import Machine
from device.update.sets import Sets
from device.update.signals import folder_signals
from device.update.updater import Updater
from device.update.world import World
from protocol import limits
from protocol.errors import StateError
from protocol.messages import Alert, Inventory, TrustMark
from signing import anchors

LOG: Final = logging.getLogger("headland.agent")


@dataclass(frozen=True)
class Parts:
    """What the agent's tasks work with. `isolated`: why no server may be spoken to; empty when all is well. `found`:
    what the checks at the start said. All parts are to be taken up anew once what some of them wait for is there:
    `waits_for_disk`: that both databases can be used; `waits_for_identity`: that key, CA and enrolment can be read."""

    layout: Layout
    state: StateDb
    inventory: Inventory
    clock: Clock
    totals: Totals
    outbox: Outbox
    workers: WholeSet
    source: FolderSource
    pump: Pump
    local_link: LocalLink
    updater: Updater
    kits: Kits
    desk: DeskSocket
    page: PageSocket
    exports: Exports | None
    contact_loop: ContactLoop
    fallbacks: Fallbacks
    troubles: Troubles
    found: tuple[Finding, ...] = ()
    isolated: str = ""
    waits_for_disk: bool = False
    waits_for_identity: bool = False


class WakingSink:
    """The outbox as the pump sees it: an alarm that became durable is news for the contact loop.

    Args:
        outbox: Keeps the rows.
        news: Told of alarms.
    """

    def __init__(self, outbox: Outbox, news: News) -> None:
        self._outbox = outbox
        self._news = news

    async def enqueue_all(self, rows: Rows, *, done_frames: Sequence[Mark] = ()) -> list[int]:
        """As `device.inference.pump.Sink`."""
        numbers = await self._outbox.enqueue_all(rows, done_frames=done_frames)
        if any(lane == ALARMS for lane, _ in rows):
            self._news.results()
        return numbers


def draw_token() -> str:
    """128 random bits in hexadecimal."""
    return secrets.token_hex(16)


@contextlib.asynccontextmanager
async def assembled(
    layout: Layout,
    settings: DeviceSettings,
    *,
    found: Sequence[Finding] = (),
    on_damage: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Parts]:
    """The parts, for as long as the context lasts.

    Args:
        layout: Of the state folder; the agent lock is held.
        settings: Read and checked.
        found: What the checks at this start said; the managers are told.
        on_damage: Called, in any thread, when `state.db` turns out to be damaged: made anew, the parts mend it.

    Raises:
        StateError: Not enrolled, or a database cannot be opened.
    """
    async with contextlib.AsyncExitStack() as stack:
        who, tls, cut_off = await asyncio.to_thread(open_identity, layout)
        device, product = who.enrolment.device, who.enrolment.product
        opened = await asyncio.to_thread(lambda: open_state(layout, draw_token=draw_token, on_damage=on_damage))
        state = opened.state
        stack.callback(state.close)
        clock = await asyncio.to_thread(Clock, state)

        def now() -> tuple[int, bool]:
            reading = clock.now()
            return reading.ms, reading.sure

        with contextlib.suppress(StateError):  # a full disk: `status` says so
            await asyncio.to_thread(tell, state, found, draw_token, now()[0])
        totals = await asyncio.to_thread(Totals, state)
        stack.callback(_keep_last, totals)
        remembered = await asyncio.to_thread(totals.kept_mark)
        outbox = await opened_or_not(
            lambda: Outbox(
                layout.outbox_db,
                device,
                budget_bytes=settings.outbox.budget_bytes,
                now_ms=lambda: now()[0],
                draw_token=draw_token,
                on_damage=lambda detail: _report_damage(state, detail, now()[0]),
                policies=settings.outbox.policies(),
                boot=clock.instant().boot_id,
                keep_free_bytes=settings.store.keep_free_bytes,
                remembered=remembered,
            ),
            remembered,
        )
        stack.push_async_callback(outbox.close)
        unkept = (
            f"results cannot be kept, and no server is spoken to: {outbox.why}"
            if isinstance(outbox, UnopenedOutbox)
            else ""
        )
        mark = await asyncio.to_thread(totals.last_mark, outbox.epoch)
        if mark is not None:
            with contextlib.suppress(sqlite3.DatabaseError):  # a damaged outbox tells of it where rows are sent
                totals.catch_up(await outbox.rows_since(mark))
        inventory = await hardware.probe(settings.machine.hardware, layout.state)
        link = Link(settings.server.url or who.enrolment.server, tls)
        stack.push_async_callback(link.close)
        trust = KeeperTrust(layout.state, server=settings.server.url or None, on_damage=on_damage)
        stack.push_async_callback(trust.close)
        inference = settings.inference
        sinks = make_sinks(inference.alarms)
        for sink in sinks:
            stack.push_async_callback(sink.close)
        source = FolderSource(
            Path(inference.frames) if inference.frames else layout.state / "frames",
            outbox,
            waiting=inference.waiting_frames,
            keep=inference.keep_frames,
            clock=time.monotonic,
        )
        stack.push_async_callback(source.close)
        store = await asyncio.to_thread(_open_store, layout, settings)
        book = PatchBook(state, hardware.agent_version())
        owner = await asyncio.to_thread(
            partial(find_owner, named=settings.containers.socket),
            *(layout.identity, state, device, clock.instant().boot_id),
        )
        images = await asyncio.to_thread(_open_images, layout, settings, store, owner)
        stack.push_async_callback(images.engine.close)
        workers = WholeSet(
            ProcessWorkers(clock=time.monotonic, threads=inference.threads, frame_limit_s=inference.frame_limit_s),
            _keeper_of(images, store),
        )
        stack.push_async_callback(workers.close)
        transfer = Transfer(
            link,
            store,
            settings.transfer,
            count=totals.received,
            notes=book,
            appliers=ChildApplier,
            elsewhere=images.stock,
        )
        accounts = await asyncio.to_thread(
            lambda: Accounts(
                state,
                totals,
                link=settings.link.kind,
                own=settings.budget.limits(),
                now=clock.instant,
            )
        )
        news = News()
        sticks = Sticks(settings.kits, store, book, images.stock)
        local_link = await _open_local_link(layout)

        updater = Updater(
            db=state,
            store=store,
            sets=await asyncio.to_thread(partial(Sets, layout.state, tell=local_link.board.show)),
            stock=images.stock,
            fetcher=transfer,
            kit_fetcher=sticks.fetcher,
            treasury=accounts,
            canary=ContainerCanary(
                SubprocessCanary(layout.run / "canary", threads=inference.threads),
                images.places,
            ),
            workers=workers,
            machine=Machine(device=device, product=product, inventory=inventory),
            world=World(
                now=now,
                new_id=draw_token,
                random=random.random,
                time_floor_ms=clock.floor_ms,
                signals_off=folder_signals(Path(settings.machine.signals) if settings.machine.signals else None),
                notify=sticks.also(news.to_tell),
                probe=lambda known: hardware.probe(settings.machine.hardware, layout.state, known),
                make_room=partial(_spare, outbox),
                has_engine=lambda: is_there(images.owner.socket),
            ),
            settings=settings.update,
        )

        def facts() -> Facts:
            return Facts(
                msgspec.structs.replace(
                    updater.inventory,
                    patch_rate_kib_s=book.rate_kib_s(),
                    patch_codecs=updater.inventory.patch_codecs if book.can_apply else (),
                ),
                totals.now(outbox.produced()),
                *now(),
                link=settings.link.kind,
                # Where bytes are limited here, a plan must not trade them for time: without a rate it does not.
                link_rate_kib_s=0 if accounts.is_limited else settings.link.rate_kib_s or transfer.link_rate_kib_s,
                parts=updater.parts(),
            )

        contact = Contact(
            device,
            product,
            door=link,
            trust=trust,
            state=state,
            store=store,
            outbox=outbox,
            manifests=transfer,
            updates=updater,
            clock=clock,
            facts=facts,
            draw_token=draw_token,
            patches=book,
            shelf=SignedFiles(layout.state / "trust"),
            trusts=partial(_trusts, who),
            held=images.stock.told,
        )
        export = Export(
            device,
            outbox=outbox,
            key=who.key,
            state=state,
            trust=trust,
            report=contact.report_for_stick,
            sealing_key=partial(named_key, state),
        )
        counter = open_counter(
            layout,
            settings.kits,
            settings.page,
            sticks,
            device=device,
            product=product,
            trust=trust,
            updater=updater,
            state=state,
            clock=clock,
            draw_token=draw_token,
            export=None if unkept or cut_off or opened.isolated else export,
        )
        yield Parts(
            layout=layout,
            state=state,
            inventory=inventory,
            clock=clock,
            totals=totals,
            outbox=outbox,
            workers=workers,
            source=source,
            pump=Pump(
                source=source,
                workers=workers,
                sink=WakingSink(outbox, news),
                alarms=sinks,
                now_ms=now,
                clock=time.monotonic,
                show=local_link.readers.show,
            ),
            local_link=local_link,
            updater=updater,
            kits=counter.kits,
            desk=counter.socket,
            page=counter.page,
            exports=counter.exports,
            contact_loop=ContactLoop(
                contact,
                Drain(outbox, link, trust, who.key),
                settings.server,
                news,
                renewal=Renewal(
                    who,
                    link,
                    state,
                    now=clock.now,
                    draw_token=draw_token,
                    monotonic=time.monotonic,
                    open_bare=lambda bare: Link(settings.server.url or who.enrolment.server, bare),
                    on_renewed=trust.close,  # the keeper has a connection of its own under the old certificate
                ),
                monotonic=time.monotonic,
                random=random.random,
            ),
            fallbacks=await asyncio.to_thread(Fallbacks, state, draw_token),
            troubles=await asyncio.to_thread(Troubles, state, draw_token, time.monotonic),
            found=tuple(found),
            isolated="; ".join(why for why in (unkept, opened.isolated, cut_off) if why),
            waits_for_disk=state.is_in_memory or bool(unkept),
            waits_for_identity=bool(cut_off),
        )


def open_identity(layout: Layout) -> tuple[identity.Identity, ssl.SSLContext, str]:
    """Who this machine is, TLS with the server, and an empty text; or why it keeps to itself: inference goes on.

    Blocking.

    Raises:
        StateError: Not enrolled.
    """
    who, why = identity.load_or_stranger(layout.identity, has_run=layout.shortcut.is_symlink())
    if why:
        LOG.critical("%s", why)
        return who, identity.closed_context(), why
    return who, *open_tls(who)


def open_tls(who: identity.Identity) -> tuple[ssl.SSLContext, str]:
    """TLS with the server and an empty text; or TLS that reaches nobody, and why: inference goes on. Blocking.

    Where only the certificate is damaged, TLS without one: the server turns the first contact away, and the machine
    renews by its key.
    """
    try:
        return who.tls(), ""
    except StateError as error:
        with contextlib.suppress(StateError):
            bare = who.bare_tls()
            LOG.warning("%s; it is renewed by the key", error.message)
            return bare, ""
        LOG.critical("no server is spoken to: %s", error.message)
        return identity.closed_context(), f"no server is spoken to: {error.message}"


def why_cut_off(layout: Layout) -> str:
    """What of its identity keeps the machine from speaking to its server; empty when nothing does. Blocking."""
    try:
        who = identity.load(layout.identity)
        try:
            who.tls()
        except StateError:
            who.bare_tls()
    except StateError as error:
        return error.message
    return ""


def _trusts(who: identity.Identity) -> tuple[TrustMark, ...]:
    """Which CAs this machine trusts; none while `ca.pem` is damaged, which cuts the machine off anyway."""
    try:
        return anchors.marks(who.anchors())
    except StateError:
        return ()


def _open_store(layout: Layout, settings: DeviceSettings) -> Store:
    return Store(
        layout.store,
        keep_free_bytes=settings.store.keep_free_bytes,
        budget_bytes=settings.store.budget_bytes or None,
    )


@dataclass(frozen=True)
class _Images:
    """What containers are made from and with.

    Args:
        engine: Not spoken to before there is something to ask.
        owner: Whose containers and images are ours.
        stock: What it holds.
        places: What is mounted.
    """

    engine: Engine
    owner: Owner
    stock: Stock
    places: Places


def _open_images(layout: Layout, settings: DeviceSettings, store: Store, owner: Owner) -> _Images:
    engine = open_engine(owner)
    return _Images(
        engine=engine,
        owner=owner,
        stock=Stock(engine, store, owner, keep=settings.containers.keep_layers),
        places=Places(
            sets=layout.sets,
            link=layout.link,
            data=layout.data,
            host=tuple(Path(path) for path in settings.containers.host_paths),
            never=(layout.state, owner.socket, *SOCKETS),  # whoever has the engine has the machine
        ),
    )


def _keeper_of(images: _Images, store: Store) -> ContainerKeeper:
    def wish(one: Wanted) -> Wish:
        config = store.read(one.image.config.sha256, limits.IMAGE_CONFIG_BYTES)  # hashed again
        return make_wish(one.container, one.image, config, images.places)

    def give(one: Wanted) -> None:
        give_data(one.container, images.places)

    return ContainerKeeper(images.engine, images.stock, images.owner, wish, clock=time.monotonic, give_data=give)


async def _open_local_link(layout: Layout) -> LocalLink:
    link = LocalLink(layout.link)
    await link.prepare()
    return link


def _keep_last(totals: Totals) -> None:
    """At the end of the agent: a full disk must not turn a clean stop into a failure."""
    with contextlib.suppress(StateError):
        totals.keep()


async def _spare(outbox: Outbox, need_bytes: int) -> int:
    """Room for an update: rows that the server has go for it, none that waits."""
    try:
        return await outbox.give_back(need_bytes)
    except (StateError, sqlite3.Error) as error:
        LOG.warning("the outbox gives nothing back: %s", error)
        return 0


def _report_damage(state: StateDb, detail: str, now_ms: int) -> None:
    """Called from the outbox's thread."""
    LOG.error("%s", detail)
    try:
        state.add_alert(Alert(id=draw_token(), kind="outbox-damaged", at_ms=now_ms, detail=detail[:2000]))
    except StateError as error:
        LOG.warning("the damage cannot be reported: %s", error)
