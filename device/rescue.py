"""When `state.db` is damaged: inference goes on with the release that `active` names, and nothing else does.

Floors and refusals are not known then, so nothing may be installed and no server is spoken to. The damaged file stays
where it is, for salvage; what runs is told from the link alone, in a database that lasts as long as the agent.
"""

import logging
from pathlib import Path
from typing import Final

from device.layout import Layout
from device.state_db import StateDb
from device.update.states import Held, UpdateRecord
from protocol import limits
from protocol.errors import HeadlandError, StateError
from protocol.ids import digest
from protocol.release import parse_manifest

LOG: Final = logging.getLogger("headland.agent")


def open_state(layout: Layout) -> tuple[StateDb, str]:
    """The state database, and what is wrong with it; blocking.

    Returns:
        The real one and an empty text; or one made from the `active` link, and why.
    """
    try:
        return _open_whole(layout.state_db), ""
    except StateError as error:
        why = f"state.db is damaged, so nothing is installed and no server is spoken to: {error.message}"
        LOG.critical("%s", why)
        return _from_link(layout), why


def open_for_reading(layout: Layout) -> StateDb:
    """For `status`: the real database, or the one that an agent with a damaged one works with.

    Raises:
        StateError: There is neither.
    """
    try:
        return _open_whole(layout.state_db)
    except StateError:
        if not layout.rescue_db.exists():
            raise
        return StateDb(layout.rescue_db)


def _open_whole(path: Path) -> StateDb:
    state = StateDb(path)
    try:
        state.record()
        state.refusals()
        state.floors()
        state.counters()
    except HeadlandError as error:
        state.close()
        raise StateError(error.message, hint=error.hint) from error
    return state


def _from_link(layout: Layout) -> StateDb:
    for suffix in ("", "-wal", "-shm"):
        layout.rescue_db.with_name(layout.rescue_db.name + suffix).unlink(missing_ok=True)
    state = StateDb(layout.rescue_db)
    try:
        with (layout.state / "active" / "manifest.json").open("rb") as file:
            data = file.read(limits.MANIFEST_BYTES + 1)
        manifest = parse_manifest(data)
    except (OSError, HeadlandError) as error:
        LOG.critical("no release is active either: %s", error)
        return state
    held = Held(
        digest=digest(data), version=manifest.version, release_counter=manifest.release_counter, era=manifest.era
    )
    state.write_record(UpdateRecord(active=held.digest, committed=held))
    return state
