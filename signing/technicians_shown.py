"""What a list of technicians lets whom do, in words: for signers and for `technicians list`."""

from collections.abc import Iterator
from datetime import UTC, datetime

from tuf.api.metadata import Targets

from protocol.kits import Technician
from signing.repository import technicians_of

SHOWN = 12  # machines by name; the rest is a number


def technician_lines(old: object, new: Targets, now: datetime) -> Iterator[tuple[str, bool]]:
    """What changes, a line each, with whether a signer should stop at it.

    Args:
        old: The signed part that is published, or None.
        new: What is proposed.
        now: Aware.

    Raises:
        Refused: `METADATA`: the list is none, or says that it is not made yet.
    """
    before = {each.name: each for each in technicians_of(old).technicians} if isinstance(old, Targets) else {}
    after = {each.name: each for each in technicians_of(new, now).technicians}
    for name, each in after.items():
        if before.get(name) == each:
            continue
        known = before.get(name)
        yield f"{name} {may(each)}", each.may_force and each.machines is None
        if known is not None:
            yield f"  before: {name} {may(known)}", False
    for name, known in before.items():
        if name not in after:
            why = "has ended" if known.expires_ms <= now.timestamp() * 1000 else "is REVOKED"
            yield f"{name} {why}: counts on no machine that knows this list", False
    yield f"{len(after)} technician{'' if len(after) == 1 else 's'} in all", False


def may(technician: Technician) -> str:
    """What a technician may do, where and until when."""
    right = "may force updates" if technician.may_force else "may NOT force updates"
    return f"{right} {where(technician)} until {day(technician.expires_ms)}, with the key {technician.public_key[:12]}"


def where(technician: Technician) -> str:
    """On which machines an entry counts."""
    if technician.machines is None:
        return "on EVERY machine"
    named = ", ".join(technician.machines[:SHOWN])
    rest = f" and {len(technician.machines) - SHOWN} more" if len(technician.machines) > SHOWN else ""
    groups = f" (as {', '.join(technician.groups)} stood)" if technician.groups else ""
    return f"on {named}{rest}{groups}"


def day(at_ms: int) -> str:
    """A moment for people, to the day, UTC."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"
