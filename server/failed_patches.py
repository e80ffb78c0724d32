"""Patches that gave no result on a machine: never offered to it again, and withdrawn when several machines say so.

A withdrawn patch is made once more; when the same bytes come out, or when those fail too, it is given up, and machines
get another patch or the full payload, at its price and under their budget.
"""

from collections.abc import Iterable
from typing import Final

from protocol.messages import FailedPatch
from server.storage.catalog import Session
from server.storage.records import Patch

MADE_AT_MOST: Final = 2  # a blob or a memory may have been bad when it was made; twice is no accident


def take_failures(session: Session, device: str, told: Iterable[FailedPatch], now_ms: int, withdraw_after: int) -> int:
    """Keeps what a machine says. Returns how much of it is news.

    Args:
        session: A `write`.
        device: Whose word it is; not one that was set apart.
        told: From its contact.
        now_ms: The clock.
        withdraw_after: Machines on which a patch must fail to be withdrawn for all.
    """
    news = 0
    for failed in told:
        patch = session.patches.fail(device, failed, now_ms)
        if patch is None:
            continue
        news += 1
        what = name(patch)
        session.events.add(
            now_ms,
            "patch-failed",
            device=device,
            what=what,
            reason=failed.reason.value,
            detail=f"payload {failed.payload}",
        )
        machines = session.patches.failures(patch.pair.id, failed.payload)
        if patch.payload != failed.payload or machines < withdraw_after:
            continue
        again = patch.made < MADE_AT_MOST
        why = f"withdrawn: it failed on {machines} machines"
        session.patches.withdraw(patch, why, now_ms, again=machines if again else None)
        session.events.add(
            now_ms, "patch-withdrawn", what=what, detail=f"{why}; {'made once more' if again else 'given up'}"
        )
    return news


def name(patch: Patch) -> str:
    """A patch in the words of the audit trail."""
    return f"{patch.pair.result[:12]} from {patch.pair.base[:12]}"
