"""`headland-server restore`: a state folder out of a backup, and what its first start must know."""

from pathlib import Path

from protocol import limits
from protocol.ids import DeviceId, Millis
from protocol.wire import Message, decode
from server import restored
from server.founding import Layout
from server.storage.catalog import Catalog
from signing import durable


class Marker(Message):
    """`restored.json`: left for the first start, which takes the steps in the catalog and removes it.

    Args:
        id: Drawn at the restore, so that a start that was cut takes the steps once.
        backup_ms: When the catalog was copied.
        how: In words.
        revoke: Machines that a person revoked again.
    """

    id: str
    backup_ms: Millis
    how: str
    revoke: tuple[DeviceId, ...] = ()


def take_marker(layout: Layout, catalog: Catalog, now_ms: int) -> bool:
    """At the first start after a restore: takes the steps of `restored.begin`. Returns whether there was one."""
    path: Path = layout.restored
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    marker = decode(content, Marker, limit=limits.MIB)
    with catalog.write() as session:
        restored.begin(
            session, now_ms, restore=marker.id, backup_ms=marker.backup_ms, how=marker.how, revoke=marker.revoke
        )
    durable.unlink(path)  # after the commit: a cut between the two begins the same restore again, which changes nothing
    return True
