"""Patches that gave no result on a machine: not offered to it again, and withdrawn when several machines say so.

A withdrawn patch is made once more; when the same bytes come out, or when those fail too, it is given up, and machines
get another patch or the full payload, at its price and under their budget. A machine's word counts as long as it runs
the agent that gave it, and until a person lifts the patch.
"""

from collections.abc import Collection, Iterable
from typing import Final

from protocol.errors import StateError
from protocol.ids import Digest
from protocol.messages import FailedPatch
from server.storage.catalog import Session
from server.storage.records import Device, Patch

ID_DIGITS: Final = 8  # of a patch's id name it
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


def forgive_upgraded(session: Session, before: Device, after: Device, now_ms: int) -> None:
    """Forgets what failed on a machine whose agent is another version now: that one may well apply it.

    Args:
        session: A `write`.
        before: The machine as it was known.
        after: As it reports itself now.
        now_ms: The clock.
    """
    if before.inventory is None or after.inventory is None or before.inventory.agent == after.inventory.agent:
        return
    count = session.patches.forgive(after.id)
    if count:
        session.events.add(
            now_ms,
            "patches-forgiven",
            device=after.id,
            what=f"{count} patches",
            detail=f"its agent is {after.inventory.agent} now; they failed under {before.inventory.agent}",
        )


def take_lifts(session: Session, device: str, payloads: Collection[Digest], now_ms: int) -> None:
    """A technician let patches be tried again on one machine.

    Args:
        session: A `write`.
        device: Whose word it is; not one that was set apart.
        payloads: From its contact.
        now_ms: The clock.
    """
    count = session.patches.forgive(device, payloads) if payloads else 0
    if count:
        session.events.add(
            now_ms, "patches-forgiven", device=device, what=f"{count} patches", detail="by a technician on the machine"
        )


def lift(session: Session, prefix: str, who: str, now_ms: int) -> Patch:
    """A person lets a patch be tried again, on the machines that it failed on and where it was withdrawn.

    Args:
        session: A `write`.
        prefix: The beginning of its id, 8 digits or more.
        who: The person.
        now_ms: The clock.

    Returns:
        The patch, as it was.

    Raises:
        StateError: There is no such patch, or nothing to lift.
    """
    found = session.patches.find(prefix) if len(prefix) >= ID_DIGITS else []
    if len(found) != 1:
        raise StateError(
            f"{prefix!r:.80} is {'no patch' if not found else 'the beginning of several patches'}",
            hint=f"`headland patch list` shows those in trouble; {ID_DIGITS} digits or more of an id will do",
        )
    (patch,) = found
    failures = session.patches.word_of(patch.pair.id)
    if not failures and (patch.payload is not None or not patch.why):
        raise StateError(f"patch {name(patch)} failed nowhere: nothing is to be lifted")
    session.patches.lift(patch, now_ms)
    session.fleet.changed()
    detail = f"it failed on {len({failure.device for failure in failures})} machines"
    if patch.payload is None:
        detail += f"; made anew, it was {patch.why}"
    session.events.add(now_ms, "patch-lifted", who=who, what=name(patch), detail=detail)
    return patch


def name(patch: Patch) -> str:
    """A patch in the words of the audit trail."""
    return f"{patch.pair.result[:12]} from {patch.pair.base[:12]}"
