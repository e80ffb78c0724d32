"""`headland-device doctor`: the checks of every start, by hand and more thorough."""

import asyncio
import contextlib
import secrets
from typing import Final

from rich.table import Table

from device.agent import held
from device.clock import Clock
from device.containers.engine import EngineAwayError, EngineView
from device.containers.opening import open_engine
from device.containers.owner import find_owner
from device.identity import read_enrolment
from device.layout import Layout
from device.repair.examine import examine, tell
from device.repair.fault import Finding, Place
from device.repair.opened import opened_state
from device.settings import DeviceSettings, load
from device.state_db import StateDb
from protocol.errors import SettingsError, StateError
from protocol.wire import Message
from signing import locks

LOOK_S: Final = 30.0
FAULTS_LEFT: Final = 7
"""The exit code when something is left to do. Beside those of the error classes (`protocol.errors`)."""


class Diagnosis(Message, omit_defaults=False):
    """What `doctor --json` prints.

    Args:
        state: The state folder.
        running: An agent works on it: then nothing is mended.
        fixed: Whether mending was asked for.
        findings: In the order in which they were found; empty when nothing is wrong.
    """

    state: str
    running: bool
    fixed: bool
    findings: tuple[Finding, ...]


def diagnose(layout: Layout, *, fix: bool) -> Diagnosis:
    """Examines a machine. Blocking.

    Args:
        layout: Its state folder.
        fix: Mends what can be mended.

    Raises:
        StateError: There is no such folder; or `fix` while an agent runs, which mends at its own start.
    """
    if not layout.state.is_dir():
        raise StateError(f"{layout.state} is no state folder", hint="--state names the folder of the machine")
    settings = _settings(layout)
    place = Place(
        layout,
        lambda: secrets.token_hex(16),
        thorough=True,
        keep_free_bytes=settings.store.keep_free_bytes,
        engine=lambda: _look_at_engine(layout, settings),
    )
    if not fix:
        running = locks.is_held(layout.lock)
        findings = examine(place, mend=False)
        if running:  # these come and go while it works
            findings = tuple(one for one in findings if not one.quiet)
        return Diagnosis(state=str(layout.state), running=running, fixed=False, findings=findings)
    with held(layout):
        findings = examine(place, mend=True)
        with opened_state(place) as state:
            if state is not None:
                tell(state, findings, place.draw_token, Clock(state).now().ms)
    return Diagnosis(state=str(layout.state), running=False, fixed=True, findings=findings)


def finding_table(found: Diagnosis) -> Table:
    """The findings for a person."""
    table = Table("check", "what is wrong", "mended", "what was done, what is left to do")
    for one in found.findings:
        rest = "; ".join(part for part in (one.done, "" if one.mended else one.advice) if part)
        if not one.mended and not one.advice and not found.fixed:
            rest = "an agent that starts mends it" + ("" if found.running else "; so does --fix")
        table.add_row(one.check, one.what, "yes" if one.mended else "no", rest)
    return table


def _look_at_engine(layout: Layout, settings: DeviceSettings) -> EngineView:
    async def look() -> EngineView:
        engine = open_engine(owner)
        try:
            async with asyncio.timeout(LOOK_S):
                return await engine.view()
        except TimeoutError as error:
            raise EngineAwayError(f"it says nothing for {LOOK_S:.0f} s") from error
        finally:
            await engine.close()

    enrolment = read_enrolment(layout.identity)
    with contextlib.closing(StateDb(layout.state_db, create=False)) as state:
        owner = find_owner(layout.identity, state, enrolment.device, named=settings.containers.socket)
        return asyncio.run(look())


def _settings(layout: Layout) -> DeviceSettings:
    try:
        return load(layout.settings)
    except (SettingsError, StateError):  # the check of the settings says so
        return DeviceSettings()
