"""O10 on the machine: uploads that were replayed, forged or altered lose no row, and are never taken for its own."""

import asyncio

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from device.outbox.batch import sign_batch
from protocol import limits
from protocol.errors import LinkError
from protocol.results import SIGNING_CONTEXT, BatchBody, LaneRows, SignedBatch, open_batch
from protocol.wire import unpack
from tests.fakes.contact_machine import opened

KEY = ec.generate_private_key(ec.SECP256R1())
BODY = BatchBody(device="tractor-1", epoch="e" * 32, lanes=(LaneRows(lane="alarms", first=0, rows=(b"a", b"b")),))


def test_a_batch_is_signed_over_its_exact_bytes_so_that_no_flipped_bit_passes():
    batch = unpack(sign_batch(BODY, KEY), SignedBatch, limit=limits.BATCH_BYTES)
    verify = KEY.public_key().verify
    verify(batch.signature, SIGNING_CONTEXT + batch.payload, ec.ECDSA(hashes.SHA256()))
    assert open_batch(batch) == BODY
    for position in range(len(batch.payload)):
        altered = bytearray(batch.payload)
        altered[position] ^= 1
        with pytest.raises(InvalidSignature):
            verify(batch.signature, SIGNING_CONTEXT + bytes(altered), ec.ECDSA(hashes.SHA256()))


async def test_attack_o10_rows_under_stolen_numbers_are_kept_apart_and_ours_arrive_once(tmp_path):
    async with opened(tmp_path) as machine:
        await machine.meets()
        epoch = machine.outbox.epoch
        forged = {(epoch, "alarms", number): b"forged %d" % number for number in range(3)}
        machine.server.rows |= forged
        for number in range(5):
            await machine.outbox.enqueue("alarms", b"genuine %d" % number)
        await machine.drain.run()
        assert machine.outbox.queued() == 0
        assert {key: machine.server.rows[key] for key in forged} == forged, "what is there is not overwritten"
        genuine = sorted(row for row in machine.server.rows.values() if row.startswith(b"genuine"))
        assert genuine == [b"genuine %d" % number for number in range(5)]
        assert machine.outbox.produced() == 5


async def test_attack_o10_a_server_that_cries_conflict_without_receipts_costs_no_row(tmp_path):
    async with opened(tmp_path) as machine:
        await machine.meets()
        await machine.outbox.enqueue("alarms", b"genuine")
        machine.trust.distrusts_receipts = True
        machine.server.rows[(machine.outbox.epoch, "alarms", 0)] = b"forged"
        # Each cry moves the row to fresh numbers; it stays queued until a receipt for it holds.
        for _ in range(3):
            machine.server.rows[(machine.outbox.epoch, "alarms", 0)] = b"forged"
            with pytest.raises(LinkError):
                await machine.drain.run()
        assert machine.outbox.queued() == 1
        machine.trust.distrusts_receipts = False
        await machine.drain.run()
        assert b"genuine" in machine.server.rows.values()
        assert machine.outbox.produced() == 1


async def test_attack_o10_the_same_batch_sent_many_times_arrives_once(tmp_path):
    async with opened(tmp_path) as machine:
        await machine.meets()
        await asyncio.gather(*(machine.outbox.enqueue("results", b"row %d" % n) for n in range(50)))
        for _ in range(4):
            machine.server.cut_answers = 1
            with pytest.raises(LinkError):
                await machine.drain.run()
        await machine.drain.run()
        assert len(machine.server.order) == len(set(machine.server.order)) == 50
