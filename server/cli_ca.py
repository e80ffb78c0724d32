"""`headland-server ca`: replace the CA, see who follows, end the old one."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from protocol.errors import StateError
from server.cli_state import STATE, opened
from server.clock import as_datetime, system_now_ms
from signing.console import emit, headland_errors, json_option

SHOWN = 20


@click.group()
def ca() -> None:
    """The CA that says which key is which machine."""


@ca.command()
@STATE
@json_option
@headland_errors
def show(state: Path, *, as_json: bool) -> None:
    """List the CA's generations, and the machines that an old one waits for."""
    from server import authorities
    from server.certificates import told_ca

    with opened(state) as at, at.catalog.read() as session:
        found = told_ca(session, authorities.load(at.layout.ca))
    emit(as_json, found, _table(found))


@ca.command()
@STATE
@json_option
@headland_errors
def rotate(state: Path, *, as_json: bool) -> None:
    """Make a new CA that the old one vouches for, and destroy the old key.

    Machines follow by themselves, those that sleep when they wake. A running server takes it up in seconds.
    """
    from server import authorities
    from server.certificates import note, told_ca

    now_ms = system_now_ms()
    with opened(state) as at:
        lifetime = timedelta(days=at.settings.lifetimes.ca_days)
        held = authorities.rotate(at.layout.ca, as_datetime(now_ms), lifetime)
        note(at.catalog, "ca-rotated", held, now_ms, "by command")
        with at.catalog.read() as session:
            found = told_ca(session, held)
    text = f"the CA is {held.marks[0]} from now on; back up ca/ now. {_waiting(found)}"
    emit(as_json, found, text)


@ca.command()
@STATE
@click.option("--force", is_flag=True, help="Also while machines depend on it: they may only renew from then on.")
@json_option
@headland_errors
def end(state: Path, *, force: bool, as_json: bool) -> None:
    """End the old CA before the server does so by itself.

    Certificates that it signed may only be renewed then, and machines forget it at their next contact. No machine is
    locked out by it, also with --force, which is for a CA whose key was stolen.
    """
    from server import authorities
    from server.certificates import note, told_ca

    now_ms = system_now_ms()
    with opened(state) as at:
        held = authorities.load(at.layout.ca)
        with at.catalog.read() as session:
            found = told_ca(session, held)
        retiring = [each["since_ms"] for each in found["generations"] if each["standing"] == "retiring"]
        if not retiring:
            raise StateError("no old CA is left to end", hint="`headland-server ca rotate` makes a new one")
        if not force:
            if found["waits_for"]:
                raise StateError(_waiting(found), hint="wait for them, revoke those that are gone, or --force")
            ready = as_datetime(max(retiring)) + authorities.OVERLAP
            if as_datetime(now_ms) < ready:
                raise StateError(
                    f"until {ready:%Y-%m-%d} the old CA stays, for a server that is restored from a backup",
                    hint="--force ends it now",
                )
        held = authorities.end(at.layout.ca, as_datetime(now_ms))
        note(at.catalog, "ca-ended", held, now_ms, "by command" + (", forced" if force else ""))
        with at.catalog.read() as session:
            after = told_ca(session, held)
    emit(as_json, {**after, "waited_for": found["waits_for"]}, _table(after))


def _waiting(found: dict[str, Any]) -> str:
    names = found["waits_for"]
    if not names:
        return "No machine depends on the old one."
    listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"{len(names)} machines depend on the old one until their next contact: {listed}"


def _table(found: dict[str, Any]) -> Table:
    table = Table("CA", "standing", "since", title="The CA's generations", caption=_waiting(found))
    for each in found["generations"]:
        table.add_row(each["ca"], each["standing"], f"{as_datetime(each['since_ms']):%Y-%m-%d}")
    return table
