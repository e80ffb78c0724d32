"""`headland-device run` that notes each promise in the moment in which it holds: `python -m tests.simulation.told_agent
STATE PROMISES`. Nothing of the agent is replaced; its own methods are called, and what they came to is noted."""

import functools
import sys
from pathlib import Path

from device import agent
from device.outbox.box import Outbox
from device.state_db import StateDb
from device.trust.client import KeeperTrust
from device.update.states import State
from protocol.ids import digest
from tests.simulation.workload import Promises


def note_promises(promise: Promises) -> None:
    """From here on in this process."""
    _note_records(promise)
    _note_rows(promise)
    _note_trust(promise)


def _note_records(promise: Promises) -> None:
    write_record = StateDb.write_record

    @functools.wraps(write_record)
    def noted(self, record, *, floors=None, statuses=(), refusal=None, facts=None):
        statuses = tuple(statuses)
        write_record(self, record, floors=floors, statuses=statuses, refusal=refusal, facts=facts)
        if record.state is not State.IDLE and record.offer is not None:
            promise(f"accepted {record.offer.release.version}")
        if floors:
            promise(f"committed {record.committed.version}")

    StateDb.write_record = noted


def _note_rows(promise: Promises) -> None:
    enqueue_all, apply_receipt = Outbox.enqueue_all, Outbox.apply_receipt

    @functools.wraps(enqueue_all)
    async def noted(self, rows, **more):
        numbers = await enqueue_all(self, rows, **more)
        for (lane, row), number in zip(rows, numbers, strict=True):
            promise(f"row {self.epoch} {lane} {number} {digest(row)}")
        return numbers

    @functools.wraps(apply_receipt)
    async def receipted(self, receipt):
        for rows in receipt.rows:
            promise(f"receipt {receipt.epoch} {rows.lane} {rows.first} {rows.last}")
        return await apply_receipt(self, receipt)

    Outbox.enqueue_all, Outbox.apply_receipt = noted, receipted


def _note_trust(promise: Promises) -> None:
    judge = KeeperTrust.judge

    @functools.wraps(judge)
    async def noted(self, answer, nonce, asked_boot_s):
        verdict = await judge(self, answer, nonce, asked_boot_s)
        for role, version in verdict.versions.items():
            promise(f"trusts {role} {version}")
        return verdict

    KeeperTrust.judge = noted


if __name__ == "__main__":
    note_promises(Promises(Path(sys.argv[2])))
    sys.exit(agent.main(["--state", sys.argv[1], "--json"]))
