"""The command `headland-device`: what a technician types on the machine, and what its supervisor starts."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Final

import click
from rich.console import Group
from rich.table import Table

from device.hardware import agent_version
from device.layout import Layout
from device.shown import status_tables
from device.state_db import StateDb
from device.state_option import state_option
from device.status import read_status
from device.transfer.patch_book import PatchBook
from protocol.errors import StateError
from signing.child import python_command
from signing.console import emit, headland_errors, json_option

LEVELS: Final = ("debug", "info", "warning", "error")


class _Commands(click.Group):
    """Commands of other files, which are read when they are asked for: most commands need none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As in click."""
        return sorted((*super().list_commands(ctx), "kit"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """As in click."""
        if cmd_name == "kit":
            from device.kit_commands import kit

            return kit
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headland")
def main() -> None:
    """Headland on a machine: signed updates, inference without a network, results that wait for it."""


@main.command()
@state_option
@click.option(
    "--token",
    required=True,
    envvar="HEADLAND_TOKEN",
    show_envvar=True,
    help="The one-time token from the release manager.",
)
@click.option("--server", default="", help="Ask this address instead of the token's (https://host:port).")
@click.option("--frames", type=click.Path(file_okay=False, path_type=Path), help="The folder the camera writes to.")
@json_option
@headland_errors
def enroll(state: Path, token: str, server: str, frames: Path | None, as_json: bool) -> None:
    """Make this state folder the machine that the token names. Safe to repeat."""
    from device.enrol import enrol

    layout = Layout(state.absolute())
    done = asyncio.run(enrol(layout, token, server=server, frames=frames))
    emit(
        as_json,
        {"device": done.device, "product": done.product, "server": done.server, "state": str(layout.state)},
        f"{done.device} is enrolled at {done.server} and follows {done.product}.\n"
        f"Settings: {layout.settings}\nStart it: headland-device run --state {layout.state}",
    )


@main.command()
@state_option
@click.option("--log-level", type=click.Choice(LEVELS), default="info", envvar="HEADLAND_LOG", show_default=True)
@json_option
@headland_errors
def run(state: Path, log_level: str, as_json: bool) -> None:
    """Run the agent until it is stopped: inference, updates, results. With --json one line says when it is up."""
    # A process of its own image: the agent must not carry what only this command needs.
    arguments = [*python_command("device.agent"), "--state", str(state.absolute()), "--log-level", log_level]
    if as_json:
        arguments.append("--json")
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # noqa: S606  (no shell is wanted)


@main.command()
@state_option
@json_option
@headland_errors
def status(state: Path, as_json: bool) -> None:
    """What runs, what waits and why, what is queued, and how the last update ended."""
    logging.disable(logging.CRITICAL)  # a person reads this; what the parts remark belongs to the agent's log
    found = read_status(Layout(state.absolute()))
    emit(as_json, found, Group(*status_tables(found)))


@main.command()
@state_option
@click.option("--new-code", is_flag=True, help="Draw another code: every browser that was paired has to pair again.")
@json_option
@headland_errors
def page(state: Path, new_code: bool, as_json: bool) -> None:
    """Where this machine's page is, and the code that pairs a browser with it."""
    from device.desk.pairing import read_or_draw
    from device.settings import load

    layout = Layout(state.absolute())
    settings = load(layout.settings).page
    if not settings.listen:
        raise StateError("this machine shows no page", hint=f"set [page] listen in {layout.settings}")
    try:
        pair = read_or_draw(layout.page, anew=new_code)
    except OSError as error:
        raise StateError(f"no code can be kept: {error}", hint="is the disk full, or read-only?") from error
    emit(
        as_json,
        {"url": settings.url(), "code": pair.code},
        f"Page: {settings.url()}\nCode: {pair.spelt()}",
    )


@main.command()
@state_option
@click.option("--fix/--dry-run", default=False, help="Mend what can be mended; the default only looks.")
@json_option
@headland_errors
def doctor(state: Path, fix: bool, as_json: bool) -> None:
    """Look for faults of this machine's files and mend them. The agent does the same whenever it starts.

    Reads all files of the committed release, which takes a while. Exit code 0: nothing is wrong, or all was mended;
    7: something is left to do. While the agent runs it only looks.
    """
    from device.doctor import FAULTS_LEFT, diagnose, finding_table

    logging.disable(logging.CRITICAL)
    found = diagnose(Layout(state.absolute()), fix=fix)
    left = [one for one in found.findings if not one.mended]
    emit(as_json, found, finding_table(found) if found.findings else "Nothing is wrong.")
    if left:
        sys.exit(FAULTS_LEFT)


@main.group()
def refusals() -> None:
    """Releases that this machine refused on evidence and will not try again by itself."""


@refusals.command("list")
@state_option
@json_option
@headland_errors
def list_refusals(state: Path, as_json: bool) -> None:
    """What is refused, and why."""
    database = _state_db(state)
    try:
        found = database.refusals()
    finally:
        database.close()
    table = Table("release", "manifest", "reason", "detail")
    for refusal in found:
        table.add_row(refusal.release, refusal.manifest[:12], refusal.reason.value, refusal.detail)
    emit(as_json, {"refusals": found}, table if found else "Nothing is refused.")


@refusals.command()
@state_option
@click.argument("release")
@json_option
@headland_errors
def lift(state: Path, release: str, as_json: bool) -> None:
    """Forget a refusal, so that RELEASE (a version, or its manifest's digest) is tried again when it is offered."""
    database = _state_db(state)
    try:
        lifted = database.lift_refusal(release)
    finally:
        database.close()
    if not lifted:
        raise StateError(f"{release} is not refused here", hint="headland-device refusals list shows what is")
    emit(as_json, {"lifted": lifted}, "\n".join(f"Lifted: {one.release} ({one.manifest[:12]})" for one in lifted))


@main.group()
def patches() -> None:
    """Patches that gave no result on this machine and will not be tried again by its agent."""


@patches.command("list")
@state_option
@json_option
@headland_errors
def list_patches(state: Path, as_json: bool) -> None:
    """What failed, and why."""
    database = _state_db(state)
    try:
        found = PatchBook(database, agent_version()).failed()
    finally:
        database.close()
    table = Table("payload", "result", "from base", "reason")
    for patch in found:
        table.add_row(patch.payload[:12], patch.artifact[:12], patch.base[:12], patch.reason.value)
    emit(as_json, {"patches": found}, table if found else "No patch failed.")


@patches.command("lift")
@state_option
@click.argument("patch")
@json_option
@headland_errors
def lift_patch(state: Path, patch: str, as_json: bool) -> None:
    """Let PATCH (its payload or result, 8 digits or more) be tried again; the next contact tells the server."""
    database = _state_db(state)
    try:
        lifted = PatchBook(database, agent_version()).lift(patch)
    finally:
        database.close()
    if not lifted:
        raise StateError(f"no patch {patch} failed here", hint="headland-device patches list shows what did")
    emit(as_json, {"lifted": lifted}, "\n".join(f"Lifted: {one.payload[:12]}" for one in lifted))


def _state_db(state: Path) -> StateDb:
    path = Layout(state.absolute()).state_db
    if not path.exists():
        raise StateError(f"no agent has run on {state}", hint=f"headland-device run --state {state}")
    return StateDb(path, create=False)
