"""The whole machine: the real agent with its real children, against a real server, updates while frames arrive.

What is recorded is `headland-device run` as it is. What a cut left is taken up by the real checks at start, databases,
updater, outbox and judge; there the workers are fakes, for thousands of states are looked at.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from device import identity
from device.agent import held
from device.layout import Layout
from device.outbox import schema
from device.outbox.book import load
from device.outbox.box import Outbox
from device.outbox.keys import place_of
from device.parts import draw_token
from device.repair.examine import examine
from device.repair.fault import Place
from device.rescue import open_state
from device.store import Store
from device.transfer.applier import in_process
from device.trust.keeper import StateFloors
from device.update.states import State
from protocol.ids import digest
from protocol.limits import MIB
from protocol.release import parse_manifest
from scripts.cast import PRODUCT, Process, Server, wait_for
from signing import durable
from signing.trust_store import DirectorStore, ImageStore
from tests.e2e.device_stage import FieldMachine, Stage
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource
from tests.simulation.workload import Promises, leftovers
from tests.simulation.workloads.outbox import rows_of

DEVICE = "tractor-1"
OLD, NEW = "1.0.0", "1.1.0"


class Running:
    """A machine on the release OLD meets NEW, and goes on working."""

    name = "agent"
    volatile = ("run",)

    def prepare(self, home: Path) -> None:
        stage = Stage(home / "world")
        machine = FieldMachine(DEVICE, home / "state")
        try:
            stage.open()
            stage.release(OLD)
            stage.rollout("first", OLD)
            machine.frames = Path(tempfile.mkdtemp(prefix="headland-frames-"))
            machine.settle(pace_s=0.3)
            machine.enroll(stage.token(DEVICE))
            machine.start()
            machine.until_it_runs(OLD)
            machine.process.stop()
            stage.release(NEW)
            stage.rollout("second", NEW)
            wait_for("all that will travel to be made", lambda: not jobs(home), 120.0)
        finally:
            machine.process.kill()
            stage.close()
        shutil.rmtree(home / "state-frames", ignore_errors=True)

    def act(self, home: Path, promise: Promises) -> None:
        server = Server(home / "world/server", home)
        agent = FieldMachine(DEVICE, home / "state")
        agent.frames = frames_of(home)
        agent.frames.mkdir(exist_ok=True)
        told = [sys.executable, "-m", "tests.simulation.told_agent", str(home / "state"), str(promise.path)]
        agent.process = Process(DEVICE, told, home / "agent.log")
        try:
            server.start()
            agent.start()
            agent.show(5)
            wait_for(f"{NEW} to be committed", lambda: (agent.show(1), is_committed(promise.path, NEW))[1], 120.0, 0.5)
            wait_for("the frames to be inferred", lambda: not list(agent.frames.glob("*.jpg")), 60.0)
            agent.process.stop()
        finally:
            agent.process.kill()
            server.stop()
            shutil.rmtree(agent.frames)

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        layout = Layout(home / "state")
        with held(layout):
            examine(Place(layout, draw_token), mend=True)
            opened = open_state(layout, draw_token=draw_token)
            opened.state.close()
            assert not opened.isolated, opened.isolated
            for name in ("image", "director"):  # as the keeper does that opens them
                durable.sweep(layout.state / "trust" / name)
                durable.sweep(layout.state / "trust" / name / "root_history")
            asyncio.run(self.live(home, layout))

    async def live(self, home: Path, layout: Layout) -> None:
        """Until nothing is to do; the server's blobs can be had."""
        source = BlobSource()
        source.blobs = {path.name: path.read_bytes() for path in blobs(home)}
        bench = Bench(layout.state, source)
        bench.appliers = in_process()
        async with bench.running() as updater:
            record = updater.record
            assert record.state is State.TRIAL or bench.workers.serving == record.active, "what is active serves"
            await bench.until(lambda: updater.record.state is State.IDLE and updater.record.offer is None)
        box = await opened_outbox(layout)
        try:
            await box.enqueue("results", b"after the cut")
        finally:
            await box.close()

    def check(self, home: Path, promised: Sequence[str]) -> None:
        layout = Layout(home / "state")
        me = identity.load(layout.identity)
        assert me.enrolment.device == DEVICE
        me.tls()
        assert leftovers(layout.state) == []
        self.check_release(home, layout, promised)
        self.check_rows(layout, promised)
        self.check_trust(layout, promised)

    def check_release(self, home: Path, layout: Layout, promised: Sequence[str]) -> None:
        opened = open_state(layout, draw_token=draw_token)
        try:
            record = opened.state.record()
        finally:
            opened.state.close()
        assert record.committed is not None
        version = NEW if f"accepted {NEW}" in promised or record.committed.version == NEW else OLD
        assert (record.committed.version, record.active) == (version, record.committed.digest), record
        link = layout.active
        assert link.readlink().name == record.active, "the link follows the record"
        store = Store(layout.store, keep_free_bytes=0)
        manifest = parse_manifest(store.read(record.active, limit=MIB))
        for model in manifest.models:
            assert (link / "models" / model.name).exists()
        assert all(store.is_whole(path.name) for path in (layout.store / "sha256").iterdir())

    def check_rows(self, layout: Layout, promised: Sequence[str]) -> None:
        connection = schema.open_reader(layout.outbox_db)
        try:
            book = load(connection)
            bodies = {place_of(key): digest(body) for key, body in connection.execute("SELECT id, body FROM rows")}
        finally:
            connection.close()
        kept = {(book.epochs[epoch], lane, number): body for (epoch, lane, number), body in bodies.items()}
        receipts = [line.split()[1:] for line in promised if line.startswith("receipt ")]
        for (epoch, lane, number), sha256 in rows_of(promised, "row").items():
            if not any([epoch, lane] == at and int(first) <= number <= int(last) for *at, first, last in receipts):
                assert kept.get((epoch, lane, number)) == sha256, f"row {number} of {lane} is gone"

    def check_trust(self, layout: Layout, promised: Sequence[str]) -> None:
        opened = open_state(layout, draw_token=draw_token)
        try:
            floors = StateFloors(opened.state)
            first = {name: (layout.identity / f"{name}.root.json").read_bytes() for name in ("image", "director")}
            stores = {
                "image": ImageStore(layout.state / "trust/image", first["image"], floors, product=PRODUCT),
                "director": DirectorStore(layout.state / "trust/director", first["director"], floors),
            }
            versions = {f"{name}/{role}": at for name, store in stores.items() for role, at in store.versions().items()}
        finally:
            opened.state.close()
        for line in promised:
            said, *rest = line.split()
            if said == "trusts":
                assert versions.get(rest[0], 0) >= int(rest[1]), f"{line}, and now {versions.get(rest[0])}"


def frames_of(home: Path) -> Path:
    """Where the machine's settings say that frames come from: outside of what is cut."""
    settings = (home / "state/device.toml").read_text()
    return Path(settings.split('frames = "', 1)[1].split('"', 1)[0])


def jobs(home: Path) -> int:
    """What the server still makes."""
    with contextlib.closing(sqlite3.connect(f"file:{home}/world/server/catalog.db?mode=ro", uri=True)) as catalog:
        return int(catalog.execute("SELECT count(*) FROM jobs").fetchone()[0])


def is_committed(promises: Path, version: str) -> bool:
    return f"committed {version}" in promises.read_text().splitlines()


def blobs(home: Path) -> list[Path]:
    return [path for path in (home / "world/server/blobs").rglob("*") if path.is_file() and len(path.name) == 64]


async def opened_outbox(layout: Layout) -> Outbox:
    return await Outbox.opened(
        layout.outbox_db,
        DEVICE,
        budget_bytes=64 * MIB,
        now_ms=lambda: 5,
        draw_token=draw_token,
        boot="another boot",
    )


def workloads() -> list[Running]:
    return [Running()]
