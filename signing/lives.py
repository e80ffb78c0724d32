"""Everything that ends one day, and when people should act: roles, keys, certificates, the CA, the operators' token.

Pure. The server collects the lives that it sees and raises an alarm once at each mark; the managers' tool lists its own
and the server's, in the order in which to act.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from tuf.api.metadata import Metadata, Root, Targets

from protocol import lifetimes
from protocol.ids import Millis
from protocol.objects import TECHNICIANS, DirectorTerms
from protocol.wire import Message
from signing.metadata import lifetime, parse, terms
from signing.repository import RepositoryKind, RepositorySet, technicians_of

KEY_LIFETIMES: Final[Mapping[str, timedelta]] = {
    # Nothing refuses a key for its age: these are for alarms. An online key lies unencrypted on a server that faces the
    # network; a manager's is encrypted or in a token.
    "online-key": timedelta(days=2 * 365),
    "manager-key": timedelta(days=4 * 365),
}

Kind = Literal["role", "online-key", "manager-key", "authority", "server-certificate", "device-certificate", "token"]


class Life(Message, omit_defaults=False):
    """One thing that ends.

    Args:
        kind: What it is.
        what: Names the thing, whichever its life: `image/root`, `director.clock`, `tractor-1`.
        this: Names this very life: a version, a key id, a serial number. Renewed, the thing lives another one.
        begins_ms: When it began.
        expires_ms: When it ends.
        act: The command that renews it, or what to look at where it should have renewed itself.
        by_itself: The server or the machine renews it; an alarm means that this did not happen.
    """

    kind: Kind
    what: str
    this: str
    begins_ms: Millis
    expires_ms: Millis
    act: str
    by_itself: bool = False


class Standing(Message, omit_defaults=False):
    """A life as it is told at one moment. Times in ISO 8601, UTC; `used` is the share that is over, from 0 on."""

    kind: Kind
    what: str
    this: str
    expires: str
    half: str
    most: str
    used: float
    state: lifetimes.State
    act: str
    by_itself: bool


def used(life: Life, now: datetime) -> float:
    """The share of a life that is over; 0 before it began."""
    return max(0.0, (_ms(now) - life.begins_ms) / max(1, life.expires_ms - life.begins_ms))


def passed(life: Life, now: datetime) -> float:
    """The highest mark that a life has passed; 0 when none."""
    return lifetimes.passed(used(life, now))


def standing(life: Life, now: datetime) -> Standing:
    """How a life stands."""
    length = life.expires_ms - life.begins_ms
    return Standing(
        kind=life.kind,
        what=life.what,
        this=life.this,
        expires=_iso(life.expires_ms),
        half=_iso(life.begins_ms + int(length * lifetimes.MARKS[0])),
        most=_iso(life.begins_ms + int(length * lifetimes.MARKS[1])),
        used=round(used(life, now), 4),
        state=lifetimes.STATES[passed(life, now)],
        act=life.act,
        by_itself=life.by_itself,
    )


def in_order(lives: Iterable[Standing]) -> tuple[Standing, ...]:
    """In the order in which to act: what is worst first; then what machines would refuse, before keys that only grow
    old; then what ends first."""
    weight = {state: -mark for mark, state in lifetimes.STATES.items()}
    return tuple(
        sorted(lives, key=lambda each: (weight[each.state], each.kind.endswith("-key"), each.expires, each.what))
    )


def role_life(kind: RepositoryKind, role: str, version: int, expires: datetime, *, online: bool) -> Life:
    """The life of a role's metadata. It began when it was signed, which is a lifetime before it ends."""
    what = f"{kind}/{role}"
    act = "the server signs it daily: its log and `resign-failed` say why not" if online else "headland keys resign"
    return Life(
        kind="role",
        what=what,
        this=str(version),
        begins_ms=_ms(expires - lifetime(role)),
        expires_ms=_ms(expires),
        act=act,
        by_itself=online,
    )


def matters(kind: RepositoryKind, role: str, signed: Targets) -> bool:
    """Whether anything ends with a role's metadata: not with a list of technicians that names nobody."""
    return (kind, role) != ("director", TECHNICIANS) or bool(technicians_of(signed).technicians)


def key_life(kind: Literal["online-key", "manager-key"], what: str, keyid: str, since_ms: int, act: str) -> Life:
    """The life of a key, from when metadata first named it."""
    ends_ms = since_ms + KEY_LIFETIMES[kind] // timedelta(milliseconds=1)
    return Life(kind=kind, what=what, this=keyid, begins_ms=since_ms, expires_ms=ends_ms, act=act)


def manager_keys(sets: Mapping[RepositoryKind, RepositorySet], tops: Iterable[Metadata[Targets]]) -> dict[str, int]:
    """The managers' keys that the newest roots and products' delegations name, with the time (ms) since when.

    A key's time is that of the oldest file of an unbroken row that names it: of roots, or of the image's targets.

    Args:
        sets: What is in force.
        tops: The image repository's `targets.json`, every version that is kept, oldest first.
    """
    rows = [
        [_named_by_root(data, f"{version}.root.json") for version, data in sorted(published.roots.items())]
        for published in sets.values()
    ]
    rows.append([_named_by_targets(top.signed) for top in tops])
    found: dict[str, int] = {}
    for row in rows:
        since: dict[str, int] = {}
        for signed_ms, named in row:
            since = {keyid: since.get(keyid, signed_ms) for keyid in named}
        for keyid, at_ms in since.items():
            found[keyid] = min(at_ms, found.get(keyid, at_ms))
    return found


def sealing_key(tops: Iterable[Metadata[Targets]]) -> tuple[str, int] | None:
    """The key to which machines seal for sticks, and since when (ms) it is named; None: none is.

    Args:
        tops: The director's `targets.json`, every version that is kept, oldest first.
    """
    found = None
    for top in tops:
        key = terms(top.signed, DirectorTerms, "targets.json").sealing_key
        if key is None:
            found = None
        elif found is None or found[0] != key:
            found = key, _ms(top.signed.expires - lifetime("targets"))
    return found


def _named_by_root(data: bytes, what: str) -> tuple[int, set[str]]:
    """When a root was signed, and the managers' keys that it names."""
    root = parse(data, Root, what).signed
    named = {keyid for role in ("root", "targets") for keyid in root.roles[role].keyids}
    return _ms(root.expires - lifetime("root")), named


def _named_by_targets(top: Targets) -> tuple[int, set[str]]:
    """The same of targets, which name the keys of products' roles."""
    roles = (top.delegations.roles or {}) if top.delegations is not None else {}
    return _ms(top.expires - lifetime("targets")), {keyid for role in roles.values() for keyid in role.keyids}


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).isoformat()
