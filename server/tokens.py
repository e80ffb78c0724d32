"""Tokens: one lets one named machine enrol once, another is a person's tool. Secrets are shown once and kept hashed.

256 random bits need no slow hash: there is nothing to guess.
"""

import base64
import hashlib
import secrets

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.messages import ENROLMENT_MARK, TokenContent
from protocol.wire import decode, encode


def new_secret() -> str:
    """256 random bits, safe in URLs and headers."""
    return secrets.token_urlsafe(32)


def secret_sha256(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def render_token(content: TokenContent) -> str:
    """What a technician types or scans."""
    return ENROLMENT_MARK + base64.urlsafe_b64encode(encode(content)).decode().rstrip("=")


def read_token(text: str) -> TokenContent:
    """Reads an enrolment token; whether it is good is the catalog's word.

    Raises:
        Refused: `TOKEN`: it is not spelt as one.
    """
    if not text.startswith(ENROLMENT_MARK) or len(text) > limits.ENROL_BYTES:
        raise Refused(Reason.TOKEN, "not an enrolment token")
    body = text[len(ENROLMENT_MARK) :]
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError as error:
        raise Refused(Reason.TOKEN, "not an enrolment token") from error
    return decode(raw, TokenContent, limit=limits.ENROL_BYTES, reason=Reason.TOKEN)


class Failures:
    """Counts failures at the door by address, so that guessing is slow. In memory: a restart forgives.

    Args:
        allowed: Failures in the window before an address is turned away.
        window_s: How long a failure counts.
    """

    def __init__(self, allowed: int = 10, window_s: float = 60.0) -> None:
        self._allowed = allowed
        self._window_s = window_s
        self._failures: dict[str, list[float]] = {}

    def blocked(self, address: str, now_s: float) -> bool:
        """Whether an address has used up its failures."""
        recent = [at for at in self._failures.get(address, []) if now_s - at < self._window_s]
        return len(recent) >= self._allowed

    def add(self, address: str, now_s: float) -> None:
        """Counts one failure."""
        if len(self._failures) >= 10_000:  # many addresses: forget what no longer counts, so that memory is bounded
            self._failures = {
                key: recent
                for key, times in self._failures.items()
                if (recent := [at for at in times if now_s - at < self._window_s])
            }
        times = self._failures.setdefault(address, [])
        times.append(now_s)
        del times[: -self._allowed]
