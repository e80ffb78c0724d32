"""`headland-server believe-clock`: a person's word that a clock which jumped is right."""

from pathlib import Path

import click

from server.cli_state import STATE, opened
from server.clock import as_datetime, system_now_ms
from signing.console import emit, headland_errors, json_option


@click.command("believe-clock")
@STATE
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@headland_errors
def believe_clock(state: Path, *, yes: bool, as_json: bool) -> None:
    """Let the server follow this computer's clock, although it jumped.

    Look twice: machines keep the time that they are told, and cannot be told an earlier one.
    """
    from server import steady_clock

    with opened(state) as place:
        now_ms = system_now_ms()
        if not yes:
            click.confirm(f"Is it {as_datetime(now_ms):%Y-%m-%d %H:%M} UTC?", abort=True, err=True)
        with place.catalog.write() as session:
            before_ms = steady_clock.known(session)
            steady_clock.tell(session, now_ms)
    told = {"now_ms": now_ms, "before_ms": before_ms or None}
    emit(as_json, told, "a server that runs follows the clock within a minute")
