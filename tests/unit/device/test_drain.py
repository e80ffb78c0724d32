"""Results over links that carry little in the time that a request has: all of it gets out, alarms first."""

import os

import pytest

from device.drain import LEAST_BYTES
from device.outbox.box import BATCH_ROWS_BYTES
from protocol.errors import LinkError
from tests.fakes.contact_machine import opened

ROW_BYTES = 900


@pytest.fixture
async def machine(tmp_path):
    async with opened(tmp_path) as made:
        await made.meets()
        yield made


class Link:
    """Carries no request longer than `most_bytes`; notes how long each was, and whether it was carried."""

    def __init__(self, server, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.sent: list[int] = []
        self._post = server.post
        server.post = self.post

    async def post(self, path: str, body: bytes, **more: object):
        carried = len(body) <= self.most_bytes
        self.sent.append(len(body) if carried else -len(body))
        if not carried:
            raise LinkError(f"{path}: TimeoutError")
        return await self._post(path, body, **more)


async def fill(machine, count: int) -> None:
    """Rows that hardly compress."""
    await machine.outbox.enqueue_all([("results", os.urandom(ROW_BYTES)) for _ in range(count)])


async def visit(machine) -> int:
    try:
        return await machine.drain.run()
    except LinkError:
        return 0


async def test_an_alarm_gets_out_alone_over_a_link_that_carries_little(machine):
    await fill(machine, 900)
    await machine.outbox.enqueue("alarms", b"stop")
    link = Link(machine.server, 2_000)
    assert await visit(machine) == 0
    assert machine.outbox.positions()["alarms"].queued == 0
    assert [row for (_, lane, _), row in machine.server.rows.items() if lane == "alarms"] == [b"stop"]
    assert len(link.sent) == 2


async def test_a_batch_that_the_link_does_not_carry_is_halved_until_all_is_out(machine):
    await fill(machine, 1500)
    link = Link(machine.server, 120_000)
    visits = 0
    while machine.outbox.queued():
        await visit(machine)
        visits += 1
        assert visits < 20
    failed = [length for length in link.sent if length < 0]
    assert len(failed) < len(link.sent) / 2, "nor is most of the time spent on batches that are too long"


async def test_a_link_that_carries_again_carries_full_batches_soon(machine):
    await fill(machine, 1500)
    link = Link(machine.server, 0)
    for _ in range(12):
        await visit(machine)
    assert -link.sent[-1] < 2 * LEAST_BYTES, "and no shorter: the link is down"
    link.most_bytes = 1 << 20
    await fill(machine, 10_000)
    before = len(link.sent)
    await visit(machine)
    assert machine.outbox.queued() == 0
    assert max(link.sent) > 0.95 * BATCH_ROWS_BYTES
    assert len(link.sent) - before < 40


async def test_a_short_batch_over_a_link_that_is_down_makes_the_next_no_shorter(machine):
    await machine.outbox.enqueue("results", b"row")
    link = Link(machine.server, 0)
    for _ in range(12):
        await visit(machine)
    link.most_bytes = 1 << 20
    await fill(machine, 1500)
    await visit(machine)
    assert max(link.sent) > 0.95 * BATCH_ROWS_BYTES


@pytest.mark.parametrize("why", ["it does not verify", "it is of a generation that was not met yet"])
async def test_in_a_conflict_without_a_receipt_that_holds_no_row_goes_twice(machine, why):
    epoch, generation = machine.outbox.epoch, machine.server.generation
    await machine.outbox.enqueue_all([("results", b"row %d" % number) for number in range(3)])
    machine.server.rows[epoch, "results", 2] = b"of a clone"
    machine.trust.distrusts_receipts = why == "it does not verify"
    machine.server.generation = generation if machine.trust.distrusts_receipts else "8" * 32
    assert await visit(machine) == 0
    machine.trust.distrusts_receipts, machine.server.generation = False, generation
    assert await visit(machine) == 4, "two that are there, one that is numbered anew and goes"
    assert sorted(machine.server.rows.values()) == [b"of a clone", b"row 0", b"row 1", b"row 2"]
