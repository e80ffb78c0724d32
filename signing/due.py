"""What expires when: every role's lifetime, with the marks at 50 and 80 % at which people should act."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from protocol.lifetimes import MARKS, STATES, State, passed
from protocol.wire import Message
from signing import lives
from signing.lives import Life
from signing.metadata import lifetime, parse
from signing.repository import RepositoryKind, RepositorySet


class Due(Message, omit_defaults=False):
    """One role. `used` is the share of its lifetime that is over, from 0 on; times in ISO 8601, UTC."""

    repository: str
    role: str
    version: int
    expires: str
    half: str  # when 50 % is over
    most: str  # when 80 % is over
    used: float
    state: State
    online: bool


def due(
    sets: Mapping[RepositoryKind, RepositorySet],
    online: Iterable[tuple[RepositoryKind, Timestamp | Snapshot]],
    now: datetime,
) -> tuple[Due, ...]:
    """Every role that matters, the most used first.

    Args:
        sets: The offline roles.
        online: What the server serves, as far as it could be asked.
        now: Aware.
    """
    found = []
    for kind, published in sets.items():
        found.append(_due(kind, "root", parse(published.root(), Root, "root").signed, now))
        for role, data in {"targets": published.targets, **published.delegated}.items():
            signed = parse(data, Targets, role).signed
            if lives.matters(kind, role, signed):
                found.append(_due(kind, role, signed, now))
    found += [_due(kind, signed.type, signed, now) for kind, signed in online]
    return tuple(sorted(found, key=lambda each: -each.used))


def role_life(each: Due) -> Life:
    """The same as one of all lives."""
    kind: RepositoryKind = "image" if each.repository == "image" else "director"
    return lives.role_life(kind, each.role, each.version, datetime.fromisoformat(each.expires), online=each.online)


def _due(kind: RepositoryKind, role: str, signed: Root | Targets | Timestamp | Snapshot, now: datetime) -> Due:
    whole = lifetime(role)
    begin = signed.expires - whole
    used = max(0.0, (now - begin) / whole)
    state = STATES[passed(used)]
    return Due(
        repository=kind,
        role=role,
        version=signed.version,
        expires=signed.expires.isoformat(),
        half=(begin + whole * MARKS[0]).isoformat(),
        most=(begin + whole * MARKS[1]).isoformat(),
        used=round(used, 4),
        state=state,
        online=isinstance(signed, Timestamp | Snapshot),
    )
