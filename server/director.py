"""Signs what the director says to one machine: assignment, time, receipts. One key a kind."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.metadata import Targets

from protocol.objects import ROLES, AssignmentBody, ClockBody, ObjectBody, ReceiptsBody, ReportedBody
from server import restored
from server.clock import as_datetime
from server.keyring import Keyring, read_named
from server.storage.catalog import Session
from signing.metadata import parse
from signing.objects import sign_object

CLOCK_LIFETIME: Final = timedelta(days=1)  # the nonce is what makes it fresh; this only bounds what lies about
RECEIPTS_LIFETIME: Final = timedelta(days=365)  # may come home on a stick after a season


class Director:
    """Holds the keys of the roles `assignments`, `clock` and `receipts`.

    Args:
        keyring: All online keys.
        assignment_lifetime: How long a machine may take an assignment for current.
    """

    def __init__(self, keyring: Keyring, assignment_lifetime: timedelta) -> None:
        self._keyring = keyring
        self._assignment_lifetime = assignment_lifetime

    @property
    def assignment_lifetime_ms(self) -> int:
        """How long an assignment is current."""
        return self._assignment_lifetime // timedelta(milliseconds=1)

    def pen(self, session: Session, trusted: Mapping[str, int]) -> "Pen":
        """Signs under the keys that the director's metadata names as this transaction sees it.

        Out of a backup the keys may be newer than the catalog: then under those that the machine's own director names,
        or the newest where that is not here, so that time and receipts go on while publishing is held.

        Args:
            session: Any.
            trusted: Versions that the machine trusts, by `REPOSITORY/ROLE`; its word only.

        Raises:
            StateError: It names others than this server has.
        """
        named = read_named(session)
        since_ms = max(named.since_ms.values(), default=0) if named is not None else 0
        if named is not None and restored.is_held(session):
            keyids = _trusted_keys(session, trusted.get("director/targets", 0))
            signers = {role: self._keyring.newest(f"director.{role}", keyids.get(role, ())) for role in ROLES.values()}
        else:
            signers = {
                role: self._keyring.signer(
                    f"director.{role}", None if named is None else [named.keyids.get(f"director.{role}", "")]
                )
                for role in ROLES.values()
            }
        return Pen(signers, self._assignment_lifetime, since_ms=since_ms)


def _trusted_keys(session: Session, version: int) -> Mapping[str, Sequence[str]]:
    """The key ids by role in this version of the director's targets, or in the newest; none when it is not here."""
    kept = session.repositories.all_signed("director", "targets")
    data = kept.get(version or max(kept, default=0))
    top = parse(data, Targets, "targets.json").signed if data is not None else None
    roles = top.delegations.roles if top is not None and top.delegations is not None else None
    return {name: role.keyids for name, role in (roles or {}).items()}


class Pen:
    """One key a kind. Made by `Director.pen`.

    Args:
        signers: By role.
        assignment_lifetime: As the director's.
        since_ms: The keys are these since then: what was signed before may be under another.
    """

    def __init__(self, signers: Mapping[str, Signer], assignment_lifetime: timedelta, *, since_ms: int) -> None:
        self.since_ms = since_ms
        self._signers = signers
        self._assignment_lifetime = assignment_lifetime

    def assignment(self, body: AssignmentBody, version: int, now_ms: int) -> str:
        """A signed assignment."""
        return self._sign(body, "assignments", version, now_ms, self._assignment_lifetime)

    def time(self, device: str, nonce: str, version: int, now_ms: int) -> str:
        """A signed statement of the time, good for the request with this nonce."""
        body = ClockBody(device=device, nonce=nonce, time_ms=now_ms)
        return self._sign(body, "clock", version, now_ms, CLOCK_LIFETIME)

    def reported(self, body: ReportedBody, version: int, now_ms: int) -> str:
        """What a machine that lost its record last reported, good for the request with its nonce."""
        return self._sign(body, "assignments", version, now_ms, CLOCK_LIFETIME)

    def receipts(self, body: ReceiptsBody, version: int, now_ms: int) -> str:
        """Signed receipts; only for rows whose transaction was committed."""
        return self._sign(body, "receipts", version, now_ms, RECEIPTS_LIFETIME)

    def _sign(self, body: ObjectBody, role: str, version: int, now_ms: int, lifetime: timedelta) -> str:
        return sign_object(body, self._signers[role], version, as_datetime(now_ms) + lifetime)
