"""The audit trail: appended, never changed, each line chained to the one before; the oldest lines go after years."""

from typing import Final

from msgspec.structs import asdict, replace
from sqlalchemy import Connection, delete, func, insert, select

from protocol.audit import START, AuditLine, line_hash
from protocol.ids import Digest
from server.storage.facts import Facts
from server.storage.schema import events

DETAIL_CHARACTERS: Final = 4000  # enough for any message of ours; a device's text is cut, not refused
HEAD: Final = "audit_head"  # number and hash of the newest line
BASE: Final = "audit_base"  # number and hash of the newest line that went
NONE: Final = f"0 {START}"


class Events:
    """Lines in the order in which they happened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(
        self,
        at_ms: int,
        kind: str,
        *,
        who: str = "",
        device: str = "",
        what: str = "",
        reason: str = "",
        detail: str = "",
    ) -> None:
        """Adds a line; it is durable with the transaction, and nobody else adds one until that ends."""
        facts = Facts(self._connection)
        number, before = _place(facts.mine(HEAD) or NONE)
        line = AuditLine(
            id=number + 1,
            at_ms=at_ms,
            kind=kind,
            who=_plain(who)[:128],
            device=device,
            what=_plain(what)[:256],
            reason=reason,
            detail=_plain(detail)[:DETAIL_CHARACTERS],
        )
        line = replace(line, hash=line_hash(before, line))
        self._connection.execute(insert(events).values(asdict(line)))
        facts.put(HEAD, f"{line.id} {line.hash}")

    def after(self, last: int, limit: int, device: str | None = None) -> list[AuditLine]:
        """At most `limit` lines with a number above `last`, oldest first."""
        query = select(events).where(events.c.id > last).order_by(events.c.id).limit(limit)
        if device is not None:
            query = query.where(events.c.device == device)
        return [AuditLine(**row._mapping) for row in self._connection.execute(query)]

    def last(self, limit: int, device: str | None = None) -> list[AuditLine]:
        """The newest `limit` lines, oldest first."""
        query = select(events).order_by(events.c.id.desc()).limit(limit)
        if device is not None:
            query = query.where(events.c.device == device)
        return [AuditLine(**row._mapping) for row in self._connection.execute(query)][::-1]

    def head(self) -> tuple[int, Digest]:
        """Number and hash of the newest line; 0 and `START` before the first."""
        return _place(Facts(self._connection).get(HEAD) or NONE)

    def base(self) -> tuple[int, Digest]:
        """Number and hash of the newest line that went; 0 and `START` while none has."""
        return _place(Facts(self._connection).get(BASE) or NONE)

    def forget(self, before_ms: int, limit: int) -> int:
        """Removes the oldest lines up to the first that is not from before then, at most `limit`. Returns how many.

        The newest stays, and so do those after a line of another time, whatever their own: what is left is one chain.
        """
        newest = select(func.max(events.c.id)).scalar_subquery()
        query = select(events.c.id, events.c.at_ms, events.c.hash).where(events.c.id < newest)
        gone = None
        for row in self._connection.execute(query.order_by(events.c.id).limit(limit)):
            if row.at_ms >= before_ms:
                break
            gone = row
        if gone is None:
            return 0
        Facts(self._connection).put(BASE, f"{gone.id} {gone.hash}")
        return self._connection.execute(delete(events).where(events.c.id <= gone.id)).rowcount


def _place(text: str) -> tuple[int, Digest]:
    number, _, hashed = text.partition(" ")
    return int(number), hashed


def _plain(text: str) -> str:
    """PostgreSQL's text holds no NUL; a log that a terminal shows should hold no control character either."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
