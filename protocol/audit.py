"""The audit trail as a chain: each line's hash covers the line before it, so none changes or goes missing unseen.

A chain alone does not keep its keeper from writing all of it anew. Who remembers the hash of one line sees that too:
managers' workspaces do, at each look (`headland audit`).
"""

import json
from collections.abc import Iterable
from typing import Final

from protocol.errors import Reason, Refused
from protocol.ids import Digest, digest
from protocol.wire import Message

START: Final[Digest] = "0" * 64
"""What stands for the hash of a line before the first."""


class AuditLine(Message):
    """What happened once.

    Args:
        id: One above that of the line before.
        at_ms: When, by the server's clock.
        kind: Of what, such as `rollout-halted`.
        who: The person who did it; empty where the server or a machine did.
        device: Which machine it concerns, or none.
        what: Which rollout, release, file, ....
        reason: A `Reason`, or none.
        detail: In words.
        hash: By `line_hash`.
    """

    id: int
    at_ms: int
    kind: str
    who: str = ""
    device: str = ""
    what: str = ""
    reason: str = ""
    detail: str = ""
    hash: str = ""


def line_hash(before: Digest, line: AuditLine) -> Digest:
    """SHA-256 over the hash of the line before, in hexadecimal, and the line's fields in their order as a JSON array.

    The array is ASCII, without spaces: other alphabets stand as `\\uXXXX`.

    Args:
        before: Of the line before; `START` for the first of all.
        line: Its own `hash` is not looked at.
    """
    fields = [line.id, line.at_ms, line.kind, line.who, line.device, line.what, line.reason, line.detail]
    return digest(before.encode() + json.dumps(fields, separators=(",", ":")).encode())


def check_chain(lines: Iterable[AuditLine], before: Digest, number: int | None = None) -> tuple[int, Digest]:
    """Holds each line against the one before.

    Args:
        lines: In their order.
        before: Hash of the line before the first.
        number: Of the line before the first; None: whatever it was.

    Returns:
        Number and hash of the last line, or what was given when there is none.

    Raises:
        Refused: `HASH`: a line was changed, left out, added or moved.
    """
    for line in lines:
        if number is not None and line.id != number + 1:
            raise Refused(Reason.HASH, f"line {line.id} of the audit trail follows line {number}: lines are missing")
        if line_hash(before, line) != line.hash:
            raise Refused(Reason.HASH, f"line {line.id} of the audit trail is not what was written, or follows another")
        number, before = line.id, line.hash
    return number or 0, before
