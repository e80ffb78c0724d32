"""O13 in the outbox: a flood of results stays within its budget, counts what it drops, and never costs an alarm."""

import asyncio

from device.outbox.box import MIN_BUDGET_BYTES
from protocol import limits
from protocol.results import Loss
from protocol.wire import decode
from tests.fakes.contact_machine import opened


async def test_attack_o13_a_flood_is_bounded_and_counted_and_alarms_survive_it(tmp_path):
    budget = 4 * MIN_BUDGET_BYTES
    async with opened(tmp_path, budget_bytes=budget) as machine:
        box = machine.outbox
        for round_number in range(20):
            await box.enqueue("alarms", b"alarm %d" % round_number)
            await asyncio.gather(*(box.enqueue("results", b"x" * 400) for _ in range(500)))
        files = sum(path.stat().st_size for path in tmp_path.glob("outbox.db*"))
        # The log beside the database is cut back at checkpoints; the database itself keeps to its budget.
        assert (tmp_path / "outbox.db").stat().st_size <= budget + limits.MIB
        assert files <= budget + 12 * limits.MIB
        counts = box.counts()
        assert counts["alarms"].queued == 20
        assert counts["alarms"].lost == 0
        assert counts["results"].produced == 10_000 == counts["results"].queued + counts["results"].lost
        assert counts["results"].lost > 5_000
        await machine.meets()
        await machine.drain.run()
        assert machine.server.count_lost() == box.lost()
        assert len(machine.server.rows) + machine.server.count_lost() == box.produced()
        records = [decode(record, Loss, limit=1000) for _, record in machine.server.losses]
        assert all(record.exact for record in records)
        assert len(records) < 50, "a flood is told in few words"
