"""Alembic's entry: runs on the connection that the catalog hands over, or on a URL given to the alembic command."""

from alembic import context
from sqlalchemy import Connection, create_engine

from server.storage.schema import metadata


def _migrate(connection: Connection) -> None:
    # SQLite changes tables by making them anew, hence the batches.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


_given = context.config.attributes.get("connection")
if _given is not None:
    _migrate(_given)
else:
    with create_engine(context.config.get_main_option("sqlalchemy.url") or "").connect() as _connection:
        _migrate(_connection)
        _connection.commit()
