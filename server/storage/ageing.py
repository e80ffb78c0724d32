"""Records that go when they are old."""

from sqlalchemy import Connection, Table, delete, select, tuple_


def remove_oldest(connection: Connection, table: Table, before_ms: int, limit: int) -> int:
    """Removes those that came first, and before then, at most `limit`. Returns how many."""
    key = list(table.primary_key)
    came = table.c.received_ms
    oldest = select(*key).where(came < before_ms).order_by(came).limit(limit)
    return connection.execute(delete(table).where(tuple_(*key).in_(oldest))).rowcount
