"""Results on the real outbox and drain: rows that wait, a server that takes them, answers that get lost, a full budget.

A row's promise names it by epoch, lane and number, with the hash of its bytes; the server promises what it ingested.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import ec

from device.day import Instant
from device.drain import Drain
from device.outbox import folding, salvage, schema
from device.outbox.book import PAST, load
from device.outbox.box import MIN_BUDGET_BYTES, Outbox
from device.outbox.carving import carve
from device.outbox.damage import quarantined
from device.outbox.keys import place_of
from protocol.errors import LinkError, StateError
from protocol.ids import digest
from protocol.limits import KIB
from protocol.results import LANES, SignedBatch, open_batch
from protocol.wire import unpack
from tests.fakes.sync_server import FakeServer
from tests.fakes.trust import FakeTrust
from tests.fakes.updates import noise
from tests.simulation.workload import REFUSED, Promises, leftovers
from tests.simulation.workloads.start import started

DEVICE = "tractor-1"
KEY = ec.derive_private_key(4711, ec.SECP256R1())
AMPLE = 1 << 24

RowName = tuple[str, str, int]
"""Epoch, lane, number."""


class Server(FakeServer):
    """Takes rows for good, and only then answers."""

    def __init__(self, promise: Promises) -> None:
        super().__init__(KEY.public_key())
        self.promise = promise

    async def post(self, path, body, **more):
        batch = open_batch(unpack(body, SignedBatch, limit=len(body)))
        for part in batch.lanes:
            for number, row in enumerate(part.rows, start=part.first):
                self.promise(f"ingested {batch.epoch} {part.lane} {number} {digest(row)}")
        return await super().post(path, body, **more)


class Queueing:
    """Rows in, batches out, receipts back.

    Args:
        name: Of the workload.
        budget_bytes: Of the outbox.
    """

    def __init__(self, name: str, budget_bytes: int = AMPLE) -> None:
        self.name = name
        self.budget_bytes = budget_bytes

    def prepare(self, home: Path) -> None:
        (home / "state").mkdir(mode=0o700)

        async def make() -> None:
            box = await self.opened(home, "boot-0")
            await box.meet_generation("a" * 32)
            await box.close()

        asyncio.run(make())

    def act(self, home: Path, promise: Promises) -> None:
        async def work() -> None:
            box = await self.opened(home, "boot-1")
            try:
                await self.fill(box, promise)
            finally:
                await box.close()

        with started(home / "state"):
            asyncio.run(work())

    async def fill(self, box: Outbox, promise: Promises) -> None:
        server = Server(promise)
        drain = Drain(box, server, FakeTrust(), KEY)
        for number in range(3):
            await enqueue(box, promise, "results", number)
        await enqueue(box, promise, "alarms", 0)
        await asyncio.gather(*(enqueue(box, promise, "results", number) for number in range(3, 8)))
        await drain.run()
        promise(f"settled {sum(counts.receipted for counts in box.counts().values())}")
        await enqueue(box, promise, "results", 8)
        await enqueue(box, promise, "alarms", 1)
        server.cut_answers = 1
        with contextlib.suppress(LinkError):
            await drain.run()
        server.cut_answers = 0
        await enqueue(box, promise, "results", 9)
        await box.begin_epoch()
        await enqueue(box, promise, "results", 10)
        await drain.run()
        with mock.patch.object(folding, "EPOCHS_KEPT", 1):
            await box.tend(Instant("boot-1", 0, None))
        await enqueue(box, promise, "alarms", 2)
        await box.next_batch()

    async def look_after(self, box: Outbox) -> None:
        """What else a start waits for."""

    def may_be_lost(self, name: RowName, promised: Sequence[str]) -> bool:
        """Whether a record may say that this row is lost."""
        return self.budget_bytes < AMPLE or REFUSED in promised

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        known = rows_of(promised, "row") | rows_of(promised, "ingested")

        async def start() -> None:
            box = await self.opened(home, "boot-2")
            try:
                await box.meet_generation("a" * 32)
                await self.look_after(box)
                for lane in LANES:
                    number = await box.enqueue(lane, f"after the cut, {lane}".encode())
                    assert (box.epoch, lane, number) not in known, "a number is used once"
                assert await box.next_batch() is not None, "what was enqueued just now is gone"
            finally:
                await box.close()

        with started(home / "state"):
            asyncio.run(start())

    def check(self, home: Path, promised: Sequence[str]) -> None:
        path = home / "state/outbox.db"
        connection = schema.open_reader(path)
        try:
            book = load(connection)
            bodies = {place_of(key): digest(body) for key, body in connection.execute("SELECT id, body FROM rows")}
            losses = connection.execute(
                "SELECT epoch, lane, first, last FROM losses WHERE exact = 1 OR reason = 'damage'"
            ).fetchall()
        finally:
            connection.close()
        rows, ingested = rows_of(promised, "row"), rows_of(promised, "ingested")
        bodies = {(book.epochs[epoch], lane, number): body for (epoch, lane, number), body in bodies.items()}
        accounts = {(book.epochs[epoch], lane): facts for (epoch, lane), facts in book.lanes.items() if epoch != PAST}
        recorded = {
            (book.epochs[epoch], lane, number)
            for epoch, lane, first, last in losses
            for number in range(first, last + 1)
        }
        for name, sha256 in rows.items():
            epoch, lane, number = name
            facts = accounts.get((epoch, lane))
            if facts is None:
                assert name in ingested, f"the epoch of {name} was folded, and no server has it"
            elif facts.queued.within(number, number):
                assert bodies.get(name) == sha256, f"{name} waits, but not as it was enqueued"
            elif facts.lost.within(number, number):
                assert self.may_be_lost(name, promised), f"{name} was lost without need"
                assert name in recorded, f"{name} was lost without a record that fits"
            else:
                assert name in ingested, f"{name} is gone, and no server has it"
        for name, sha256 in ingested.items():
            assert bodies.get(name, sha256) == sha256, f"the number of {name} was used again"
        for (epoch, lane), facts in accounts.items():
            settled = facts.receipted.union(facts.gone)
            for first, last in settled:
                assert all((epoch, lane, number) in ingested for number in range(first, last + 1)), (epoch, lane)
        for facts in book.lanes.values():
            assert facts.produced == len(facts.queued) + facts.sent + facts.dropped
        kept = sum(facts.sent for facts in book.lanes.values())
        assert kept >= max((int(line.split()[1]) for line in promised if line.startswith("settled ")), default=0)
        assert quarantined(path) == [], "no cut damages the file"
        assert leftovers(home / "state") == []

    async def opened(self, home: Path, boot: str) -> Outbox:
        return await Outbox.opened(
            home / "state/outbox.db",
            DEVICE,
            budget_bytes=self.budget_bytes,
            now_ms=lambda: 5,
            draw_token=lambda: secrets.token_hex(16),
            boot=boot,
        )


class Overflowing(Queueing):
    """More rows than the budget holds: first those go that the server has, then others, each in a loss record."""

    async def fill(self, box: Outbox, promise: Promises) -> None:
        drain = Drain(box, Server(promise), FakeTrust(), KEY)
        await enqueue(box, promise, "results", *range(8))
        await drain.run()
        for first in range(8, 72, 8):
            await enqueue(box, promise, "results", *range(first, first + 8))
        await enqueue(box, promise, "alarms", 0)
        assert box.lost() > 0
        await drain.run()


class Damaged(Queueing):
    """A page of the file is garbage at the start, and a second file is given up while rows of the first are looked for.

    Intake goes on all the while. Lost is what lay in that page, counted, and nothing else.
    """

    def prepare(self, home: Path) -> None:
        (home / "state").mkdir(mode=0o700)
        (home / "world").mkdir(exist_ok=True)
        promises = Promises(home / "world/promised")

        async def make() -> Outbox:
            box = await self.opened(home, "boot-0")
            await box.meet_generation("a" * 32)
            await enqueue(box, promises, "results", *range(100, 103))
            await Drain(box, Server(promises), FakeTrust(), KEY).run()
            for seed in range(103, 123):
                await enqueue(box, promises, "alarms" if seed % 5 == 0 else "results", seed)
            await enqueue(box, promises, "results", *range(123, 126))
            await box.close()
            return box

        box = asyncio.run(make())
        path = home / "state/outbox.db"
        data = path.read_bytes()
        page = data.index(b"results 112 ") // schema.PAGE_BYTES * schema.PAGE_BYTES
        path.write_bytes(data[:page] + noise(schema.PAGE_BYTES, 1) + data[page + schema.PAGE_BYTES :])
        found = {(box.epoch, row.lane, row.seq) for row in carve(path, {1: box.epoch})}
        hurt = rows_of(before(home), "row").keys() - found
        assert 3 < len(hurt) < 20
        for epoch, lane, number in sorted(hurt):
            promises(f"hurt {epoch} {lane} {number} -")
        promises.close()

    async def fill(self, box: Outbox, promise: Promises) -> None:
        with mock.patch.object(salvage, "CHUNK_ROWS", 4):
            await asyncio.gather(*(enqueue(box, promise, "results", number) for number in range(4)))
            await enqueue(box, promise, "alarms", 4)
            await box._writer.run(lambda: box._begin_anew("another page is torn"))
            await enqueue(box, promise, "alarms", 5)
            await enqueue(box, promise, "results", 6)
            await self.look_after(box)
        promise(f"settled {sum(counts.receipted for counts in box.counts().values())}")
        await enqueue(box, promise, "results", 7)
        await Drain(box, Server(promise), FakeTrust(), KEY).run()
        await enqueue(box, promise, "results", 8)

    async def look_after(self, box: Outbox) -> None:
        await box.tend(Instant("boot-1", 0, None))
        await box.salvaged()
        if any(counts.astray for counts in box.counts().values()):
            raise StateError("the disk takes nothing of what is found")

    def may_be_lost(self, name: RowName, promised: Sequence[str]) -> bool:
        return name in rows_of(promised, "hurt") or REFUSED in promised

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        super().recover(home, [*before(home), *promised])

    def check(self, home: Path, promised: Sequence[str]) -> None:
        super().check(home, [*before(home), *promised])


def before(home: Path) -> list[str]:
    """What was promised before the file was damaged, and which rows were in the part that is."""
    return (home / "world/promised").read_text().splitlines()


async def enqueue(box: Outbox, promise: Promises, lane: str, *seeds: int) -> None:
    """Keeps rows, and promises them."""
    bodies = [f"{lane} {seed} ".encode() + noise(5 * KIB if len(seeds) > 1 else 100, seed) for seed in seeds]
    epoch = box.epoch
    numbers = await box.enqueue_all([(lane, body) for body in bodies])
    for number, body in zip(numbers, bodies, strict=True):
        promise(f"row {epoch} {lane} {number} {digest(body)}")


def rows_of(promised: Sequence[str], kind: str) -> dict[RowName, str]:
    """The rows that were promised in this way, with their hashes."""
    found: dict[RowName, str] = {}
    for line in promised:
        said, *rest = line.split()
        if said == kind:
            epoch, lane, number, sha256 = rest
            name = (epoch, lane, int(number))
            assert found.get(name, sha256) == sha256, f"the number of {name} was given twice"
            found[name] = sha256
    return found


def workloads() -> list[Queueing]:
    return [Queueing("outbox"), Overflowing("outbox-full", MIN_BUDGET_BYTES), Damaged("outbox-damaged")]
