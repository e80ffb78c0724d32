"""Signs what the director says to one machine: assignment, time, receipts. One key a kind."""

from datetime import timedelta
from typing import Final

from protocol.objects import AssignmentBody, ClockBody, ObjectBody, ReceiptsBody, ReportedBody
from server.clock import as_datetime
from server.keyring import Keyring
from signing.objects import sign_object

CLOCK_LIFETIME: Final = timedelta(days=1)  # the nonce is what makes it fresh; this only bounds what lies about
RECEIPTS_LIFETIME: Final = timedelta(days=365)  # may come home on a stick after a season


class Director:
    """Holds the signers of the roles `assignments`, `clock` and `receipts`.

    Args:
        keyring: All online keys.
        assignment_lifetime: How long a machine may take an assignment for current.
    """

    def __init__(self, keyring: Keyring, assignment_lifetime: timedelta) -> None:
        self._keys = keyring["director"]
        self._assignment_lifetime = assignment_lifetime

    @property
    def assignment_lifetime_ms(self) -> int:
        """How long an assignment is current."""
        return self._assignment_lifetime // timedelta(milliseconds=1)

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
        return sign_object(body, self._keys[role], version, as_datetime(now_ms) + lifetime)
