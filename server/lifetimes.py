"""Which lives the server sees, and the alarm that it raises once at 50 %, once at 80 % and once at the end of each.

An alarm is an event of the audit trail (`lifetime`) and stands in the status until the thing was renewed. What was
raised is kept in the catalog, so that neither a restart nor a day more raises it again.
"""

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from tuf.api.metadata import Metadata, Targets

from protocol import limits
from protocol.lifetimes import STATES
from protocol.wire import Message, decode, encode
from server.authorities import Authorities
from server.ca import CA_BACKDATED, key_id
from server.keyring import read_named
from server.publish import in_force, role_states
from server.storage.catalog import Catalog, Session
from server.storage.records import REPOSITORIES, RepositoryKind
from signing import lives
from signing.lives import Life, Standing
from signing.metadata import parse

FACT: Final = "alarms"
PATIENCE_MS: Final = 86_400_000
"""What renews itself has a day for it before somebody is told."""

ASLEEP_MS: Final = 60 * 86_400_000
"""A machine that is switched off for some weeks renews when it calls: it has a sixth of the life, and at most this."""

SHORT_MS: Final = 30 * 86_400_000  # what lives shorter renews itself well before half of it
ONLINE: Final = ("timestamp", "snapshot")


class Raised(Message):
    """The alarm that was raised last for a thing: for which of its lives, at which mark."""

    this: str
    mark: float


def collect(session: Session, held: Authorities, tls: Path) -> list[Life]:
    """Every life that the server sees, machines' certificates among them. Blocks."""
    found = _roles(session) + _keys(session) + _tokens(session)
    current = held.current.certificate
    act = "headland-server ca rotate (by itself at 80 %)"
    found.append(_certificate_life("authority", "ca", current, act, this=key_id(current), backdated=CA_BACKDATED))
    with contextlib.suppress(FileNotFoundError):  # out of a backup, and not started yet
        server = x509.load_pem_x509_certificate((tls / "server.pem").read_bytes())
        act = "it renews itself: the server's log says why not"
        found.append(_certificate_life("server-certificate", "server", server, act, by_itself=True))
    for each in session.devices.certificates():
        certificate = x509.load_pem_x509_certificate(each.certificate_pem.encode())
        act = "it renews at its next contact: where is it?"
        found.append(_certificate_life("device-certificate", each.id, certificate, act, by_itself=True))
    return found


def raise_alarms(catalog: Catalog, held: Authorities, tls: Path, now_ms: int) -> list[str]:
    """Adds an event for each life that has passed a mark since the last time. Blocks.

    Returns:
        The names of what was raised, for the log.
    """
    with catalog.read() as session:
        found = collect(session, held, tls)
        known = _read(session)
    raised: dict[str, Raised] = {}
    news: list[tuple[Life, float]] = []
    for life in found:
        name = f"{life.kind} {life.what}"
        mark = lives.passed(life, _moment(now_ms - _patience_ms(life)))
        before = known.get(name)
        told = before.mark if before is not None and before.this == life.this else 0.0
        if mark > told:
            news.append((life, mark))
        if mark:  # less than was told: a clock that had run ahead was set right, and the mark is yet to come
            raised[name] = Raised(this=life.this, mark=mark)
    if raised != known:
        with catalog.write() as session:
            session.facts.put(FACT, encode(raised).decode())
            for life, mark in news:
                _add_event(session, life, mark, now_ms)
    return [f"{life.kind} {life.what}" for life, _ in news]


def told(found: Iterable[Life], now_ms: int) -> dict[str, Any]:
    """The lives for the status: one by one, but machines' certificates counted by how they stand."""
    now = _moment(now_ms)
    counts = dict.fromkeys(STATES.values(), 0)
    listed: list[Standing] = []
    for life in found:
        each = lives.standing(life, now)
        if life.kind == "device-certificate":
            counts[each.state] += 1
        else:
            listed.append(each)
    return {"lives": lives.in_order(listed), "device_certificates": counts}


def _roles(session: Session) -> list[Life]:
    idle = _idle(session)
    return [
        lives.role_life(kind, role, state["version"], datetime.fromisoformat(state["expires"]), online=role in ONLINE)
        for kind in REPOSITORIES
        for role, state in role_states(session, kind).items()
        if (kind, role) not in idle
    ]


def _idle(session: Session) -> set[tuple[RepositoryKind, str]]:
    """Roles whose end nobody needs to hear of."""
    published = in_force(session, "director")
    if published is None:
        return set()
    return {
        ("director", role)
        for role, data in published.delegated.items()
        if not lives.matters("director", role, parse(data, Targets, f"{role}.json").signed)
    }


def _keys(session: Session) -> list[Life]:
    named = read_named(session)
    found = []
    for name, keyid in named.keyids.items() if named is not None else ():
        act = f"headland-server keys rotate {name}"
        assert named is not None
        found.append(lives.key_life("online-key", name, keyid, named.since_ms[name], act))
    sealing = lives.sealing_key(_tops(session, "director"))
    if sealing is not None:
        act = "headland-server keys rotate sealing"
        found.append(lives.key_life("online-key", "sealing", *sealing, act))
    sets = {kind: published for kind in REPOSITORIES if (published := in_force(session, kind)) is not None}
    for keyid, since_ms in lives.manager_keys(sets, _tops(session, "image")).items():
        act = "headland keys rotate --manager NAME"
        found.append(lives.key_life("manager-key", keyid[:12], keyid, since_ms, act))
    return found


def _tops(session: Session, kind: RepositoryKind) -> list[Metadata[Targets]]:
    kept = session.repositories.all_signed(kind, "targets")
    return [parse(data, Targets, f"{version}.targets.json") for version, data in kept.items()]


def _tokens(session: Session) -> list[Life]:
    return [
        Life(
            kind="token",
            what=token.name,
            this=str(token.created_ms),
            begins_ms=token.created_ms,
            expires_ms=token.expires_ms,
            act="headland-server init makes operator.json anew; managers take it: headland keys server operator.json",
        )
        for token in session.tokens.operators()
    ]


def _certificate_life(
    kind: lives.Kind,
    what: str,
    certificate: x509.Certificate,
    act: str,
    *,
    this: str = "",
    by_itself: bool = False,
    backdated: timedelta = timedelta(0),
) -> Life:
    return Life(
        kind=kind,
        what=what,
        this=this or f"{certificate.serial_number:x}",
        begins_ms=int((certificate.not_valid_before_utc + backdated).timestamp() * 1000),
        expires_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
        act=act,
        by_itself=by_itself,
    )


def _patience_ms(life: Life) -> int:
    length_ms = life.expires_ms - life.begins_ms
    if life.kind == "device-certificate":
        return min(length_ms // 6, ASLEEP_MS)
    return PATIENCE_MS if life.by_itself and length_ms > SHORT_MS else 0


def _add_event(session: Session, life: Life, mark: float, now_ms: int) -> None:
    until = f"{_moment(life.expires_ms):%Y-%m-%d}"
    over = "it has ended" if mark >= 1 else f"{mark:.0%} of its life is over"
    session.events.add(
        now_ms,
        "lifetime",
        device=life.what if life.kind == "device-certificate" else "",
        what=f"{life.kind} {life.what}",
        reason="expired" if mark >= 1 else "",
        detail=f"{over} ({until}): {life.act}",
    )


def _read(session: Session) -> dict[str, Raised]:
    text = session.facts.get(FACT)
    return {} if text is None else decode(text, dict[str, Raised], limit=64 * limits.MIB)


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
