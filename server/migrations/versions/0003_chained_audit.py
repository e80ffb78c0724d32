"""The audit trail becomes a chain that says who did what: lines that are here are chained as they stand."""

import sqlalchemy as sa
from alembic import op

from protocol.audit import START, AuditLine, line_hash

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

EVENTS = sa.table(
    "events",
    *(sa.column(name) for name in ("id", "at_ms", "kind", "who", "device", "what", "reason", "detail", "hash")),
)
FACTS = sa.table("facts", sa.column("name"), sa.column("value"))


def upgrade() -> None:
    op.add_column("events", sa.Column("who", sa.String(length=128), nullable=False, server_default=""))
    op.add_column("events", sa.Column("hash", sa.String(length=64), nullable=False, server_default=""))
    connection = op.get_bind()
    # Numbers of before may have gaps where a transaction failed: the chain needs none.
    rows = connection.execute(sa.select(EVENTS).order_by(EVENTS.c.id)).all()
    number, before = (rows[0].id - 1, START) if rows else (0, START)
    if rows:
        connection.execute(sa.insert(FACTS).values(name="audit_base", value=f"{number} {before}"))
    for row in rows:
        number += 1
        line = AuditLine(**{**row._mapping, "id": number})
        before = line_hash(before, line)
        connection.execute(sa.update(EVENTS).where(EVENTS.c.id == row.id).values(id=number, hash=before))
    if rows:
        connection.execute(sa.insert(FACTS).values(name="audit_head", value=f"{number} {before}"))
