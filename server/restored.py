"""A server that came out of a backup: what it must do before it is itself again, and what it may not do until then.

The catalog of a backup is right about the past and wrong about what came after it. So, in one transaction, before
anybody is answered (`begin`): a new generation makes machines send results again, rollouts pause, enrolment tokens end,
and publishing is *held*: what managers signed after the backup is missing here, and a snapshot without it would go
back. Machines say which versions they trust (`missing`); the managers' tool and machines give files back. Once every
workspace has pushed all that it has, or by a person's word, the hold ends (`adr/out-of-a-backup.md`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from protocol import limits
from protocol.errors import Refused, StateError
from protocol.ids import Count, DeviceId, Millis, Token, parse_product
from protocol.objects import TECHNICIANS
from protocol.wire import Message, decode, encode
from server.clock import as_datetime
from server.storage.catalog import Session
from server.storage.records import REPOSITORIES
from server.tokens import new_secret, secret_sha256

PUSH_AGAIN: Final = "`headland release push --again`"
FACT: Final = "restored"
ONLINE: Final = ("timestamp", "snapshot")
SLACK_MS: Final = 300_000  # a clock that was set between the backup and an enrolment
WORKSPACES_KEPT: Final = 64
WORKSPACES: Final = "workspaces"
QUIET_MS: Final = 365 * 86_400_000
"""A workspace that has not pushed for so long is not waited for: nothing that it signed last is still good."""


class Restored(Message):
    """The last time that this catalog came out of a backup.

    Args:
        id: Names the restore: to begin it again changes nothing.
        at_ms: When the server noticed, or was told.
        backup_ms: How old its knowledge was; 0: nobody knows.
        how: In words.
        held: Snapshot and timestamp are not signed.
        roles: That came back in whole pushes, as `REPOSITORY/ROLE`.
        workspaces: That have pushed all that they have since, by their ids.
        why: What kept the hold when files came last, in words.
        oldest_ms: The moment of the oldest backup that it ever came out of.
        revoked: Machines that a person revoked again and that the backup does not know.
    """

    id: str
    at_ms: Millis
    backup_ms: Millis
    how: str
    held: bool = True
    roles: tuple[str, ...] = ()
    workspaces: tuple[Token, ...] = ()
    why: str = ""
    oldest_ms: Millis = 0
    revoked: tuple[DeviceId, ...] = ()


class Missing(Message):
    """A file that a manager signed, that machines trust and that is not here."""

    file: str  # `image/3.root.json`, `director/targets.json`
    version: Count
    here: Count
    devices: tuple[DeviceId, ...]


def begin(
    session: Session, now_ms: int, *, restore: str, backup_ms: int, how: str, revoke: Sequence[DeviceId] = ()
) -> bool:
    """Notes that this catalog came out of a backup, and takes the steps that the module names.

    Args:
        session: A `write`.
        now_ms: The clock.
        restore: Names the restore.
        backup_ms: When the backup was taken; 0 when nobody knows.
        how: How that is known, for people.
        revoke: Machines that a person names, because they were revoked after the backup.

    Returns:
        False: this restore had begun before.
    """
    before = read(session)
    if before is not None and before.id == restore:
        return False
    known = set(revoke) & {device.id for device in session.devices.all()}
    for name in sorted(known):
        session.devices.revoke(name, now_ms)
        session.events.add(now_ms, "revoked", device=name, reason="revoked", detail="named at the restore")
    record = Restored(
        id=restore,
        at_ms=now_ms,
        backup_ms=backup_ms,
        how=how,
        held=any(session.repositories.served_names(repository) for repository in REPOSITORIES),
        oldest_ms=backup_ms if before is None else min(backup_ms, before.oldest_ms),
        revoked=tuple(sorted({*(before.revoked if before else ()), *revoke} - known)),
    )
    _put(session, record)
    session.facts.put("generation", secret_sha256(new_secret())[:32])
    session.events.add(now_ms, "server-restored", detail=how)
    session.tokens.void_enrolments(now_ms)
    for rollout in session.rollouts.all():
        if rollout.state == "active":
            # What was halted since, and why, is not known here: nobody is offered it again before a person looked.
            session.rollouts.turn(rollout.name, "paused", "the server was restored: look, then resume")
            session.events.add(now_ms, "rollout-paused", what=rollout.name, detail="the server was restored")
    return True


def read(session: Session) -> Restored | None:
    """The last restore; None: this catalog never came out of a backup."""
    text = session.facts.get(FACT)
    return None if text is None else decode(text, Restored, limit=limits.MIB)


def is_held(session: Session) -> bool:
    """Whether nothing may be published."""
    record = read(session)
    return record is not None and record.held


def note_workspace(session: Session, workspace: Token, now_ms: int) -> None:
    """Notes who pushed: after a restore, what this workspace published in the lost time is waited for."""
    known = {**_workspaces(session), workspace: now_ms}
    newest = sorted(known, key=lambda each: known[each])[-WORKSPACES_KEPT:]
    session.facts.put(WORKSPACES, encode({each: known[each] for each in newest}).decode())


def note_return(session: Session, roles: Collection[str], workspace: Token | None) -> None:
    """Notes that a workspace has pushed all that it has.

    Args:
        session: A `write`, while held.
        roles: That the push covered, as `REPOSITORY/ROLE`.
        workspace: Whose it was, if it said so.
    """
    record = _held(session)
    workspaces = {*record.workspaces, *((workspace,) if workspace is not None else ())}
    changed = msgspec.structs.replace(
        record, roles=tuple(sorted({*record.roles, *roles})), workspaces=tuple(sorted(workspaces))
    )
    _put(session, changed)


def obstacles(session: Session) -> list[str]:
    """What is still to come before anything may be published, in words. No machine's word stands for the managers'.

    A delisting that nobody fetched before the accident is known to one workspace only: so each role must have come in
    a whole push, and each workspace that this catalog has heard of must have made one.
    """
    record = _held(session)
    found = []
    lacking = missing(session)
    if lacking:
        shown = ", ".join(
            f"{each.file} (version {each.version} on {', '.join(each.devices[:3])})" for each in lacking[:8]
        )
        found.append(f"machines trust what is not here: {shown}")
    here = session.repositories.newest()
    roles = sorted(set(here) - set(record.roles))
    if roles == sorted(here):
        found.append(f"the managers have not pushed all that they have since: {PUSH_AGAIN}")
    elif roles:
        found.append(f"no workspace has pushed {', '.join(roles[:8])} again: {PUSH_AGAIN} from where it was signed")
    quiet = {
        each: at_ms
        for each, at_ms in _workspaces(session).items()
        if each not in record.workspaces and at_ms >= record.at_ms - QUIET_MS
    }
    if quiet and roles != sorted(here):
        shown = ", ".join(f"{each[:8]} (last on {as_datetime(quiet[each]):%Y-%m-%d})" for each in sorted(quiet)[:8])
        found.append(f"other workspaces have pushed before and not since: {shown}; {PUSH_AGAIN} from each, or unhold")
    return found


def settle(session: Session, why: str) -> bool:
    """Ends the hold, unless something keeps it.

    Args:
        session: A `write`, while held.
        why: What keeps it, or empty.

    Returns:
        Whether it ends here.
    """
    _put(session, msgspec.structs.replace(_held(session), held=bool(why), why=why))
    return not why


def resume(session: Session, who: str, now_ms: int) -> None:
    """A person's word that nothing more is to be waited for.

    Raises:
        StateError: Nothing is held.
    """
    record = read(session)
    if record is None or not record.held:
        raise StateError("publishing is not held", hint="`headland-server status` says how the server is")
    _put(session, msgspec.structs.replace(record, held=False, why=""))
    session.facts.put("rendered_ms", 0)  # due at once
    session.events.add(now_ms, "publishing-resumed", who=who)


def may_return(session: Session, device: DeviceId, issued_ms: int) -> bool:
    """Whether a certificate of our CA may be one that this catalog forgot: issued after a backup that it came out of.

    Args:
        session: Any.
        device: Whom it names.
        issued_ms: When it was issued.
    """
    record = read(session)
    if record is None or device in record.revoked:
        return False
    # There is no end to it: what was issued after the restore is known here, and the server's clock may be behind.
    return issued_ms >= record.oldest_ms - SLACK_MS


def wanted(session: Session, trusted: Mapping[str, int]) -> tuple[str, ...]:
    """The files that a machine trusts and that are not here.

    Args:
        session: Any.
        trusted: Versions by `REPOSITORY/ROLE`, by the machine's word.
    """
    here = session.repositories.newest()
    found: list[str] = []
    for repository, role, version in _lacking(here, trusted):
        ours = here.get(f"{repository}/{role}", 0)
        if role == "root":
            last = min(version, ours + limits.WANTED_FILES)
            found += [f"{repository}/{number}.root.json" for number in range(ours + 1, last + 1)]
        else:
            found.append(f"{repository}/{role}.json")
    return tuple(found[: limits.WANTED_FILES])


def missing(session: Session) -> list[Missing]:
    """What machines said they trust and is not here, by role. Revoked and doubted machines are not asked."""
    here = session.repositories.newest()
    found: dict[str, Missing] = {}
    for device, trusted in session.devices.claims().items():
        for repository, role, version in _lacking(here, trusted):
            name = f"{repository}/{role}"
            known = found.get(name)
            if known is None or known.version < version:
                file = f"{repository}/{version}.root.json" if role == "root" else f"{name}.json"
                known = Missing(
                    file=file, version=version, here=here.get(name, 0), devices=known.devices if known else ()
                )
            found[name] = msgspec.structs.replace(known, devices=(*known.devices, device))
    return [found[name] for name in sorted(found)]


def _lacking(here: Mapping[str, int], trusted: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """Repository, role and version of what is trusted there and not here. Names are the machine's own: looked at."""
    found: list[tuple[str, str, int]] = []
    for name, version in sorted(trusted.items()):
        repository, _, role = name.partition("/")
        if repository in REPOSITORIES and role not in ONLINE and _is_role(role) and version > here.get(name, 0):
            found.append((repository, role, version))
    return found


def _is_role(role: str) -> bool:
    try:
        return role in ("root", "targets", TECHNICIANS) or bool(parse_product(role))
    except Refused:
        return False


def _workspaces(session: Session) -> dict[str, int]:
    """When each workspace pushed last."""
    text = session.facts.get(WORKSPACES)
    return {} if text is None else decode(text, dict[Token, Millis], limit=limits.MIB)


def _held(session: Session) -> Restored:
    record = read(session)
    assert record is not None, "held by a restore"
    return record


def _put(session: Session, record: Restored) -> None:
    session.facts.put(FACT, encode(record).decode())
