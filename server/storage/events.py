"""The audit trail: appended, never changed; the oldest lines go after years."""

from sqlalchemy import Connection, delete, func, insert, select

from server.storage.records import Event
from server.storage.schema import events

DETAIL_CHARACTERS = 4000  # enough for any message of ours; a device's text is cut, not refused


class Events:
    """Lines in the order in which they happened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(
        self, at_ms: int, kind: str, *, device: str = "", what: str = "", reason: str = "", detail: str = ""
    ) -> None:
        """Adds a line; it is durable with the transaction."""
        self._connection.execute(
            insert(events).values(
                at_ms=at_ms,
                kind=kind,
                device=device,
                what=_plain(what)[:256],
                reason=reason,
                detail=_plain(detail)[:DETAIL_CHARACTERS],
            )
        )

    def after(self, last: int, limit: int, device: str | None = None) -> list[Event]:
        """At most `limit` lines with a number above `last`, oldest first."""
        query = select(events).where(events.c.id > last).order_by(events.c.id).limit(limit)
        if device is not None:
            query = query.where(events.c.device == device)
        return [Event(**row._mapping) for row in self._connection.execute(query)]

    def forget(self, before_ms: int, limit: int) -> int:
        """Removes those of the `limit` oldest lines that are from before then. Returns how many.

        The newest stays: its number must not be given a second time, for readers go on from numbers.
        """
        newest = select(func.max(events.c.id)).scalar_subquery()
        oldest = select(events.c.id).where(events.c.id < newest).order_by(events.c.id).limit(limit)
        gone = delete(events).where(events.c.id.in_(oldest), events.c.at_ms < before_ms)
        return self._connection.execute(gone).rowcount


def _plain(text: str) -> str:
    """PostgreSQL's text holds no NUL; a log that a terminal shows should hold no control character either."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
