"""A release that this machine refused on evidence, as it is kept in `state.db` and in its seal."""

from protocol.errors import Reason
from protocol.ids import Digest, Millis, Version
from protocol.wire import Message


class Refusal(Message):
    """A release that this machine will not install again until a person lifts it."""

    manifest: Digest
    release: Version
    reason: Reason
    at_ms: Millis
    detail: str = ""
