"""Results onto a stick: all that waits, sealed, once; full, pulled, read-only, copied, foreign sticks lose nothing."""

import errno
import itertools
import os
import shutil

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec.structs import replace

from device.kits.export import LEFT_FREE_BYTES, Export
from device.kits.forces import keep_force
from device.outbox.box import MIN_BUDGET_BYTES
from protocol import limits
from protocol.errors import LinkError
from protocol.kits import REPORT_CONTEXT, SignedReport, open_report, read_piece, write_piece
from protocol.messages import Alert, SignedForce, UpdateStatus
from protocol.objects import ReceiptsBody, RowRange
from protocol.results import SIGNING_CONTEXT, Loss, SignedBatch, open_batch, rows_sha256
from protocol.wire import decode, encode, unpack
from signing import stick
from signing.durable import Disk
from signing.sealing import open_sealed, public_half
from tests.fakes.contact_machine import DEVICE, opened

SEALING = X25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
KEY = ec.generate_private_key(ec.SECP256R1())
BIG = 64 * limits.MIB


class Place:
    """A stick and the machine that it is put into."""

    def __init__(self, machine, folder) -> None:
        self.machine = machine
        self.folder = folder
        self.sealing = SEALING

    def export(self, disk=None, **options) -> Export:
        return Export(
            DEVICE,
            outbox=self.machine.outbox,
            key=KEY,
            state=self.machine.state,
            trust=self.machine.trust,
            report=self.machine.contact.report_for_stick,
            sealing_key=lambda: None if self.sealing is None else public_half(self.sealing),
            disk=disk or Disk(),
            **options,
        )

    async def put_in(self, disk=None):
        return await self.export(disk).to(self.folder)

    @property
    def results(self):
        return self.folder / "headland-results" / DEVICE

    def pieces(self, folder=None):
        return sorted((folder or self.results).glob("*.piece"))

    def batches(self, folder=None):
        return [
            open_batch(unpack(data, SignedBatch, limit=limits.BATCH_BYTES + 4096))
            for header, data in self.opened(folder)
            if header.kind == "batch"
        ]

    def reports(self):
        return [
            open_report(unpack(data, SignedReport, limit=limits.MIB))
            for header, data in self.opened()
            if header.kind == "report"
        ]

    def opened(self, folder=None):
        for path in self.pieces(folder):
            data = path.read_bytes()
            assert len(data) <= limits.PIECE_BYTES
            header, sealed = read_piece(data)
            inner = open_sealed([SEALING, OTHER], sealed, DEVICE, header.kind)
            kind, context = (SignedBatch, SIGNING_CONTEXT) if header.kind == "batch" else (SignedReport, REPORT_CONTEXT)
            signed = unpack(inner, kind, limit=limits.PIECE_BYTES)
            KEY.public_key().verify(signed.signature, context + signed.payload, ec.ECDSA(hashes.SHA256()))
            yield header, inner

    def rows(self, folder=None):
        return [
            (batch.epoch, part.lane, seq, body)
            for batch in self.batches(folder)
            for part in batch.lanes
            for seq, body in enumerate(part.rows, part.first)
        ]

    def give_receipts(self, generation) -> None:
        folder = self.results / "receipts"
        folder.mkdir(exist_ok=True)
        for number, batch in enumerate(self.batches()):
            losses = [(decode(raw, Loss, limit=1000), raw) for raw in batch.losses]
            body = ReceiptsBody(
                device=DEVICE,
                epoch=batch.epoch,
                generation=generation,
                rows=tuple(
                    RowRange(
                        lane=part.lane,
                        first=part.first,
                        last=part.first + len(part.rows) - 1,
                        rows_sha256=rows_sha256(part.rows),
                    )
                    for part in batch.lanes
                ),
                losses=tuple(
                    RowRange(lane=loss.lane, first=loss.first, last=loss.last, rows_sha256=stick_digest(raw))
                    for loss, raw in losses
                ),
            )
            (folder / f"{number}.json").write_bytes(encode(body))


def stick_digest(raw: bytes) -> str:
    import hashlib

    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
async def place(tmp_path):
    (tmp_path / "stick").mkdir()
    async with opened(tmp_path, budget_bytes=BIG, key=KEY) as machine:
        yield Place(machine, tmp_path / "stick")


@pytest.fixture
async def small_place(tmp_path):
    (tmp_path / "stick").mkdir()
    async with opened(tmp_path, budget_bytes=MIN_BUDGET_BYTES, key=KEY) as machine:
        yield Place(machine, tmp_path / "stick")


def incompressible(number: int, length: int = 20_000) -> bytes:
    return number.to_bytes(4, "big") + os.urandom(length)


async def test_all_that_waits_lies_on_the_stick_signed_and_sealed_and_stays_here(place):
    box = place.machine.outbox
    await box.enqueue_all([("results", b'{"label": "pest", "n": %d}' % n) for n in range(100)])
    await box.enqueue("alarms", b'{"label": "fire"}')
    done = await place.put_in()
    assert (done.end, done.rows, done.pieces, done.report) == ("complete", 101, 2, True)
    assert len(place.rows()) == 101
    assert box.queued() == 101
    everything = b"".join(path.read_bytes() for path in place.folder.rglob("*") if path.is_file())
    for secret in (b"label", b"pest", b"fire"):
        assert secret not in everything


async def test_what_lies_there_is_not_written_again_and_what_is_new_is(place):
    await place.machine.outbox.enqueue_all([("results", b"one"), ("results", b"two")])
    await place.put_in()
    before = {path: path.read_bytes() for path in place.pieces()}
    await place.machine.outbox.enqueue("results", b"three")
    done = await place.put_in()
    assert (done.there, done.pieces, done.rows) == (1, 1, 1)
    kept = [path for path, data in before.items() if path.exists() and path.read_bytes() == data]
    assert len(kept) == 1, "the batch stays, the report was replaced"
    assert sorted(body for *_, body in place.rows()) == [b"one", b"three", b"two"]


async def test_one_report_lies_there_with_all_that_a_contact_would_tell_and_its_number_rises(place):
    force = SignedForce(request='{"id": "%s"}' % ("1" * 32), signature="0" * 128)
    keep_force(place.machine.state, force)
    keep_force(place.machine.state, force)
    alert = Alert(id="2" * 32, kind="stale-metadata", at_ms=1)
    place.machine.state.add_alert(alert)
    status = UpdateStatus(id="3" * 32, manifest="0" * 64, rollout="kit-1", state="trial", at_ms=1)
    place.machine.state.tell([status], {})
    await place.put_in()
    [first] = place.reports()
    assert (first.forces, first.alerts, first.statuses, first.sync_token) == ((force,), (alert,), (status,), None)
    assert first.inventory == place.machine.inventory
    await place.machine.meets()
    await place.put_in()
    [second] = place.reports()
    assert second.number > first.number
    assert second.sync_token == place.machine.server._token
    assert (second.forces, second.alerts, second.statuses) == ((), (), ()), "the contact told them"
    assert place.machine.server.requests[0].forces == (force,)
    assert place.machine.server.requests[0].stick_number == first.number


async def test_forces_are_told_until_a_contact_was_answered(place):
    force = SignedForce(request='{"id": "%s"}' % ("1" * 32), signature="0" * 128)
    keep_force(place.machine.state, force)
    place.machine.server.cut_answers = 1
    with pytest.raises(LinkError):
        await place.machine.meets()
    await place.machine.meets()
    await place.machine.meets()
    assert [request.forces for request in place.machine.server.requests] == [(force,), (force,), ()]


async def test_the_number_of_a_report_is_durable_before_the_stick_has_it(place):
    numbers = []
    for _ in range(3):
        await place.put_in(Disk(before=pulled_at(4)))
        numbers.append(int(place.machine.state.get("kits/report")))
    assert numbers == sorted(set(numbers))


async def test_a_piece_goes_only_when_the_server_has_all_of_it(place):
    box = place.machine.outbox
    await box.meet_generation("9" * 32)
    await box.enqueue_all([("results", incompressible(n)) for n in range(80)])
    await place.put_in()
    assert len(place.batches()) == 2
    place.give_receipts("9" * 32)
    (place.results / "receipts" / "1.json").unlink()
    done = await place.put_in()
    assert done.removed == 1
    assert 0 < done.settled < 80
    assert len(place.batches()) == 1
    assert box.queued() == len(place.rows()) == 80 - done.settled
    assert not list((place.results / "receipts").iterdir()), "what was taken in is taken away"


async def test_of_receipts_without_end_some_are_looked_at_in_one_visit(place, monkeypatch):
    monkeypatch.setattr("device.kits.export.RECEIPTS_LOOKED_AT", 1)
    box = place.machine.outbox
    await box.meet_generation("9" * 32)
    await box.enqueue_all([("results", incompressible(n)) for n in range(80)])
    await place.put_in()
    place.give_receipts("9" * 32)
    first = await place.put_in()
    assert 0 < first.settled < 80
    assert first.settled + (await place.put_in()).settled == 80


async def test_a_folder_that_bears_the_name_of_a_temporary_file_stops_nothing(place):
    (place.results / ".tmp-folder").mkdir(parents=True)
    await place.machine.outbox.enqueue("results", b"one")
    assert (await place.put_in()).end == "complete"


async def test_receipts_of_another_life_of_the_server_wait_on_the_stick(place):
    box = place.machine.outbox
    await box.meet_generation("8" * 32)
    await box.enqueue("results", b"one")
    await place.put_in()
    place.give_receipts("9" * 32)
    assert (await place.put_in()).settled == 0
    await box.meet_generation("9" * 32)
    done = await place.put_in()
    assert (done.settled, done.removed, box.queued()) == (1, 1, 0)


async def test_a_machine_that_never_had_a_contact_takes_receipts_too(place):
    await place.machine.outbox.enqueue("results", b"one")
    await place.put_in()
    place.give_receipts("9" * 32)
    assert (await place.put_in()).settled == 1


async def test_receipts_that_do_not_verify_settle_nothing_and_stay(place):
    await place.machine.outbox.enqueue("results", b"one")
    await place.put_in()
    place.give_receipts("9" * 32)
    place.machine.trust.distrusts_receipts = True
    assert (await place.put_in()).settled == 0
    assert list((place.results / "receipts").iterdir())


async def test_rows_that_were_dropped_here_stay_on_the_stick_although_their_loss_is_receipted(small_place):
    box = small_place.machine.outbox
    await box.meet_generation("9" * 32)
    await box.enqueue_all([("results", incompressible(n)) for n in range(4)])
    await small_place.put_in()
    mine = set(small_place.rows())
    for n in range(4, 40):
        await box.enqueue("results", incompressible(n))
    assert box.lost() >= 4
    await small_place.put_in()
    small_place.give_receipts("9" * 32)
    await small_place.put_in()
    assert box.queued() == 0
    assert mine <= set(small_place.rows())


def pulled_at(n: int, code: int = errno.EIO):
    """Fails every effect from the n-th on: a stick that is gone stays gone."""
    effects = itertools.count()

    def before(effect: str, path: object) -> None:
        if next(effects) >= n:
            raise OSError(code, os.strerror(code))

    return before


async def test_a_stick_pulled_at_every_write_loses_and_doubles_nothing(place, tmp_path):
    box = place.machine.outbox
    await box.meet_generation("9" * 32)
    await box.enqueue_all([("alarms", b"fire"), *(("results", incompressible(n, 10_000)) for n in range(120))])
    for n in range(200):
        place.folder = tmp_path / f"stick-{n}"
        place.folder.mkdir()
        cut = await place.put_in(Disk(before=pulled_at(n)))
        assert all(batch.lanes for batch in place.batches()), "each piece that is there is whole"
        if cut.end == "complete":
            break
        assert (cut.end, box.queued()) == ("gone", 121)
        assert "pulled" in cut.words
        assert (await place.put_in()).end == "complete"
        found = place.rows()
        assert len(found) == len(set(found)) == 121, "each row once, as it is the same stick"
        assert len(place.reports()) == 1
        assert not [path for path in place.results.iterdir() if path.name.startswith(".tmp-")]
        shutil.rmtree(place.folder)
    assert cut.end == "complete"
    assert n > 20


async def test_a_stick_that_fills_takes_alarms_first_leaves_room_and_the_next_goes_on(place, monkeypatch):
    await place.machine.outbox.enqueue_all([("alarms", b"fire"), *(("results", incompressible(n)) for n in range(200))])
    capacity = LEFT_FREE_BYTES + 1_500_000

    def free_bytes(self) -> int:
        return capacity - sum(path.stat().st_size for path in place.folder.rglob("*") if path.is_file())

    monkeypatch.setattr(stick.StickFolder, "free_bytes", free_bytes)
    done = await place.put_in()
    assert done.end == "full"
    assert "full" in done.words
    assert done.report
    assert free_bytes(None) >= LEFT_FREE_BYTES
    assert 40 < done.rows < 80
    assert b"fire" in [body for *_, body in place.rows()]
    capacity *= 100
    assert (await place.put_in()).end == "complete"
    assert len(place.rows()) == len(set(place.rows())) == 201


async def test_a_disk_that_is_full_before_it_said_so_ends_the_export_in_words(place):
    await place.machine.outbox.enqueue("results", b"one")
    done = await place.put_in(Disk(before=pulled_at(3, errno.ENOSPC)))
    assert done.end == "full"
    assert place.machine.outbox.queued() == 1


async def test_a_read_only_stick_gives_its_receipts_and_takes_nothing(place):
    await place.machine.outbox.enqueue("results", b"one")
    await place.put_in()
    place.give_receipts("9" * 32)
    before = len(place.pieces())
    done = await place.put_in(Disk(before=pulled_at(0, errno.EROFS)))
    assert (done.end, done.settled) == ("read-only", 1)
    assert "cannot be written" in done.words
    assert len(place.pieces()) == before


async def test_a_copied_stick_is_filled_on_its_own_and_both_bear_every_row(place, tmp_path):
    await place.machine.outbox.enqueue("results", b"one")
    await place.put_in()
    shutil.copytree(place.folder, tmp_path / "copy")
    await place.machine.outbox.enqueue("results", b"two")
    await place.put_in()
    place.folder = tmp_path / "copy"
    done = await place.put_in()
    assert (done.there, done.pieces) == (1, 1)
    assert sorted(body for *_, body in place.rows()) == [b"one", b"two"]


async def test_a_damaged_piece_and_those_of_others_are_left_alone_and_its_rows_written_again(place):
    await place.machine.outbox.enqueue("results", b"one")
    await place.put_in()
    [path] = [p for p in place.pieces() if read_piece(p.read_bytes())[0].kind == "batch"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (place.results / "note.piece").write_bytes(b"a person's own file")
    header, sealed = read_piece(
        next(p for p in place.pieces() if p not in (path,) and p.name != "note.piece").read_bytes()
    )
    assert header.kind == "report"
    (place.results / "foreign.piece").write_bytes(write_piece(replace(header, device="tractor-2"), sealed))
    (place.results / ".tmp-cut").write_bytes(b"half")
    done = await place.put_in()
    assert (done.damaged, done.pieces, done.there) == (3, 1, 0)
    assert path.read_bytes() == data
    assert not (place.results / ".tmp-cut").exists()
    for left in (path, place.results / "note.piece", place.results / "foreign.piece"):
        left.unlink()
    assert len(place.rows()) == 1


async def test_a_piece_sealed_to_a_key_that_was_replaced_is_no_reason_not_to_seal_to_the_new_one(place):
    await place.machine.outbox.enqueue("results", b"one")
    await place.put_in()
    place.sealing = OTHER
    done = await place.put_in()
    assert (done.there, done.pieces) == (0, 1)
    assert len(place.batches()) == 2


async def test_without_a_key_to_seal_to_nothing_is_written(place):
    await place.machine.outbox.enqueue("results", b"one")
    place.sealing = None
    done = await place.put_in()
    assert (done.end, done.pieces) == ("no-key", 0)
    assert not place.results.exists()


async def test_a_link_on_the_stick_leads_the_machine_nowhere(place, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (place.folder / "headland-results").mkdir()
    place.results.symlink_to(mine)
    await place.machine.outbox.enqueue("results", b"one")
    assert (await place.put_in()).end == "gone"
    assert not list(mine.iterdir())


async def test_a_header_that_lies_about_what_it_holds_does_not_make_a_piece_go_early(place):
    """Spans are a hint: whoever writes others keeps rows from the stick, as one who takes it away does."""
    await place.machine.outbox.enqueue_all([("results", b"one"), ("results", b"two")])
    await place.put_in()
    for path in place.pieces():
        header, sealed = read_piece(path.read_bytes())
        if header.kind == "batch":
            told = encode(header).replace(b"[0,1]", b"[0,99999999]")
            path.write_bytes(write_piece(decode(told, type(header), limit=10_000), sealed))
    await place.machine.outbox.enqueue("results", b"three")
    done = await place.put_in()
    assert done.end == "complete"
    assert place.machine.outbox.queued() == 3
    assert done.removed == 0
