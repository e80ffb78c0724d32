"""`headland device`: machines as the server knows them; tokens to enrol them, and revocation."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click
from rich.console import Group
from rich.table import Table

from protocol.ids import parse_name
from signing.commands.app import App, pass_app
from signing.commands.release import pick_product
from signing.console import emit, headland_errors, json_option, progress_console

Json = dict[str, Any]


@click.group()
def device() -> None:
    """Machines: enrol, look at, group, revoke."""


@device.command("list")
@json_option
@pass_app
@headland_errors
def list_devices(app: App, *, as_json: bool) -> None:
    """All machines."""
    with app.server() as server:
        answer: Any = server.get("/devices", Any)
    devices = answer.get("devices", []) if isinstance(answer, dict) else answer
    table = Table(title="Machines")
    for column in ("device", "product", "release", "state", "groups", "last contact", "mind"):
        table.add_column(column)
    for each in devices:
        report = each.get("report") or {}
        groups = ", ".join(each.get("groups") or ())
        cells = (each.get("device"), each.get("product"), report.get("release"), report.get("state"), groups)
        notes = (_when(each.get("last_contact_ms")), _mind(each))
        table.add_row(*(str(cell or "") for cell in (*cells, *notes)))
    emit(as_json, answer if isinstance(answer, dict) else {"devices": answer}, table)


@device.command()
@click.argument("name")
@json_option
@pass_app
@headland_errors
def show(app: App, *, name: str, as_json: bool) -> None:
    """One machine: what it runs, what it reported, what it sent."""
    with app.server() as server:
        one = server.get(f"/devices/{quote(name, safe='')}", Json)
    emit(as_json, one, Group(*_one(name, one)))


@device.command()
@click.argument("name")
@click.option("--product", help="Needed when there are several.")
@click.option("--group", "groups", multiple=True, help="Groups that the machine begins in.")
@json_option
@pass_app
@headland_errors
def token(app: App, *, name: str, product: str | None, groups: tuple[str, ...], as_json: bool) -> None:
    """Make a one-time token that enrols this machine. Shown once; good for a day."""
    body = {
        "device": parse_name(name, "device"),
        "product": pick_product(app.workspace(), product),
        "groups": [parse_name(group, "group") for group in groups],
    }
    with app.server() as server:
        answer = server.post("/tokens", body, Json)
    emit(as_json, {**answer, "device": name}, str(answer.get("token", "")))


@device.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_app
@headland_errors
def revoke(app: App, *, name: str, yes: bool, as_json: bool) -> None:
    """Refuse this machine from now on; it keeps inferring with what it has."""
    if not yes:
        click.confirm(f"Revoke {name}?", abort=True, err=True)
    with app.server() as server:
        answer = server.post(f"/devices/{quote(name, safe='')}/revoke", {}, Json)
    emit(as_json, answer, f"{name} is revoked")


@device.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_app
@headland_errors
def readmit(app: App, *, name: str, yes: bool, as_json: bool) -> None:
    """Vouch for a machine that was set apart as a copy, or that a restored server took back by its certificate."""
    with app.server() as server:
        one = server.get(f"/devices/{quote(name, safe='')}", Json)
        why = one.get("set_apart") or one.get("returned") or ""
        if why and not yes:
            progress_console().print(f"{name}: {why}", markup=False)
            click.confirm(f"Is {name} yours, and one machine?", abort=True, err=True)
        answer = server.post(f"/devices/{quote(name, safe='')}/readmit", {}, Json)
    emit(as_json, answer, f"{name} is assigned releases again")


@device.command()
@click.argument("name")
@click.argument("groups", nargs=-1)
@json_option
@pass_app
@headland_errors
def groups(app: App, *, name: str, groups: tuple[str, ...], as_json: bool) -> None:
    """Replace the groups of a machine."""
    body = {"groups": [parse_name(group, "group") for group in groups]}
    with app.server() as server:
        answer = server.post(f"/devices/{quote(name, safe='')}/groups", body, Json)
    emit(as_json, answer, f"{name}: {', '.join(groups) or 'in no group'}")


NEWEST = 10
"""So many statuses and alerts are shown to a person; `--json` has all that the server tells."""


def _one(name: str, one: Json) -> Iterator[Table]:
    """A machine as a person asks after it: itself, its rollouts, what it said."""
    table = Table(title=name, show_header=False)
    for key, value in one.items():
        match key, value:
            case (("statuses" | "alerts" | "rollouts"), _):
                continue
            case "report", dict():
                rows = [("release", value.get("release") or "none yet"), ("manifest", value.get("manifest"))]
                rows += [("on trial", value.get("trial")), ("state", value.get("state"))]
                rows += [("over the air", _words(value.get("transfer")))]
            case _, int() if key.endswith("_ms") and not isinstance(value, bool):
                rows = [(_spoken(key.removesuffix("_ms")), _when(value))]
            case _:
                rows = [(_spoken(key), _words(value))]
        for label, text in rows:
            if text:
                table.add_row(label, str(text))
    yield table
    if one.get("rollouts"):
        places = Table("rollout", "phase", "outcome", "reason")
        for rollout, place in one["rollouts"].items():
            cells = (rollout, place["phase"] + 1, place["outcome"] or "", place["reason"] or "")
            places.add_row(*map(str, cells))
        yield places
    for key, columns in (
        ("statuses", ("state", "outcome", "reason", "rollout", "detail")),
        ("alerts", ("kind", "reason", "detail")),
    ):
        if one.get(key):
            told = Table("at", *columns, title=f"Newest {key}", title_justify="left")
            for each in one[key][:NEWEST]:
                told.add_row(_when(each.get("at_ms")), *(str(each.get(column) or "") for column in columns))
            yield told


def _mind(one: Json) -> str:
    """What a person should decide, or has decided."""
    if one.get("revoked"):
        return "revoked"
    if one.get("set_apart"):
        return "set apart: two of it?"
    return "returned after a restore: readmit it?" if one.get("returned") else ""


def _spoken(key: str) -> str:
    return key.replace("_", " ")


def _words(value: Any) -> str:
    match value:
        case True | False:
            return "yes" if value else "no"
        case dict():
            inner = ((_spoken(str(key)), _words(each), isinstance(each, dict)) for key, each in value.items())
            return "; ".join(f"{key}: {text}" if nested else f"{key} {text}" for key, text, nested in inner)
        case list():
            return ", ".join(_words(each) for each in value)
        case None:
            return ""
    return str(value)


def _when(at_ms: int | None) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at_ms else "never"
