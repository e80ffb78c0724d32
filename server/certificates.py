"""Keeps the CA and the listeners' certificate good while the server runs: renewed, replaced and ended in time.

Each round takes up what a command changed in `ca/`, and does what is due: the listeners' certificate is renewed at half
its life, a CA that has used 80 % of its own, or that a wrong clock dated into the future, is replaced, an old CA is
ended once no machine depends on it any more. Only then is anything signed by the newest CA, so that no machine shows a
certificate that the listeners do not know.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from server import authorities
from server.authorities import OVERLAP, Authorities
from server.ca import CA_BACKDATED, ensure_server_certificate, issuer_of_pem
from server.clock import NowMs, as_datetime
from server.founding import Layout, write_operator_ca
from server.http.tls import Front, device_context, operator_context
from server.storage.catalog import Catalog, Session
from signing import anchors

ROTATE_AT: Final = 0.8
"""Of a CA's life. At half of it a person is asked to do it; at this point nobody is waited for."""

BACKED_UP: Final = "backed_up_ca"
"""The fact that names the newest CA of the last backup."""

ASK_EVERY: Final = timedelta(hours=1)

log = logging.getLogger("headland.server")


class Certificates:
    """The CAs that hold now, and the doors' TLS.

    Args:
        layout: The state folder.
        catalog: Knows what machines show and trust.
        names: Under which the server is reached.
        now_ms: The clock.
        ca_lifetime: Of a new CA.
    """

    def __init__(
        self, layout: Layout, catalog: Catalog, names: Sequence[str], now_ms: NowMs, ca_lifetime: timedelta
    ) -> None:
        self._layout = layout
        self._catalog = catalog
        self._names = tuple(names)
        self._now_ms = now_ms
        self._ca_lifetime = ca_lifetime
        self._shown = b""
        self._ask_again = datetime.min.replace(tzinfo=UTC)
        authorities.settle(layout.ca)
        self._authorities = self._due(authorities.load(layout.ca), as_datetime(now_ms()))
        self._renew_server(self._authorities)
        self.devices = Front(device_context(layout.tls, self._authorities.all_pem))
        self.operators = Front(operator_context(layout.tls))

    def now(self) -> Authorities:
        """The CAs that hold now. Never blocks."""
        return self._authorities

    def refresh(self) -> bool:
        """Does what is due. Blocks.

        Returns:
            False: there is no more to do now.
        """
        fresh = self._due(authorities.load(self._layout.ca), as_datetime(self._now_ms()))
        # The doors first: whatever is signed from here on, they know who signed it.
        if self._renew_server(fresh) or fresh.record != self._authorities.record:
            self.devices.renew(device_context(self._layout.tls, fresh.all_pem))
            self.operators.renew(operator_context(self._layout.tls))
        self._authorities = fresh
        return False

    def _due(self, held: Authorities, now: datetime) -> Authorities:
        certificate = held.current.certificate
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        made = begins + CA_BACKDATED
        if now < begins or now - made >= ROTATE_AT * (ends - made):
            why = "80 % of its life was over" if now >= begins else "it begins in the future, and tools refuse it"
            held = authorities.rotate(self._layout.ca, now, self._ca_lifetime)
            log.warning("the CA was replaced: %s; back up ca/ now", why)
            note(self._catalog, "ca-rotated", held, self._now_ms(), f"by itself: {why}")
        if any(each.standing == "retiring" for each in held.record.generations) and not self._needed(held, now):
            held = authorities.end(self._layout.ca, now)
            log.info("the old CA has ended: no machine depends on it")
            note(self._catalog, "ca-ended", held, self._now_ms(), "no machine depends on it")
        return held

    def _needed(self, held: Authorities, now: datetime) -> bool:
        """Whether a machine still depends on an old CA. Asked once an hour: it looks at the whole fleet."""
        if now < self._ask_again:
            return True
        self._ask_again = now + ASK_EVERY
        retired_ms = max(each.since_ms for each in held.record.generations if each.standing == "retiring")
        if now < as_datetime(retired_ms) + OVERLAP:
            return True
        with self._catalog.read() as session:
            return bool(dependent(session, held))

    def _renew_server(self, held: Authorities) -> bool:
        """Whether the listeners' certificate is another than before."""
        now = as_datetime(self._now_ms())
        ensure_server_certificate(held.current, self._layout.tls, self._names, now, held.links_pem)
        write_operator_ca(self._layout, held.trusted_pem)
        shown = (self._layout.tls / "server.pem").read_bytes()
        changed = shown != self._shown
        self._shown = shown
        return changed


def dependent(session: Session, held: Authorities) -> list[str]:
    """Machines that have not followed to the newest CA: they hold an older one's certificate, or do not trust it.

    Revoked ones count no more.
    """
    return [
        each.id
        for each in session.devices.certificates()
        if held.marks[0] not in each.trusts or held.standing(issuer_of_pem(each.certificate_pem)) != "current"
    ]


def told_ca(session: Session, held: Authorities) -> dict[str, Any]:
    """The CA for the status.

    Its generations; the machines that an old one waits for; machines that trust a CA which is not known here, for this
    server is older than the rotation that made it; and whether a backup was made since the newest one.
    """
    known = set(anchors.marks(held.certificates))
    retiring = any(each.standing == "retiring" for each in held.record.generations)
    return {
        "generations": [
            {"ca": mark, "standing": each.standing, "since_ms": each.since_ms}
            for mark, each in zip(anchors.marks(held.certificates), held.record.generations, strict=True)
        ],
        "waits_for": dependent(session, held) if retiring else [],
        "lacks": [each.id for each in session.devices.certificates() if not set(each.trusts) <= known],
        "backed_up": session.facts.get(BACKED_UP) == held.marks[0],
    }


def note(catalog: Catalog, kind: str, held: Authorities, now_ms: int, detail: str) -> None:
    """A line on the audit trail."""
    with catalog.write() as session:
        what = held.marks[0]
        session.events.add(now_ms, kind, what=what, detail=f"{detail}; back up ca/ now: a copy without it is of no use")
