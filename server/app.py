"""The composition root: puts the server together, runs it until it is told to stop, and takes it apart again."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from aiohttp import web
from securesystemslib.signer import SecretsHandler

from protocol.errors import StateError
from protocol.objects import Budget
from server import restored, steady_clock
from server.certificates import Certificates
from server.clock import NowMs
from server.compress import Compressor
from server.contact import Contacts
from server.delta.process import ProcessEncoder
from server.director import Director
from server.enrolment import Enrolment
from server.founding import (
    Layout,
    catalog_url,
    certificate_names,
    export_keys,
    hold,
    open_keys,
    open_layout,
    prepare_catalog,
    write_operator_url,
)
from server.http.devices import DeviceDoor, DeviceServices
from server.http.people import PeopleDoor, PeopleServices
from server.ingest import Ingest
from server.kit_plans import KitPlans
from server.kits.pieces import Pieces
from server.lifetimes import raise_alarms
from server.notify import Notifier
from server.operations import Operations
from server.patching import Patchmaker
from server.publish import Publisher
from server.restoring import take_marker
from server.retention import forget
from server.settings import ServerSettings, read_settings
from server.steady_clock import SteadyClock
from server.storage.blobs import BlobStore, open_blobs
from server.storage.catalog import Catalog
from server.threads import Threads
from signing import durable

REQUEST_THREADS: Final = 8  # SQLite writes one at a time; the rest read
RESIGN_CHECK_S: Final = 60.0
CERTIFICATES_CHECK_S: Final = 10.0  # so soon does the server follow a command that replaced the CA
ALARMS_CHECK_S: Final = 3600.0
FORGET_S: Final = 3600.0
COUNT_S: Final = 60.0  # a restored backup that is older than this is noticed at the start
IDLE_CHECK_S: Final = 0.5  # between looks for work when there was none
FAILED_S: Final = 10.0  # where it failed: a full disk is not freed by what the log says of it twice a second
KEEPALIVE_S: Final = 75.0
HANDSHAKE_S: Final = 20.0
LINGER_S: Final = 1.0  # reading on after an early answer, so that the client sees it before the door closes
GRACE_S: Final = 10.0  # for requests in flight at a stop; what takes longer resumes

log = logging.getLogger("headland.server")


@dataclass(frozen=True)
class Running:
    """Where a running server listens."""

    device_url: str
    operator_url: str


@asynccontextmanager
async def serve(state: Path, now_ms: NowMs, secrets: SecretsHandler, *, steady: bool = False) -> AsyncIterator[Running]:
    """Runs a server inside the block.

    Args:
        state: A folder that `init` made.
        now_ms: The clock.
        secrets: Asked for the PIN of an HSM and the like.
        steady: Jumps of the clock are not followed (`server.steady_clock`).

    Raises:
        SettingsError: `server.toml` is wrong.
        StateError: Not a server's folder, another server runs on it, or a port is taken.
    """
    async with contextlib.AsyncExitStack() as stack:
        threads = Threads(REQUEST_THREADS)
        stack.push_async_callback(threads.close)
        layout = await threads.run(open_layout, state)
        await threads.run(stack.enter_context, hold(layout))
        parts = await threads.run(lambda: open_parts(state, now_ms, secrets, steady=steady))
        now_ms = parts.now_ms
        stack.push_async_callback(threads.run, parts.catalog.close)
        # Compression takes whole cores for long: a thread of its own, so that requests never wait behind it.
        background, patching = Threads(1), Threads(1)
        stack.push_async_callback(background.close)
        stack.push_async_callback(patching.close)
        stack.callback(parts.patchmaker.stop)

        device_door = DeviceDoor(parts.device_services(threads, now_ms))
        settings = parts.settings
        certificates = parts.certificates
        device_port = await _listen(
            stack,
            device_door.application(),
            settings.devices.host,
            settings.devices.port,
            certificates.devices.context,
        )
        device_url = settings.devices.url or f"https://{_host(settings.devices.names[0])}:{device_port}"
        people_door = PeopleDoor(
            PeopleServices(
                catalog=parts.catalog,
                blobs=parts.blobs,
                operations=Operations(
                    parts.catalog,
                    parts.enrolment,
                    now_ms,
                    _budget(parts.settings),
                    authorities=certificates.now,
                    tls=parts.layout.tls,
                ),
                kit_plans=KitPlans(parts.catalog, parts.blobs, now_ms),
                publisher=parts.publisher,
                pieces=parts.pieces,
                threads=threads,
                now_ms=now_ms,
                online_keys=parts.layout.online_keys,
                authorities=certificates.now,
                device_url=device_url,
            )
        )
        operator_port = await _listen(
            stack,
            people_door.application(),
            settings.operators.host,
            settings.operators.port,
            certificates.operators.context,
        )
        names = settings.operators.names or (settings.operators.host,)
        running = Running(device_url=device_url, operator_url=f"https://{_host(names[0])}:{operator_port}")
        await threads.run(_announce, parts.layout, running)
        stack.push_async_callback(threads.run, durable.unlink, parts.layout.run)

        await stack.enter_async_context(
            _tasks(
                _every(RESIGN_CHECK_S, "signing snapshot and timestamp anew", threads, parts.publisher.resign),
                _every(CERTIFICATES_CHECK_S, "looking after certificates", threads, certificates.refresh),
                _every(ALARMS_CHECK_S, "looking at lifetimes", threads, lambda: _raise_alarms(parts, now_ms())),
                _every(FORGET_S, "forgetting what is old", threads, lambda: _forget(parts, now_ms())),
                _every(COUNT_S, "counting", threads, lambda: _count(parts.layout, parts.catalog, now_ms)),
                _every(IDLE_CHECK_S, "making payloads", background, parts.compressor.work),
                _every(IDLE_CHECK_S, "making patches", patching, parts.patchmaker.work),
            )
        )
        yield running


async def run(state: Path, now_ms: NowMs, secrets: SecretsHandler, notifier: Notifier) -> None:
    """Serves until SIGTERM or SIGINT, then stops in order: no new connections, requests finish, all is closed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve(state, now_ms, secrets, steady=True) as running:
        log.info("machines come in at %s, people at %s", running.device_url, running.operator_url)
        notifier.say("READY=1")
        pause_s = None if notifier.watchdog_s is None else notifier.watchdog_s / 2
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await stop.wait()
            # Said from the loop itself: a loop that hangs is what the watchdog is for.
            notifier.say("WATCHDOG=1")
        notifier.say("STOPPING=1")
        log.info("stopping")


@dataclass(frozen=True)
class Parts:
    """What a server is made of, before it listens."""

    now_ms: NowMs
    layout: Layout
    settings: ServerSettings
    catalog: Catalog
    blobs: BlobStore
    certificates: Certificates
    enrolment: Enrolment
    contacts: Contacts
    ingest: Ingest
    pieces: Pieces
    publisher: Publisher
    compressor: Compressor
    patchmaker: Patchmaker

    def device_services(self, threads: Threads, now_ms: NowMs) -> DeviceServices:
        """What stands behind the machines' door."""
        return DeviceServices(
            catalog=self.catalog,
            blobs=self.blobs,
            authorities=self.certificates.now,
            enrolment=self.enrolment,
            contacts=self.contacts,
            ingest=self.ingest,
            publisher=self.publisher,
            threads=threads,
            now_ms=now_ms,
        )


def open_parts(state: Path, now_ms: NowMs, secrets: SecretsHandler, *, steady: bool = False) -> Parts:
    """Puts the parts together, and ends what a cut left half done. Blocks; the caller holds the folder.

    Args:
        state: A folder that `init` made.
        now_ms: The clock.
        secrets: Asked for the PIN of an HSM and the like.

    Raises:
        SettingsError: `server.toml` is wrong.
        StateError: Not a server's folder.
    """
    layout = open_layout(state)
    durable.unlink(layout.run)  # of a server that was killed: nobody listens there
    for folder in (layout.state, layout.ca, layout.tls, layout.keys):
        durable.make_dir(folder)
        durable.sweep(folder)
    settings = read_settings(state)
    durable.remove_tree(layout.scratch)
    durable.make_dir(layout.scratch)
    keyring = open_keys(layout, settings, secrets)
    blobs = open_blobs(settings.storage.blobs, state)
    catalog = Catalog(catalog_url(settings, state))
    _demand_known(layout, catalog)
    prepare_catalog(catalog)
    if not settings.storage.catalog:
        _free_jobs(catalog)
    _wake(catalog)
    if steady:
        now_ms = _steady(layout, catalog, now_ms)
    take_marker(layout, catalog, now_ms())
    _count(layout, catalog, now_ms)
    lifetimes = settings.lifetimes
    certificates = Certificates(layout, catalog, certificate_names(settings), now_ms, timedelta(days=lifetimes.ca_days))
    director = Director(keyring, timedelta(days=lifetimes.assignment_days))
    publisher = Publisher(catalog, blobs, keyring, now_ms, timedelta(seconds=lifetimes.resign_after_s))
    export_keys(layout, keyring)
    publisher.settle_keys()  # a cut may have come between a publication and this
    # At each start: a catalog out of a backup must not offer timestamps older than those that machines have seen.
    publisher.resign(force=True)
    contacts = Contacts(
        catalog,
        blobs,
        director,
        publisher,
        now_ms=now_ms,
        settings=settings.contact,
        withdraw_after=settings.patches.withdraw_after,
    )
    ingest = Ingest(catalog, director, now_ms)
    return Parts(
        now_ms=now_ms,
        layout=layout,
        settings=settings,
        catalog=catalog,
        blobs=blobs,
        certificates=certificates,
        enrolment=Enrolment(catalog, certificates.now, now_ms, lifetimes),
        contacts=contacts,
        ingest=ingest,
        pieces=Pieces(catalog, ingest, contacts, keyring.sealing_keys, now_ms),
        publisher=publisher,
        compressor=Compressor(catalog, blobs, layout.scratch, now_ms, settings.transfers.compression_level),
        patchmaker=Patchmaker(
            catalog,
            blobs,
            layout.scratch,
            now_ms,
            settings=settings.patches,
            encoder=ProcessEncoder(settings.patches),
        ),
    )


def open_pieces(state: Path, catalog: Catalog, now_ms: NowMs, secrets: SecretsHandler) -> Pieces:
    """What takes pieces from sticks, on a folder whose catalog is open, whether or not a server runs on it. Blocks.

    Raises:
        SettingsError: `server.toml` is wrong, or a key is missing.
    """
    settings, layout = read_settings(state), open_layout(state)
    now_ms = _steady(layout, catalog, now_ms)  # receipts bear its time for ever
    keyring, blobs = open_keys(layout, settings, secrets), open_blobs(settings.storage.blobs, state)
    director = Director(keyring, timedelta(days=settings.lifetimes.assignment_days))
    publisher = Publisher(catalog, blobs, keyring, now_ms, timedelta(seconds=settings.lifetimes.resign_after_s))
    contacts = Contacts(
        catalog,
        blobs,
        director,
        publisher,
        now_ms=now_ms,
        settings=settings.contact,
        withdraw_after=settings.patches.withdraw_after,
    )
    return Pieces(catalog, Ingest(catalog, director, now_ms), contacts, keyring.sealing_keys, now_ms)


def _budget(settings: ServerSettings) -> Budget:
    return Budget(release_bytes=settings.budget.release_bytes, day_bytes=settings.budget.day_bytes)


def _steady(layout: Layout, catalog: Catalog, wall: NowMs) -> SteadyClock:
    """Follows no jump from when this catalog was served last; after a restore, a person has just looked."""
    with catalog.read() as session:
        known_ms = 0 if layout.restored.exists() else steady_clock.known(session)
    clock = SteadyClock(wall, known_ms)
    if clock.off_ms:
        log.warning("the computer's clock jumped and is not followed: `headland-server status` says more")
    return clock


def _count(layout: Layout, catalog: Catalog, clock: NowMs) -> bool:
    """Counts starts and minutes in the catalog and, after it, in a file: a catalog that counts fewer came out of a
    backup, and begins a new generation, so that machines send what they still hold.

    Returns:
        False: there is no more to do now.
    """
    outside = _starts(layout)
    with catalog.write() as session:
        if isinstance(clock, SteadyClock):
            steady_clock.keep(session, clock)
        now_ms = clock()
        inside = session.facts.number("starts")
        if inside < outside:
            how = f"the catalog counts {inside} of {outside}"
            woken_ms = session.facts.number("woken_ms")
            restored.begin(session, now_ms, restore=f"count {outside} {now_ms}", backup_ms=woken_ms, how=how)
        count = max(inside, outside) + 1
        session.facts.put("starts", count)
        session.facts.put("alive_ms", now_ms)
    durable.write(layout.starts, str(count).encode())
    return False


def _demand_known(layout: Layout, catalog: Catalog) -> None:
    """Refuses an empty catalog where there was a full one: its disk may not be mounted.

    A server without knowledge would take results, give receipts for them, and lose them when the true catalog comes
    back.

    Raises:
        StateError: It is empty, and this is not the first start.
    """
    with catalog.read() as session:
        known = session.facts.get("generation") is not None
    starts = _starts(layout)
    if not known and starts:
        catalog.close()
        raise StateError(
            f"the catalog is empty, and this server started {starts} times: it had another one",
            hint="is its disk mounted? Put it back, or `headland-server restore`; `headland-server init` begins anew",
        )


def _starts(layout: Layout) -> int:
    try:
        return int(layout.starts.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _free_jobs(catalog: Catalog) -> None:
    """Takes up at once what a killed server was at. Its catalog is a file here, and who holds the folder is alone."""
    with catalog.write() as session:
        session.jobs.free()


def _wake(catalog: Catalog) -> None:
    """Notes until when this catalog was alive: should it turn out to be a backup, its knowledge ends there."""
    with catalog.write() as session:
        session.facts.put("woken_ms", session.facts.number("alive_ms"))


def _raise_alarms(parts: "Parts", now_ms: int) -> bool:
    """Tells, once each, what has passed half, 80 % or the end of its life."""
    for name in raise_alarms(parts.catalog, parts.certificates.now(), parts.layout.tls, now_ms):
        log.warning("a mark of its life is passed: %s; `headland-server status` says more", name)
    return False


def _forget(parts: Parts, now_ms: int) -> bool:
    """Not again at once, also where more is old: that so many were is more likely the clock's word."""
    gone = forget(parts.catalog, parts.settings.retention, now_ms)
    if gone:
        log.info("%d old records are gone, as [retention] says", gone)
    return False


def _announce(layout: Layout, running: Running) -> None:
    write_operator_url(layout, running.operator_url)
    content = {"device_url": running.device_url, "operator_url": running.operator_url}
    durable.write(layout.run, json.dumps(content).encode() + b"\n", mode=0o644)


async def _listen(
    stack: contextlib.AsyncExitStack, app: web.Application, host: str, port: int, context: ssl.SSLContext
) -> int:
    # auto_decompress: a compressed request is refused, not unpacked on the way to the refusal.
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGER_S,
        shutdown_timeout=GRACE_S,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server = runner.server
    assert server is not None
    try:
        listener = await asyncio.get_running_loop().create_server(
            server,
            host,
            port,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_S,
            backlog=512,
        )
    except OSError as error:
        # asyncio's own words name the address once more; the system's are enough.
        said = os.strerror(error.errno) if error.errno else str(error)
        raise StateError(
            f"cannot listen on {host} port {port}: {said}",
            hint="stop what listens there, or choose another port in server.toml",
        ) from error
    stack.callback(listener.close)
    return int(listener.sockets[0].getsockname()[1])


async def _every(pause_s: float, what: str, threads: Threads, work: Callable[[], bool]) -> None:
    """Does `work` again and again: at once while there is some, after a pause when there was none or it failed."""
    while True:
        try:
            wait_s = 0.0 if await threads.run(work) else pause_s
        except Exception:
            # Nobody waits for it: it must be in the log, and the next try may fare better.
            log.exception("%s failed", what)
            wait_s = max(pause_s, FAILED_S)
        if wait_s:
            await asyncio.sleep(wait_s)


@asynccontextmanager
async def _tasks(*works: Awaitable[None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name
