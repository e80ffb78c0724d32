"""A damaged `state.db` is made anew when the agent starts: from its seal, or else from the `active` link.

The new database is built beside the damaged one and takes its place by one rename, once the damaged one and its logs
were set aside; a cut at any point leaves a start that does the same again. What is lost is what was not sealed:
statuses that were not told yet, totals, what an update under way had come to, and the sync token, which the server
renews by the certificate.

Without a seal nothing is known of floors and refusals. What `active` names, its manifest verified by its hash, serves
and counts as committed; nothing is installed before `device.recovery` has heard what the machine had.

Where not even a new database can be made (a full disk, one that takes no writes), what runs is told from seal or link
in memory, nothing is installed and no server is spoken to, until the disk is mended.
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from device import clock
from device.damage import LOGS, StateDamagedError, set_aside
from device.layout import Layout
from device.recovery import FLOORS_DUE
from device.seal import Sealed, Seals
from device.state_db import RECOVERING, SCHEMA, StateDb
from device.update.memory import floors_of
from device.update.states import Held
from protocol import limits
from protocol.errors import HeadlandError, Refused, StateError
from protocol.ids import Millis, Token, digest
from protocol.messages import Alert
from protocol.release import parse_manifest
from protocol.wire import Message, decode, encode
from signing.durable import DISK, TEMPORARY_PREFIX, Disk

LOG: Final = logging.getLogger("headland.agent")
REBUILT: Final = "state/rebuilt"
KIND: Final = "state-damaged"
NEEDED_BYTES: Final = 1 << 20  # far more than a new database and its log
_RECORD_BYTES: Final = 16_384


class Rebuilt(Message):
    """How the database came to be, where it was made anew.

    Args:
        at_ms: When, as far as the time was known.
        why: What was wrong with the one before.
        source: What it was made from.
        kept: The name of the damaged file, or empty when there was none.
    """

    at_ms: Millis
    why: str
    source: Literal["seal", "link", "nothing"]
    kept: str = ""

    def line(self) -> str:
        """For people."""
        made = {
            "seal": "made anew from its seal",
            "link": "made anew from what `active` names: nothing is installed until the server told what ran here",
            "nothing": "made anew, and no release was found: nothing is installed until the server told what ran here",
        }
        return f"state.db was damaged ({self.why}) and {made[self.source]}" + (
            f"; the damaged file is kept as {self.kept}" if self.kept else ""
        )


@dataclass(frozen=True)
class Opened:
    """The state database, and why the machine must keep to itself; that is empty when it need not."""

    state: StateDb
    isolated: str = ""


def open_state(
    layout: Layout,
    *,
    draw_token: Callable[[], Token],
    disk: Disk = DISK,
    on_damage: Callable[[str], None] | None = None,
) -> Opened:
    """The whole state database, rebuilt where need be; or one in memory, and why. Blocking.

    Only for the one agent that holds the state folder.
    """
    try:
        try:
            return Opened(_open_whole(layout.state_db, disk, on_damage))
        except StateDamagedError as damaged:
            LOG.critical("%s", damaged.message)
            rebuild(layout, damaged.why, draw_token=draw_token, disk=disk)
            return Opened(_open_whole(layout.state_db, disk, on_damage))
    except (StateError, OSError) as error:
        why = f"state.db cannot be used, so nothing is installed and no server is spoken to: {error}"
        LOG.critical("%s", why)
        return Opened(_in_memory(layout), why)


def open_for_reading(layout: Layout) -> StateDb:
    """For one who only looks: the real database, or in memory what the next start will make of it.

    Raises:
        StateError: There is neither database nor seal.
    """
    try:
        return _open_whole(layout.state_db, DISK, None, seal=False)
    except StateError:
        if not layout.state_db.exists() and Seals(layout.state_db).newest() is None:
            raise
        return _in_memory(layout)


def why_unusable(layout: Layout) -> str:
    """What keeps the agent from using its state database on the disk; empty when nothing does. Blocking."""
    try:
        with tempfile.TemporaryFile(dir=layout.state) as file:
            file.write(bytes(NEEDED_BYTES))
        _open_whole(layout.state_db, DISK, None, seal=False).close()
    except StateDamagedError:
        return ""  # it is rebuilt: there is room for it
    except (StateError, OSError) as error:
        return str(error)
    return ""


def rebuild(layout: Layout, why: str, *, draw_token: Callable[[], Token], disk: Disk = DISK) -> Rebuilt:
    """Makes the state database anew; durable on return. A cut leaves the damaged one, or none, for the next start.

    Args:
        layout: Whose agent lock is held.
        why: What is wrong with the present one.
        draw_token: 128 random bits in hexadecimal.
        disk: Through which files are moved.

    Raises:
        OSError: The disk takes no new file.
        StateError: Likewise.
    """
    fresh = layout.state_db.with_name(f"{TEMPORARY_PREFIX}{layout.state_db.name}")
    for suffix in ("", *LOGS):
        disk.unlink(fresh.with_name(fresh.name + suffix))
    sealed, source = known(layout)
    kept = set_aside(layout.state_db, disk)
    state = StateDb(fresh, sealed=False)
    try:
        at_ms = clock.Clock(state).now().ms
        rebuilt = Rebuilt(at_ms=at_ms, why=why[:1000], source=source, kept=kept.name if kept is not None else "")
        facts = {REBUILT: encode(rebuilt), FLOORS_DUE: b"1"}
        if source != "seal":
            facts[RECOVERING] = b"1"
        alert = Alert(id=draw_token(), kind=KIND, at_ms=at_ms, detail=rebuilt.line()[:2000])
        state.restore(sealed, facts, alert)
    finally:
        state.close()
    disk.sync_file(fresh)
    disk.rename(fresh, layout.state_db)
    with contextlib.closing(StateDb(layout.state_db, create=False, disk=disk)) as state:
        state.seal(both=True)
    LOG.warning("%s", rebuilt.line())
    return rebuilt


def known(layout: Layout) -> tuple[Sealed, Literal["seal", "link", "nothing"]]:
    """What is known of the machine without its database, and from where."""
    sealed = Seals(layout.state_db).newest()
    if sealed is not None:
        return sealed, "seal"
    held = _linked(layout.active)
    empty = Sealed(format=1, schema=SCHEMA, serial=0)
    if held is None:
        return empty, "nothing"
    return Sealed(format=1, schema=SCHEMA, serial=0, committed=held, floors=floors_of(held)), "link"


def read_rebuilt(state: StateDb) -> Rebuilt | None:
    """How this database came to be; None when it is the one that the machine was enrolled with, or when nobody knows
    any more: another version of the agent wrote it."""
    found = state.get(REBUILT)
    try:
        return None if found is None else decode(found, Rebuilt, limit=_RECORD_BYTES)
    except Refused:
        return None


def _open_whole(path: Path, disk: Disk, on_damage: Callable[[str], None] | None, *, seal: bool = True) -> StateDb:
    with contextlib.ExitStack() as stack:
        # What is found here is mended here: only what shows itself later is told to `on_damage`.
        state = StateDb(path, create=False, disk=disk)
        stack.callback(state.close)
        state.check()
        if seal:
            state.seal(both=True)  # a cut may have come between the two generations
        state.on_damage = on_damage
        stack.pop_all()
    return state


def _in_memory(layout: Layout) -> StateDb:
    sealed, source = known(layout)
    state = StateDb(None)
    at_ms = clock.now_here().wall_ms
    alert = Alert(id="0" * 32, kind=KIND, at_ms=at_ms, detail="the state database cannot be used")
    state.restore(sealed, {} if source == "seal" else {RECOVERING: b"1"}, alert)
    return state


def _linked(link: Path) -> Held | None:
    """The release that `active` names, if its manifest has the hash that names it."""
    try:
        name = link.readlink().name
        with (link / "manifest.json").open("rb") as file:
            data = file.read(limits.MANIFEST_BYTES + 1)
        if digest(data) != name:
            LOG.critical("the manifest of the active release %s is damaged", name[:12])
            return None
        manifest = parse_manifest(data)
    except (OSError, HeadlandError) as error:
        LOG.critical("no release is active: %s", error)
        return None
    return Held(digest=name, version=manifest.version, release_counter=manifest.release_counter, era=manifest.era)
