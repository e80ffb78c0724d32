"""Runs the checks in the order in which what they mend stands on each other, at each start and by hand.

A check that fails, for whatever reason, says so and keeps no other from looking; none keeps the agent from starting: a
bug in one must not cost inference.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from device.repair import (
    active_link,
    container_images,
    disk_space,
    first_roots,
    identity_files,
    leftovers,
    outbox_database,
    release_files,
    release_sets,
    run_folder,
    seals,
    settings_file,
    state_database,
    stray_parts,
    trust_files,
    who_may_read,
    wrong_kind,
)
from device.repair.fault import Check, Fault, Finding, Place
from device.state_db import StateDb
from protocol import limits
from protocol.errors import HeadlandError, Refused
from protocol.ids import Millis, Token
from protocol.messages import Alert
from protocol.wire import decode, encode

LOG: Final = logging.getLogger("headland.repair")
TOLD: Final = "repair/told"  # what lasts is told once, not each morning
KIND: Final = "self-repair"
EXPECTED: Final = (OSError, HeadlandError)

CHECKS: Final[Mapping[str, Check]] = {
    "settings": settings_file.find,
    "wrong-kind": wrong_kind.find,
    "disk-space": disk_space.find,
    "identity": identity_files.find,
    "who-may-read": who_may_read.find,
    "leftovers": leftovers.find,
    "run-folder": run_folder.find,
    "state-database": state_database.find,
    "seals": seals.find,
    "first-roots": first_roots.find,
    "trust-files": trust_files.find,
    "outbox-database": outbox_database.find,
    "stray-parts": stray_parts.find,
    "release-files": release_files.find,
    "container-images": container_images.find,
    "release-sets": release_sets.find,
    "active-link": active_link.find,
}
"""All checks by the names that people see. What cannot be opened comes first, and
the database before those that hold files against it."""


def examine(place: Place, *, mend: bool, checks: Mapping[str, Check] = CHECKS) -> tuple[Finding, ...]:
    """Looks for faults and mends them. Blocking.

    Args:
        place: Where.
        mend: False only looks.
        checks: By name, in their order.

    Returns:
        What was found. Empty is a healthy machine.
    """
    findings = []
    for name, check in checks.items():
        try:
            faults = check(place)
        except Exception as error:
            _note(name, error)
            findings.append(_legible(Finding(check=name, what=f"it could not be looked at: {_words(error)}")))
            continue
        for fault in faults:
            finding = _legible(_treat(name, fault) if mend else _as_found(name, fault))
            LOG.log(logging.INFO if fault.quiet else logging.WARNING, "%s", finding.line())
            findings.append(finding)
    return tuple(findings)


def tell(state: StateDb, findings: Sequence[Finding], draw_token: Callable[[], Token], at_ms: Millis) -> None:
    """Queues an alert for each finding that the managers should hear of and were not told yet. Blocking.

    Raises:
        StateError: The database takes none now.
    """
    told: list[str] = []
    with contextlib.suppress(Refused):  # written by another version of the agent: then it is told once more
        told = decode(state.get(TOLD) or b"[]", list[str], limit=limits.MIB)
    loud = [finding for finding in findings if finding.is_news]
    for finding in loud:
        if finding.mended or finding.check not in told:
            state.add_alert(Alert(id=draw_token(), kind=KIND, at_ms=at_ms, detail=finding.line()[:2000]))
    lasting = sorted({finding.check for finding in loud if not finding.mended})
    if lasting != told:
        state.put(TOLD, encode(lasting))


def _treat(name: str, fault: Fault) -> Finding:
    if fault.mend is None:
        return _as_found(name, fault)
    try:
        done = fault.mend()
    except Exception as error:
        _note(name, error)
        return Finding(check=name, what=fault.what, done=f"not mended: {_words(error)}", advice=fault.advice)
    return msgspec.structs.replace(_as_found(name, fault), mended=not fault.advice, done=done, reported=fault.reported)


def _note(name: str, error: Exception) -> None:
    if not isinstance(error, EXPECTED):
        LOG.error("the check %s is broken", name, exc_info=error)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"


def _as_found(name: str, fault: Fault) -> Finding:
    return Finding(check=name, what=fault.what, advice=fault.advice, quiet=fault.quiet)


def _legible(finding: Finding) -> Finding:
    """With words that can be sent and shown: a name that the disk damaged need not be text."""
    return msgspec.structs.replace(finding, what=_text(finding.what), done=_text(finding.done))


def _text(words: str) -> str:
    return words.encode(errors="backslashreplace").decode()
