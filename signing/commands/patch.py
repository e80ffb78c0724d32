"""`headland patch`: patches in trouble as the server knows them, and a person's word that one may be tried again."""

from typing import Any
from urllib.parse import quote

import click
from rich.table import Table

from signing.commands.app import App, pass_app
from signing.console import emit, headland_errors, json_option

Json = dict[str, Any]
SHOWN = 12
"""Digits of an id or digest for a person; as many name a patch to the server."""


@click.group()
def patch() -> None:
    """Patches that failed on machines or were withdrawn."""


@patch.command("list")
@json_option
@pass_app
@headland_errors
def list_patches(app: App, *, as_json: bool) -> None:
    """Patches in trouble: where they failed, and why one is not offered."""
    with app.server() as server:
        answer = server.get("/patches", Json)
    table = Table(title="Patches in trouble")
    for column in ("patch", "result", "from base", "state", "why", "failed on"):
        table.add_column(column)
    for each in answer["patches"]:
        digests = (each[key][:SHOWN] for key in ("patch", "result", "base"))
        failed = ", ".join(f"{failure['device']} ({failure['reason']})" for failure in each["failures"])
        table.add_row(*digests, each["state"], each["why"], failed)
    emit(as_json, answer, table if answer["patches"] else "No patch is in trouble.")


@patch.command()
@click.argument("patch")
@json_option
@pass_app
@headland_errors
def lift(app: App, *, patch: str, as_json: bool) -> None:
    """Let PATCH (an id from the list, or its first 8 digits) be tried again.

    It is offered once more to the machines that it failed on; one that was withdrawn or given up is made anew.
    """
    with app.server() as server:
        answer = server.post(f"/patches/{quote(patch, safe='')}/lift", {}, Json)
    emit(as_json, answer, f"Lifted: {answer['patch'][:SHOWN]} is {answer['state']}")
