"""T10: the rows of the key table outside of the trust store: the blob store, the receipts key, a machine's own key."""

from collections.abc import Callable
from pathlib import Path

import pytest

from device.outbox.box import MIN_BUDGET_BYTES
from device.update.states import State
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import BatchBody, LaneRows, rows_sha256
from tests.fakes.contact_machine import opened
from tests.fakes.machines import Bench
from tests.fakes.server_house import Machine, published
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(1_500_000, 2))

LIES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda blob: b"",
    "zeros": lambda blob: bytes(len(blob)),
    "a flipped bit at the end": lambda blob: blob[:-1] + bytes((blob[-1] ^ 1,)),
    "the old release": lambda blob: (OLD.manifest_bytes * (len(blob) // len(OLD.manifest_bytes) + 1))[: len(blob)],
    "cut in half": lambda blob: blob[: len(blob) // 2],
}


@pytest.mark.parametrize("lie", LIES)
async def test_attack_t10_the_blob_store_denies_service_and_changes_no_installed_byte(tmp_path: Path, lie: str) -> None:
    bench = Bench(tmp_path, BlobSource(OLD, NEW))
    async with bench.running() as updater:
        await bench.install(OLD)
        good = dict(bench.source.blobs)
        for name in NEW.blobs:
            bench.source.blobs[name] = LIES[lie](good[name])
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: bool(bench.outcomes()[1:]))
        assert bench.workers.history == [OLD.digest]
        assert bench.active == OLD.digest
        assert (bench.folder / "active/models/pests").read_bytes() == OLD.model
        for name in bench.store.digests():
            assert bench.store.is_whole(name), "nothing lies under a name that is not its hash"
        bench.source.blobs = good
        updater.link_is_up()
        await updater.offer(NEW.assignment("again"), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: bench.active == NEW.digest and updater.record.state is State.IDLE)
        assert (bench.folder / "active/models/pests").read_bytes() == NEW.model


async def test_attack_t10_the_receipts_key_costs_unsent_results_only_once_space_is_needed(tmp_path: Path) -> None:
    rows = [b"row %d " % number * 100 for number in range(20)]
    async with opened(tmp_path, budget_bytes=MIN_BUDGET_BYTES) as machine:
        await machine.meets()
        box = machine.outbox
        for row in rows:
            await box.enqueue("results", row)
        covered = RowRange(lane="results", first=0, last=19, rows_sha256=rows_sha256(rows))
        # The thief must even have seen the rows: the receipt covers their hash.
        thefts = ReceiptsBody(
            device="tractor-1", epoch=box.epoch, generation=machine.server.generation, rows=(covered,)
        )
        assert await box.apply_receipt(thefts) == 20
        assert await box.next_batch() is None, "they are taken for delivered"
        # While there is room they lie there still, and a server that begins a new life gets them.
        machine.server.generation = "b" * 32
        await machine.meets()
        assert await machine.drain.run() == 20
        assert [row for _, row in sorted(machine.server.rows.items())] == rows


async def test_attack_t10_a_stolen_machine_key_speaks_for_that_machine_and_for_nobody_else(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        manifest = await house.release("1.0.0", 1, [b"model"])
        robbed, other = await house.enrol("tractor-1"), await house.enrol("tractor-2")
        await robbed.sync()
        await other.sync()
        thief = Machine(house, "tractor-1")
        thief.key = robbed.key
        thief.use(robbed.certificate)
        # Results in the name of the robbed machine are taken: that is what the key is worth ...
        assert (await thief.send(thief.batch("results", [b"made up"])))[0] == 200
        # ... but not in another's name, whichever of the two names is changed,
        rows = (LaneRows(lane="results", first=0, rows=(b"made up",)),)
        for inside, outside in (("tractor-2", "tractor-2"), ("tractor-2", "tractor-1"), ("tractor-1", "tractor-2")):
            batch = thief.sign(BatchBody(device=inside, epoch=other.epoch, lanes=rows), device=outside)
            code, answer = await thief.send(batch)
            assert (code, answer["reason"]) == (403, "wrong-device"), (inside, outside)
        thief.name = "tractor-2"
        code, answer = await thief.contact(thief.request(sync_token=other.sync_token))
        assert (code, answer["reason"]) == (403, "wrong-device")
        shown = await house.must("GET", "/api/v1/devices/tractor-2")
        assert shown["ingested"]["results"] == 0
        # nor at the door of the people, where releases come in,
        for path in ("/api/v1/publish", "/api/v1/rollouts", "/api/v1/devices"):
            assert (await thief.ask("POST", path, b"{}", {"Content-Type": "application/json"}))[0] == 404
        # and its first contact with a token of its own gives it away: nobody is assigned anything until a person looks.
        await house.rollout("spring", "1.0.0")
        thief.name, thief.sync_token = "tractor-1", robbed.sync_token
        await robbed.sync()
        forked = await thief.sync()
        assert forked.set_apart
        assert forked.assignment is None
        assert [event["device"] for event in await house.events("clone")] == ["tractor-1"]
        answer_of_other = await other.sync()
        assert not answer_of_other.set_apart
        assert manifest in (answer_of_other.assignment or "")
