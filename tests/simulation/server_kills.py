"""A real `headland-server run` under SIGKILL, at chosen points and at random, while machines drain and managers push.

    report = asyncio.run(at_random(folder, kills=1000, seed=7))      # the long form, for a soak
    report = asyncio.run(at_points(folder, points=range(1, 400)))

The machines have the device's own outbox and drain, over mTLS; they believe receipts and metadata that verify. What
they and the managers were told is a promise, and looked for after each kill in what the server left on the disk (a
copy of it: recovery is the server's own) and at the end. SIGKILL keeps what the system was handed: what a power cut
makes of it is the matter of the crash states.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
from tuf.api.metadata import Metadata, Targets

from device.drain import Drain
from device.link import Link
from device.outbox.box import Outbox
from protocol.errors import LinkError
from protocol.ids import digest
from protocol.objects import FIELD, ReceiptsBody
from protocol.wire import decode, encode
from server.app import Running
from signing.metadata import parse
from signing.trust_store import DirectorStore, ImageStore, MemoryFloors
from tests.fakes.managers import Managers
from tests.fakes.server_house import House, client_context, make_manifest
from tests.fakes.trusting_machine import TrustingMachine

ROOT: Final = Path(__file__).resolve().parents[2]
START_S: Final = 40.0
QUIET_S: Final = 120.0
PAUSE_S: Final = 0.03
PRODUCT: Final = "pest-detector"
DIGITS: Final = re.compile(r"[0-9a-f]{32,}|[0-9]+")
GONE: Final = (aiohttp.ClientError, LinkError, ConnectionError, OSError, TimeoutError)


@dataclass
class Report:
    """What happened.

    Args:
        kills: How often the server was killed, and `before_it_listened` of these.
        points: Where, with counts; random kills are not told apart.
        rows: Produced by the machines, all of them ingested once.
        publications: That the managers were told of.
        receipts: That machines believed.
        retried: Requests that had to be sent again.
    """

    kills: int = 0
    before_it_listened: int = 0
    points: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    publications: int = 0
    receipts: int = 0
    retried: int = 0


class Zygote:
    """Forks servers; one at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator["Zygote"]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.simulation.server_zygote",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def start(self, state: Path, log: Path, *, kill_at: int = 0, fault: str = "") -> int:
        """Returns the pid at once; whether it listens is another matter."""
        assert self._process.stdin is not None
        line = json.dumps({"state": str(state), "log": str(log), "kill_at": kill_at, "fault": fault})
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return int((await self._said())["pid"])

    async def ended(self) -> int:
        """Waits until the server is gone. Returns its wait status."""
        return int((await self._said(QUIET_S))["ended"])

    async def _said(self, timeout_s: float = START_S) -> dict[str, int]:
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            line = await self._process.stdout.readline()
        assert line, "the zygote died"
        answer: dict[str, int] = json.loads(line)
        return answer


class KilledHouse(House):
    """A house whose server is a process that comes and goes."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.now_ms = int(time.time() * 1000)
        self.managers = Managers(datetime.fromtimestamp(self.now_ms // 1000, UTC))
        self.listens = asyncio.Event()
        self.answered = 0  # pieces of work that were done against it

    async def meet(self, zygote_pid: int) -> bool:
        """Waits until the server listens. False: it died first."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError, ValueError):
                said = json.loads(await asyncio.to_thread((self.state / "run.json").read_bytes))
                self.running = Running(said["device_url"], said["operator_url"])
                access = json.loads(await asyncio.to_thread((self.state / "operator.json").read_bytes))
                self.token, self.ca_pem = access["token"], access["ca_pem"]
                self.listens.set()
                return True
            if await asyncio.to_thread(_is_gone, zygote_pid):
                return False
            await asyncio.sleep(0.01)
        raise AssertionError("the server does not start")

    async def ask(self, *arguments: Any, **more: Any) -> tuple[int, Any]:
        """On a connection of its own: the server of the last one is dead."""
        context = await asyncio.to_thread(client_context, self.ca_pem)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=timeout) as session:
            self._session = session
            return await super().ask(*arguments, **more)


class Driver(TrustingMachine):
    """A machine that enqueues, drains and calls, whatever becomes of the server."""

    def __init__(self, house: KilledHouse, name: str, folder: Path, report: Report) -> None:
        super().__init__(house, name, folder)
        self.world = house
        self.report = report
        self.receipted: set[tuple[str, str, int]] = set()
        self.bodies: dict[tuple[str, str, int], bytes] = {}
        self.highest_version = 0
        self.pending = secrets.token_hex(16)
        self.outbox: Outbox
        self._talk: aiohttp.ClientSession | None = None
        self._talked_to = ""

    async def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.outbox = await Outbox.opened(
            self.folder / "outbox.db",
            self.name,
            budget_bytes=1 << 28,
            now_ms=lambda: self.world.now_ms,
            draw_token=lambda: secrets.token_hex(16),
        )

    async def close(self) -> None:
        await self.outbox.close()
        if self._talk is not None:
            await self._talk.close()

    async def ask(
        self, method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Any]:
        """One request on a connection that lasts as long as the server does."""
        url = self.world.running.device_url
        if self._talk is None or self._talked_to != url:
            if self._talk is not None:
                await self._talk.close()
            context = await asyncio.to_thread(self._load)
            timeout = aiohttp.ClientTimeout(total=30)
            connector = aiohttp.TCPConnector(ssl=context)
            self._talk = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
            self._talked_to = url
        async with self._talk.request(method, url + path, data=data, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    def use(self, certificate: str) -> None:
        super().use(certificate)
        self._talked_to = ""

    async def produce(self, rng: random.Random, count: int) -> None:
        for lane in ("results", "alarms"):
            mark = f"{self.name} {lane} ".encode()
            rows = [(lane, mark + rng.randbytes(rng.randrange(10, 400))) for _ in range(count)]
            for number, (_, row) in zip(await self.outbox.enqueue_all(rows), rows, strict=True):
                self.bodies[self.outbox.epoch, lane, number] = row
        self.report.rows += 2 * count

    async def call(self) -> None:
        """One contact. Its id is kept until an answer came, as the device does."""
        positions = dict(self.outbox.positions())
        answer, verdict = await self.visit(contact_id=self.pending, epoch=self.outbox.epoch, lanes=positions)
        self.pending = secrets.token_hex(16)
        assert not answer.set_apart, f"{self.name} was taken for a copy"
        assert verdict.complaints == (), verdict.complaints
        await self.outbox.meet_generation(answer.generation)

    async def drain(self) -> int:
        context = await asyncio.to_thread(self._load)
        link = Link(self.world.running.device_url, context, request_s=30)
        try:
            return await Drain(self.outbox, link, self, self.key).run()  # type: ignore[arg-type]  # its `receipts` is asked
        finally:
            await link.close()

    async def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        """As `Trust.receipts`: what verifies. From here on it is a promise."""
        found = []
        for text in texts:
            metadata: Metadata[Targets] = Metadata[Targets].from_bytes(text.encode())
            key = self.house.managers.online["director"]["receipts"].public_key
            key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
            assert metadata.signed.version > self.highest_version, "a version went back"
            self.highest_version = metadata.signed.version
            body = decode(encode(metadata.signed.unrecognized_fields[FIELD]), Any, limit=1 << 20)
            receipt = ReceiptsBody(
                **{key: body[key] for key in ("device", "epoch", "generation")},
                rows=decode(encode(body.get("rows", [])), ReceiptsBody.__annotations__["rows"], limit=1 << 20),
            )
            self.receipted |= {
                (receipt.epoch, rows.lane, number)
                for rows in receipt.rows
                for number in range(rows.first, rows.last + 1)
            }
            self.report.receipts += 1
            found.append(receipt)
        return tuple(found)

    async def live(self, rng: random.Random) -> None:
        """Until cancelled."""
        while True:
            await patiently(self.world, self.call, self.report)
            for _ in range(rng.randrange(1, 4)):
                await self.produce(rng, rng.randrange(1, 40))
                await patiently(self.world, self.drain, self.report)
            await asyncio.sleep(PAUSE_S * rng.random())


class Pusher:
    """The managers: releases, delistings, new roots, each until the server said that it is there."""

    def __init__(self, house: KilledHouse, report: Report) -> None:
        self.house = house
        self.report = report
        self.counter = 0
        self.told: dict[str, int] = {}

    async def push(self, rng: random.Random) -> None:
        """One push, prepared once and sent until it was answered."""
        managers = self.house.managers
        if self.counter and self.counter % 4 == 0:
            managers.delist(f"1.{self.counter - 3}.0")
        elif self.counter % 7 == 3:
            number = max(managers.image.roots) + 1
            managers._accept("image", {f"{number}.root.json": managers.sign(managers.make_root("image", number))})
        self.counter += 1
        model = rng.randbytes(rng.randrange(1000, 60_000))
        manifest = encode(make_manifest(f"1.{self.counter}.0", self.counter, [model]))
        for data in (model, b"golden", manifest):
            await patiently(self.house, lambda data=data: self.house.put_blobs(data), self.report)
        managers.release(f"1.{self.counter}.0", self.counter, manifest)
        await patiently(self.house, self.house.publish, self.report)
        self.told = {
            "image/root": max(managers.image.roots),
            f"image/{PRODUCT}": parse(managers.image.delegated[PRODUCT], Targets, PRODUCT).signed.version,
        }
        self.report.publications += 1

    async def live(self, rng: random.Random) -> None:
        while True:
            await self.push(rng)
            await asyncio.sleep(PAUSE_S * rng.random())


class Watcher:
    """Somebody who has trusted this server from the beginning, and looks at what lies on its disk."""

    def __init__(self, house: KilledHouse, folder: Path, machines: list[Driver], pusher: Pusher) -> None:
        self._house, self._machines, self._pusher = house, machines, pusher
        self._folder = folder
        first = {"image": house.managers.image.roots[1], "director": house.managers.director.roots[1]}
        floors = MemoryFloors()
        self._image = ImageStore(folder / "image", first["image"], floors, product=PRODUCT)
        self._director = DirectorStore(folder / "director", first["director"], floors)

    def look(self) -> None:
        """Blocking, while no server runs.

        Raises:
            AssertionError: A promise was broken.
        """
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for path in self._house.state.glob("catalog.db*"):
            shutil.copy(path, copy)
        with closing(sqlite3.connect(copy / "catalog.db")) as catalog:
            assert catalog.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            self._look_at_rows(catalog)
            self._look_at_publications(catalog)
            self._look_at_events(catalog)

    def _look_at_rows(self, catalog: sqlite3.Connection) -> None:
        for machine in self._machines:
            rows = catalog.execute("SELECT epoch, lane, seq, body FROM results WHERE device = ?", (machine.name,))
            here = {(epoch, lane, seq): body for epoch, lane, seq, body in rows}
            lost = machine.receipted - here.keys()
            assert not lost, f"{len(lost)} rows of {machine.name} were receipted and are not here: {sorted(lost)[:3]}"
            assert all(machine.bodies[key] == body for key, body in here.items()), "other bytes than were produced"
            counted = "SELECT coalesce(sum(ingested), 0) FROM lane_totals WHERE device = ?"
            assert catalog.execute(counted, (machine.name,)).fetchone()[0] == len(here), "the counts are not the rows"

    def _look_at_publications(self, catalog: sqlite3.Connection) -> None:
        now = datetime.now(UTC)
        self._image.refresh(_Table(catalog, "image"), now)  # refuses what goes back, is mixed or is not whole
        self._director.refresh(_Table(catalog, "director"), now)
        found = {f"image/{role}": version for role, version in self._image.versions().items()}
        for role, version in self._pusher.told.items():
            assert found[role] >= version, f"{role} {version} was published, and {found[role]} is here"
        blobs = dict(catalog.execute("SELECT sha256, length_bytes FROM blobs"))
        for sha256, length in blobs.items():
            data = (self._house.state / "blobs" / "sha256" / sha256[:2] / sha256).read_bytes()
            assert len(data) == length and digest(data) == sha256, f"blob {sha256} is noted and not whole"
        listed = catalog.execute("SELECT manifest FROM releases WHERE listed").fetchall()
        view = self._image.stored()
        assert view is not None and {row[0] for row in listed} == set(view.listed), "listed is not what is served"
        assert all(row[0] in blobs for row in listed)

    def _look_at_events(self, catalog: sqlite3.Connection) -> None:
        wrong = ("clone", "conflict", "batch-refused", "server-restored", "publish-refused", "sync-token-lost")
        marks = ", ".join("?" * len(wrong))
        found = catalog.execute(f"SELECT kind, device, detail FROM events WHERE kind IN ({marks})", wrong).fetchall()
        assert found == [], found


class _Table:
    """The table of served files, as a `Source`."""

    def __init__(self, catalog: sqlite3.Connection, repository: str) -> None:
        self._catalog, self._repository = catalog, repository

    def read(self, name: str, limit_bytes: int) -> bytes:
        query = "SELECT content FROM served_files WHERE repository = ? AND name = ?"
        row = self._catalog.execute(query, (self._repository, name)).fetchone()
        if row is None:
            raise LinkError(f"404: {name}", retryable=False, status=404)
        return bytes(row[0])


async def patiently(house: KilledHouse, work: Callable[[], Any], report: Report) -> Any:
    """Does it until it is answered: the server is killed and comes back."""
    end = time.monotonic() + QUIET_S
    while True:
        await house.listens.wait()
        try:
            done = await work()
            house.answered += 1
            return done  # noqa: TRY300  (an else would part it from what it counts)
        except GONE:
            report.retried += 1
            assert time.monotonic() < end, "no answer for minutes"
            await asyncio.sleep(PAUSE_S)


@dataclass
class Stage:
    """A server's folder with everybody who deals with it."""

    house: KilledHouse
    machines: list[Driver]
    pusher: Pusher
    watcher: Watcher
    report: Report
    zygote: Zygote
    log: Path
    fault: str = ""

    async def start(self, kill_at: int = 0) -> int:
        return await self.zygote.start(self.house.state, self.log, kill_at=kill_at, fault=self.fault)

    async def kill(self, pid: int) -> None:
        """At once. What it left is looked at."""
        os.kill(pid, signal.SIGKILL)
        await self.gone()

    async def gone(self) -> None:
        await self.zygote.ended()
        self.house.listens.clear()
        # Who was killed could not take it away; the next who waits must not find it.
        await asyncio.to_thread((self.house.state / "run.json").unlink, True)
        self.report.kills += 1
        await asyncio.to_thread(self.watcher.look)

    async def stop(self, pid: int) -> None:
        self.house.listens.clear()
        os.kill(pid, signal.SIGTERM)
        await self.zygote.ended()

    async def settle(self) -> None:
        """Everybody gets to an end; the books are closed."""
        pid = await self.start()
        assert await self.house.meet(pid), self.log.read_text()[-2000:]
        for machine in self.machines:
            await patiently(self.house, machine.call, self.report)
            await patiently(self.house, machine.drain, self.report)
            assert machine.outbox.queued() == 0
        await self.stop(pid)
        await asyncio.to_thread(self.watcher.look)
        for machine in self.machines:
            assert machine.receipted == machine.bodies.keys(), "produced is not what was ingested"


@contextlib.asynccontextmanager
async def staged(folder: Path, zygote: Zygote, machines: int, report: Report) -> AsyncIterator[Stage]:
    """With both repositories published and the machines enrolled."""
    house = KilledHouse(folder / "server")
    await asyncio.to_thread(house.prepare, "\n[lifetimes]\nresign_after_s = 0.2\n")
    drivers = [Driver(house, f"tractor-{number}", folder / f"tractor-{number}", report) for number in range(machines)]
    pusher = Pusher(house, report)
    watcher = Watcher(house, folder / "watcher", drivers, pusher)
    stage = Stage(house, drivers, pusher, watcher, report, zygote, folder / "server.log")
    pid = await stage.start()
    assert await house.meet(pid), stage.log.read_text()
    await house.publish()
    for driver in drivers:
        status, answer = await driver.enrol(await house.make_token(driver.name))
        assert status == 200, answer
        await driver.open()
        await driver.call()
    await stage.stop(pid)
    try:
        yield stage
    finally:
        for driver in drivers:
            await driver.close()


async def at_random(
    folder: Path,
    *,
    kills: int,
    seed: int,
    machines: int = 2,
    fault: str = "",
    show: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Kills it at moments drawn from `seed`, also while it starts, under everybody's traffic.

    Args:
        folder: For everything; must be empty.
        kills: How often.
        seed: Of what is drawn; the order in which the processes run is not in our hands.
        machines: How many drain.
        fault: Planted in the server, by its name in `server_zygote.FAULTS`.
        show: Told after each kill.

    Raises:
        AssertionError: A promise was broken.
    """
    report, rng = Report(), random.Random(seed)
    async with Zygote.running() as zygote, staged(folder, zygote, machines, report) as stage:
        stage.fault = fault
        tasks = [asyncio.create_task(machine.live(random.Random(rng.random()))) for machine in stage.machines]
        tasks.append(asyncio.create_task(stage.pusher.live(random.Random(rng.random()))))
        try:
            for _ in range(kills):
                pid = await stage.start()
                if rng.random() < 0.2:
                    await asyncio.sleep(0.3 * rng.random())  # while it starts, most likely
                    report.before_it_listened += not (stage.house.state / "run.json").exists()
                else:
                    assert await stage.house.meet(pid), stage.log.read_text()[-2000:]
                    # By what was done, not by time: so it is the same on a computer that has other things to do.
                    await _until(stage.house, stage.house.answered + rng.randrange(6))
                    await asyncio.sleep(0.05 * rng.random())
                broken = [task for task in tasks if task.done()]
                for task in broken:
                    task.result()
                await stage.kill(pid)
                show(report)
            pid = await stage.start()
            assert await stage.house.meet(pid), stage.log.read_text()[-2000:]
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end
        await stage.stop(pid)
        await stage.settle()
    return report


async def at_points(
    folder: Path, *, points: Iterable[int], seed: int = 1, show: Callable[[Report], None] = lambda _: None
) -> Report:
    """Kills it at chosen hits of one story, told again and again to one server: a start, a contact, results, a push,
    and the same again. A point behind the story's end ends it all.

    Raises:
        AssertionError: A promise was broken.
    """
    report, rng = Report(), random.Random(seed)
    async with Zygote.running() as zygote, staged(folder, zygote, 1, report) as stage:
        for point in points:
            stage.log = folder / f"point-{point}.log"
            if not await _story(stage, point, rng):
                break
            where = (await asyncio.to_thread(stage.log.read_text)).partition(f"killed at hit {point}: ")[2]
            where = DIGITS.sub("N", where.partition("\n")[0])
            report.points[where] = report.points.get(where, 0) + 1
            show(report)
        await stage.settle()
    return report


async def _story(stage: Stage, point: int, rng: random.Random) -> bool:
    """Tells it to a server that is killed at its `point`-th hit and started again. False: it has not so many."""
    (machine,) = stage.machines
    killed = await stage.start(kill_at=point)

    async def tell() -> None:
        for _ in range(2):
            await machine.produce(rng, 2)
            await patiently(stage.house, machine.call, stage.report)
            await patiently(stage.house, machine.drain, stage.report)
            await stage.pusher.push(rng)

    telling = asyncio.create_task(tell())
    try:
        listened = await stage.house.meet(killed)
        dying = asyncio.create_task(stage.gone())
        await asyncio.wait((telling, dying), return_when=asyncio.FIRST_COMPLETED)
        if not dying.done():
            telling.result()
            os.kill(killed, signal.SIGTERM)  # its end is a part of the story
        await dying
        if not telling.done():
            pid = await stage.start()
            assert await stage.house.meet(pid), stage.log.read_text()[-2000:]
            await telling
            await stage.stop(pid)
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    stage.report.before_it_listened += not listened
    return f"killed at hit {point}: " in stage.log.read_text()


async def _until(house: KilledHouse, answered: int) -> None:
    end = time.monotonic() + START_S
    while house.answered < answered:
        assert time.monotonic() < end, "nobody gets anything done"
        await asyncio.sleep(0.005)


def _is_gone(pid: int) -> bool:
    """Whether it ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, IndexError, ProcessLookupError):
        return True
