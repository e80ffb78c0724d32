"""Any history of results between a real outbox and the real ingest: what is produced is ingested once, or counted.

Links lose requests and answers, hold them up and repeat them; receipts come by another way and in any order; machines
are restarted and killed, their files damaged and deleted; budgets are small and rows grow old.
"""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from device.day import Instant
from device.outbox import folding
from device.outbox.batch import sign_batch
from device.outbox.book import load
from device.outbox.box import MIN_BUDGET_BYTES, Outbox
from device.outbox.room import LanePolicy
from protocol import limits
from protocol.objects import ReceiptsBody
from protocol.results import LANES
from protocol.wire import decode, encode
from server.ingest import Ingest
from server.storage.catalog import Catalog
from tests.fakes.catalog_rows import a_device

KEY = ec.derive_private_key(4711, ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
DEVICE = "tractor-1"
GENERATION = "9" * 32
TTL_S = 1000.0

policies = st.builds(
    LanePolicy,
    when_full=st.sampled_from(["drop-oldest", "drop-newest", "keep-one-in"]),
    keep_one_in=st.integers(2, 5),
    ttl_s=st.sampled_from([0.0, TTL_S]),
)


class Director:
    """Signs nothing: what a receipt says is what counts here."""

    def pen(self, session: object, trusted: object) -> "Director":
        return self

    def receipts(self, body: ReceiptsBody, version: int, now_ms: int) -> str:
        return encode(body).decode()


@pytest.fixture(scope="module")
def empty_catalog(tmp_path_factory):
    """A server's catalog that knows the machine, to be copied."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.db"
    catalog = Catalog(f"sqlite:///{path}")
    with catalog.write() as session:
        session.devices.enrol(a_device(DEVICE, public_key=PUBLIC))
        session.facts.put("generation", GENERATION)
    catalog.close()
    return path


class Results(RuleBasedStateMachine):
    """One machine, one server, and what lies between."""

    empty_catalog: Path
    damaging = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="results-"))
        shutil.copy(self.empty_catalog, self.folder / "catalog.db")
        self.catalog = Catalog(f"sqlite:///{self.folder}/catalog.db")
        self.ingest = Ingest(self.catalog, Director(), lambda: 1)
        self.home = self.folder / "0"
        self.home.mkdir()
        self.produced: list[bytes] = []
        self.held_up: list[bytes] = []
        self.receipts: list[ReceiptsBody] = []
        self.number = 0
        self.tokens = itertools.count(1)
        self.boot = 0
        self.now_ms = 0
        self.was_damaged = False
        self.was_held_up = False

    @initialize(alarms=policies, results=policies, budget=st.sampled_from([MIN_BUDGET_BYTES, 1 << 24]))
    def begin(self, alarms, results, budget):
        self.policies = {"alarms": alarms, "results": results}
        self.budget = budget
        self.open()

    # On the machine

    @rule(lane=st.sampled_from(LANES), count=st.integers(1, 40), size=st.sampled_from([10, 700, 9000]))
    def rows_are_made(self, lane, count, size):
        rows = [(b"%d " % (self.number + n)).ljust(size, b".") for n in range(count)]
        self.number += count
        self.produced += rows
        assert len(self.do(self.box.enqueue_all([(lane, row) for row in rows]))) == count

    @rule(hours=st.floats(0, 0.2))
    def time_passes(self, hours):
        self.now_ms += int(hours * 3_600_000)
        self.do(self.box.tend(self.instant()))

    @rule()
    def the_disk_is_low(self):
        self.do(self.box.give_back(1 << 30))

    @rule()
    def the_server_says_that_this_identity_was_seen_twice(self):
        self.do(self.box.begin_epoch())

    @rule(reboot=st.booleans())
    def the_agent_is_restarted(self, reboot):
        self.do(self.box.close())
        self.boot += reboot
        self.open()

    @rule(reboot=st.booleans())
    def the_agent_is_killed(self, reboot):
        self.kill()
        self.boot += reboot
        self.open()

    @precondition(lambda self: self.damaging)
    @rule(
        how=st.sampled_from(["log is gone", "file is gone", "log is cut", "file is cut", "bit", "page"]),
        where=st.floats(0, 0.999),
        reboot=st.booleans(),
    )
    def the_disk_errs(self, how, where, reboot):
        self.kill()
        self.boot += reboot
        self.was_damaged = True
        file, log = self.home / "outbox.db", self.home / "outbox.db-wal"
        match how:
            case "log is gone":
                log.unlink(missing_ok=True)
            case "file is gone":
                file.unlink()
            case "log is cut" if log.exists():
                os.truncate(log, int(log.stat().st_size * where))
            case "file is cut":
                os.truncate(file, int(file.stat().st_size * where))
            case "bit" | "page":
                data = bytearray(file.read_bytes())
                if data:
                    place = int(len(data) * where)
                    end = place + (1 if how == "bit" else 4096)
                    data[place:end] = bytes(byte ^ 0x10 for byte in data[place:end])
                    file.write_bytes(data)
        self.open()

    # Between

    @rule(limit=st.sampled_from([2000, 60_000, limits.MIB]), fate=st.sampled_from(["ok", "ok", "request", "answer"]))
    def a_batch_is_sent(self, limit, fate):
        batch = self.do(self.box.next_batch(limit))
        if batch is None:
            return
        sent = sign_batch(batch, KEY)
        if fate == "request":
            self.held_up.append(sent)
            return
        receipt, conflict = self.take(sent)
        if fate == "answer":
            self.receipts.append(receipt)
            return
        settled = self.do(self.box.apply_receipt(receipt))
        if conflict:
            settled += self.do(self.box.renumber(batch))
        assert settled, "a batch that nothing comes of would be sent for ever"

    # No precondition here may ask what is held up: that hangs on where damage fell and on what threads were doing, and
    # a history whose choices differ when it is played again is thrown away as inconsistent, not told as a failure.
    @rule(which=st.integers(0, 1 << 20))
    def a_request_comes_late_or_twice(self, which):
        if not self.held_up:
            return
        self.was_held_up = True
        self.receipts.append(self.take(self.held_up[which % len(self.held_up)])[0])

    @rule(which=st.integers(0, 1 << 20))
    def a_receipt_comes_by_another_way(self, which):
        if not self.receipts:
            return
        self.do(self.box.apply_receipt(self.receipts[which % len(self.receipts)]))

    # What must hold

    @invariant()
    def accounts_add_up(self):
        if hasattr(self, "box"):
            for lane in self.box.counts().values():
                assert lane.produced == lane.queued + lane.receipted + lane.lost + lane.astray

    @invariant()
    def accounts_in_memory_are_those_on_the_disk(self):
        if hasattr(self, "box"):
            core = self.box._core
            # In the writing thread: salvage may go on beside.
            assert self.do(self.box._writer.run(lambda: load(core.connection) == core.book))

    def teardown(self):
        try:
            if hasattr(self, "box"):
                self.drain()
                self.check()
                before = self.box.counts()
                self.the_disk_is_low()
                self.do(self.box.tend(self.instant()))
                assert self.box.counts() == before, "folding changes no count"
                self.accounts_in_memory_are_those_on_the_disk()
        finally:
            if hasattr(self, "box"):
                self.do(self.box.close())
            self.catalog.close()
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def drain(self):
        self.do(self.box.salvaged())
        while self.do(self.box.next_batch()) is not None:
            self.a_batch_is_sent(limits.MIB, "ok")
        for lane in self.box.counts().values():
            assert lane.queued == lane.astray == 0

    def check(self):
        with self.catalog.read() as session:
            totals = session.results.totals().get(DEVICE, {})
            rows = [row for lane in LANES for row in session.results.rows(DEVICE, lane, 0, 1 << 30)]
        arrived = Counter(row.body for row in rows)
        assert not arrived - Counter(self.produced), "nothing twice, nothing foreign"
        ingested, lost = sum(t.ingested for t in totals.values()), sum(t.lost for t in totals.values())
        assert ingested == len(rows)
        if self.was_damaged:
            assert ingested + lost >= len(self.produced), "each row is here, or told as lost"
        else:
            assert ingested + lost == len(self.produced)
            assert self.box.produced() == len(self.produced)
        if not self.was_held_up:
            order: dict[tuple[str, str], int] = {}
            for row in rows:
                assert row.seq > order.get((row.epoch, row.lane), -1), "in the order of the lane"
                order[row.epoch, row.lane] = row.seq

    # How

    def do(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def open(self):
        self.box = self.do(
            Outbox.opened(
                self.home / "outbox.db",
                DEVICE,
                budget_bytes=self.budget,
                now_ms=lambda: self.now_ms,
                draw_token=lambda: f"{next(self.tokens):032x}",
                policies=self.policies,
                boot=str(self.boot),
            )
        )
        self.do(self.box.meet_generation(GENERATION))

    def kill(self):
        """What lies on the disk at this moment is all that the next agent finds."""
        old, self.home = self.home, self.home.with_name(str(int(self.home.name) + 1))
        self.do(self.box.salvaged())
        shutil.copytree(old, self.home)
        self.do(self.box.close())
        shutil.rmtree(old)

    def take(self, sent):
        taken = self.ingest.take(sent, DEVICE)
        return decode(taken.receipt.encode(), ReceiptsBody, limit=limits.OBJECT_BYTES), bool(taken.conflicts)

    def instant(self) -> Instant:
        return Instant(str(self.boot), self.now_ms, self.now_ms)


@pytest.mark.slow
@pytest.mark.parametrize("damaging", [False, True])
def test_in_any_history_each_row_is_ingested_once_or_counted_as_lost(empty_catalog, damaging, monkeypatch):
    monkeypatch.setattr(folding, "PIECES_KEPT", 1)
    monkeypatch.setattr(folding, "EPOCHS_KEPT", 1)
    case = type("Case", (Results,), {"empty_catalog": empty_catalog, "damaging": damaging})
    run_state_machine_as_test(
        case,
        settings=settings(
            max_examples=int(os.environ.get("HISTORIES", "12")),
            # A shorter example is looked for only when asked for: it takes minutes.
            phases=[phase for phase in Phase if phase is not Phase.shrink or "SHRINK" in os.environ],
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
