"""`headland-server`: makes a server, runs it, and says how it is."""

import asyncio
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from server.backup_commands import backup, restore, unhold
from server.cli_ca import ca
from server.cli_clock import believe_clock
from server.cli_keys import keys, online_secret
from server.cli_state import STATE, opened
from server.clock import system_now_ms
from server.kits.command import kit
from server.notify import Notifier
from server.settings import ServerSettings
from signing.console import emit, headland_errors, json_option

PORT = click.IntRange(0, 65535)
_DEFAULTS = ServerSettings()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headland")
def main() -> None:
    """Stage releases, and bring results home from machines that come and go."""


@main.command()
@STATE
@click.option("--device-host", default=_DEFAULTS.devices.host, show_default=True, help="Address for machines.")
@click.option(
    "--device-port", type=PORT, default=_DEFAULTS.devices.port, show_default=True, help="Port for machines; 0: any."
)
@click.option("--name", "names", multiple=True, help="DNS name or IP address for machines; repeatable.")
@click.option("--operator-host", default=_DEFAULTS.operators.host, show_default=True, help="Address for people.")
@click.option(
    "--operator-port", type=PORT, default=_DEFAULTS.operators.port, show_default=True, help="Port for people; 0: any."
)
@json_option
@headland_errors
def init(
    state: Path,
    *,
    device_host: str,
    device_port: int,
    names: tuple[str, ...],
    operator_host: str,
    operator_port: int,
    as_json: bool,
) -> None:
    """Make a server's folder: CA, online keys, operator token. What is there stays."""
    from server.founding import FirstAnswers, found

    answers = FirstAnswers(device_host, device_port, names or ("localhost",), operator_host, operator_port)
    layout = found(state, answers, system_now_ms, online_secret)
    made = {
        "state": str(state),
        "settings": str(state / "server.toml"),
        "operator": str(layout.operator),
        "online_keys": str(layout.online_keys),
        "ca": str(layout.ca / "ca.pem"),
    }
    table = Table("what", "where", show_header=False, box=None)
    for what, where in (
        ("settings", made["settings"]),
        ("for the managers' tool (secret)", made["operator"]),
        ("for the managers to delegate to", made["online_keys"]),
        ("next", f"headland-server run --state {state}"),
    ):
        table.add_row(what, where)
    emit(as_json, made, table)


@main.command()
@STATE
@json_option
@headland_errors
def run(state: Path, *, as_json: bool) -> None:
    """Serve machines and people until told to stop."""
    from server.app import run as run_server

    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format='{"at":"%(asctime)s","level":"%(levelname)s","what":"%(message)s"}'
        if as_json
        else "%(asctime)s %(levelname)s %(message)s",
    )
    # These name connections that robots open and drop all day.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    # What a handler of ours raises is logged by `server.http.answers`; here come only tracebacks of garbled requests.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    # It remarks on each manager of a threshold who did not sign: that is what thresholds are for.
    logging.getLogger("securesystemslib").setLevel(logging.WARNING)
    logging.getLogger("tuf").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    asyncio.run(run_server(state, system_now_ms, online_secret, Notifier(os.environ)))


@main.command()
@STATE
@json_option
@headland_errors
def status(state: Path, *, as_json: bool) -> None:
    """Say how the server is: read from its catalog, whether or not it runs."""
    from server import authorities
    from server.operations import read_status

    with opened(state) as at:
        layout = at.layout
        found = read_status(at.catalog, authorities.load(layout.ca), layout.tls, system_now_ms())
    try:
        found["listening"] = json.loads(layout.run.read_bytes())
    except FileNotFoundError:
        found["listening"] = None
    emit(as_json, found, _status_table(found))


def _status_table(found: dict[str, Any]) -> Table:
    table = Table("what", "value", show_header=False, box=None)
    listening = found["listening"]
    table.add_row("machines at", listening["device_url"] if listening else "not running")
    table.add_row("people at", listening["operator_url"] if listening else "not running")
    for repository, roles in found["repositories"].items():
        said = ", ".join(f"{role} {state['version']} (until {state['expires'][:10]})" for role, state in roles.items())
        table.add_row(f"{repository} repository", said or "not published yet")
    devices = found["devices"]
    table.add_row(
        "machines",
        f"{devices['total']}, {devices['revoked']} revoked, {devices['set_apart']} set apart, "
        f"{devices['returned']} returned after a restore",
    )
    off_days = found["clock"]["off_ms"] / 86_400_000
    if off_days:
        way = "ahead" if off_days > 0 else "back"
        told = f"{abs(off_days):.0f} days {way}, and is not followed: set it, or `headland-server believe-clock`"
        table.add_row(Text("the clock jumped", style="bold red"), told)
    said = found["restored"]
    if said is not None:
        table.add_row("restored", f"{_when(said['at_ms'])}: {said['how']}; {said['called']} machines called since")
    if said is not None and said["held"]:
        why = said["why"] or "`headland release push --again` was not run since"
        table.add_row(Text("publishing is held", style="bold red"), why)
    if found["cannot_sign"]:
        table.add_row(Text("nothing can be signed", style="bold red"), found["cannot_sign"])
    for each in found["missing"]:
        machines = f"{len(each['devices'])} machines, such as {each['devices'][0]}"
        table.add_row(Text("missing here", style="bold red"), f"{each['file']}: on {machines}; here is {each['here']}")
    table.add_row("last backup", _when(found["backup_ms"]) if found["backup_ms"] else "none")
    table.add_row("rollouts", ", ".join(f"{count} {state}" for state, count in found["rollouts"].items()))
    table.add_row("blobs", f"{found['blobs']['count']}, {found['blobs']['bytes']} bytes")
    table.add_row("payloads to make", str(found["payloads_waiting"]))
    for life in found["lives"]:
        if life.state != "fresh":
            table.add_row(f"{life.state}: {life.kind} {life.what}", f"until {life.expires[:10]}: {life.act}")
    old = {state: count for state, count in found["device_certificates"].items() if count and state != "fresh"}
    if old:
        table.add_row("machines' certificates", ", ".join(f"{count} {state}" for state, count in old.items()))
    if found["ca"]["waits_for"]:
        table.add_row("the old CA waits for", f"{len(found['ca']['waits_for'])} machines: headland-server ca show")
    if found["ca"]["lacks"]:
        machines = f"{len(found['ca']['lacks'])} machines, such as {found['ca']['lacks'][0]}"
        text = f"{machines}, trust a newer one: put its ca/ back; without it, who enrolled since it cannot come"
        table.add_row(Text("an older CA", style="bold red"), text)
    if not found["ca"]["backed_up"]:
        table.add_row(Text("not backed up", style="bold red"), "the CA: headland-server backup FOLDER")
    return table


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


for _command in (ca, keys, kit, backup, restore, unhold, believe_clock):
    main.add_command(_command)

if __name__ == "__main__":
    main()
