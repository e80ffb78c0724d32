"""Single values of the catalog's own life."""

from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from server.storage.schema import facts

# Built once: at each contact several are asked for.
_GET: Final = select(facts.c.value).where(facts.c.name == bindparam("called"))
_GET_LOCKED: Final = _GET.with_for_update()
_PUT: Final = update(facts).where(facts.c.name == bindparam("called")).values(value=bindparam("value"))


class Facts:
    """Names to text. The names in use: `generation`, `sync_secret`, `starts`, `online_version`, `seen_version`,
    `caught_up_ms`, `rendered_ms`, `versions`, `named_keys`, `resign_trouble`, `alarms`, `fleet_changes`,
    `fleet_surveyed`, `restored`, `workspaces`, `alive_ms`, `woken_ms`, `backup_ms`, `backed_up_ca`,
    `known_ms`, `clock_off_ms`, `clock_told_ms`, `audit_head`, `audit_base`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: str) -> str | None:
        """The value, or None when it was never set."""
        return self._connection.execute(_GET, {"called": name}).scalar_one_or_none()

    def number(self, name: str) -> int:
        """The value as a number; 0 when it was never set. In a `write` it stays ours until the transaction ends."""
        return int(self.mine(name) or 0)

    def mine(self, name: str) -> str | None:
        """As `get`; in a `write` it stays ours until the transaction ends."""
        return self._connection.execute(_GET_LOCKED, {"called": name}).scalar_one_or_none()

    def put(self, name: str, value: str | int) -> None:
        """Sets the value."""
        if not self._connection.execute(_PUT, {"called": name, "value": str(value)}).rowcount:
            self._connection.execute(insert(facts).values(name=name, value=str(value)))
