"""`headland rollout`: puts a release on a group in phases; needs only the server, no manager's signature."""

from typing import Any
from urllib.parse import quote

import click
from rich.table import Table

from protocol.errors import StateError
from protocol.ids import parse_name
from protocol.objects import Conditions
from signing.commands.activation import activation_options, parse_moment, parse_window
from signing.commands.app import App, pass_app
from signing.commands.budget import parse_budget, show_budget
from signing.commands.release import pick_product
from signing.console import emit, headland_errors, json_option
from signing.metadata import plain

Json = dict[str, Any]


@click.group()
def rollout() -> None:
    """Rollouts: which machines get which release, and how carefully."""


@rollout.command()
@click.argument("name")
@click.option("--release", "version", required=True, help="A listed version.")
@click.option("--group", required=True, help="Of machines, as their tokens or `device groups` say.")
@click.option("--product", help="Needed when there are several.")
@click.option(
    "--phase",
    "phases",
    multiple=True,
    metavar="SPEC",
    help="In order: count=1, percent=25 or devices=a+b; then success=100,error=0 (percent). One phase for all unless "
    "you say.",
)
@activation_options
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="SPEC",
    help="Bytes over the air that each machine may spend: release=40M, or LINK=5M for a day over a kind of link, such "
    "as cellular; none for no limit. The server's default unless you say.",
)
@click.option("--signal-clear", "signals", multiple=True, help="A machine signal that must be off, such as driving.")
@json_option
@pass_app
@headland_errors
def create(
    app: App,
    *,
    name: str,
    version: str,
    group: str,
    product: str | None,
    phases: tuple[str, ...],
    not_before: str | None,
    activate_before: str | None,
    window: str | None,
    budgets: tuple[str, ...],
    signals: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put a release on a group of machines, phase by phase."""
    conditions = Conditions(
        not_before_ms=parse_moment(not_before),
        activate_before_ms=parse_moment(activate_before),
        window_utc=parse_window(window),
        signals_clear=signals,
    )
    body: Json = {
        "name": parse_name(name, "rollout"),
        "product": pick_product(app.workspace(), product),
        "release": version,
        "group": parse_name(group, "group"),
        "phases": [parse_phase(spec) for spec in phases or ("percent=100",)],
        "conditions": plain(conditions),
    }
    budget = parse_budget(budgets)
    if budget is not None:
        body["budget"] = budget
    with app.server() as server:
        answer = server.post("/rollouts", body, Json)
    for warning in answer.get("warnings") or ():
        click.echo(f"warning: {warning}", err=True)
    emit(as_json, answer, f"{name}: {version} goes to {group} in {len(body['phases'])} phases")


@rollout.command()
@click.argument("name", required=False)
@json_option
@pass_app
@headland_errors
def status(app: App, *, name: str | None, as_json: bool) -> None:
    """How far a rollout is; without a name, all of them."""
    with app.server() as server:
        if name is None:
            answer: Any = server.get("/rollouts", Any)
            emit(as_json, answer if isinstance(answer, dict) else {"rollouts": answer}, _list_table(answer))
            return
        one = server.get(f"/rollouts/{quote(name, safe='')}", Json)
    emit(as_json, one, _one_table(one))


@rollout.command()
@click.argument("name")
@json_option
@pass_app
@headland_errors
def pause(app: App, *, name: str, as_json: bool) -> None:
    """Assign the release to no further machine until it is resumed."""
    _act(app, name, "pause", as_json)


@rollout.command()
@click.argument("name")
@json_option
@pass_app
@headland_errors
def resume(app: App, *, name: str, as_json: bool) -> None:
    """Go on with a rollout that was paused, or halted."""
    _act(app, name, "resume", as_json)


@rollout.command()
@click.argument("name")
@json_option
@pass_app
@headland_errors
def halt(app: App, *, name: str, as_json: bool) -> None:
    """Stop a rollout: it is assigned to nobody any more, until somebody resumes it."""
    _act(app, name, "halt", as_json)


def parse_phase(spec: str) -> dict[str, Any]:
    """Reads `count=1,success=100,error=0`.

    Raises:
        StateError: With the form that is understood.
    """
    fields: dict[str, Any] = {}
    try:
        for part in spec.replace(" ", ",").split(","):
            key, _, value = part.partition("=")
            match key:
                case "count" | "percent":
                    fields[key] = int(value)
                case "devices":
                    fields[key] = [parse_name(device, "device") for device in value.split("+")]
                case "success" | "error":
                    fields[f"{key}_percent"] = int(value)
                case _:
                    raise StateError(f"a phase has no {key!r}")
    except ValueError as error:
        raise StateError(f"{part!r} in the phase {spec!r} is no whole number") from error
    if len({"count", "percent", "devices"} & set(fields)) != 1:
        raise StateError(
            f"the phase {spec!r} needs exactly one of count, percent, devices",
            hint="such as --phase count=1,success=100,error=0 --phase percent=100",
        )
    return fields


def _act(app: App, name: str, action: str, as_json: bool) -> None:
    with app.server() as server:
        answer = server.post(f"/rollouts/{quote(name, safe='')}/{action}", {}, Json)
    emit(as_json, answer, f"{name}: {answer.get('state', action)}")


def _size(phase: Json) -> str:
    """Whom a phase is for, in the words in which it was asked for."""
    if phase.get("devices") is not None:
        return "devices=" + "+".join(phase["devices"])
    if phase.get("count") is not None:
        return f"count={phase['count']}"
    return f"percent={phase['percent']:g}" if phase.get("percent") is not None else ""


def _list_table(answer: Any) -> Table:
    rollouts = answer.get("rollouts", []) if isinstance(answer, dict) else answer
    table = Table(title="Rollouts")
    for column in ("name", "release", "group", "state", "why"):
        table.add_column(column)
    for each in rollouts:
        table.add_row(*(str(each.get(key) or "") for key in ("name", "release", "group", "state", "why")))
    return table


def _one_table(one: Json) -> Table:
    table = Table(title=f"{one.get('name')}: {one.get('product')} {one.get('release')} to {one.get('group')}")
    columns = ("places", "contacted", "committed", "deferred", "failed", "unseen")
    for column in ("phase", "for", *columns):
        table.add_column(column)
    said = [" ".join(str(one[key]) for key in ("state", "why") if one.get(key))]
    for number, phase in enumerate(one.get("phases", []), 1):
        table.add_row(str(number), _size(phase), *(str(phase.get(column, "")) for column in columns))
        said += [
            f"{device}: {_why(member)}"
            for device, member in phase.get("members", {}).items()
            if member.get("reason") and member.get("outcome") != "committed"
        ]
    said.append(show_budget(one.get("budget") or {}))
    spent = one.get("transfer") or {}
    if any(spent.values()):
        said.append(
            f"over the air: {spent.get('delta_bytes', 0):,} in patches, {spent.get('full_bytes', 0):,} in full, "
            f"{spent.get('saved_bytes', 0):,} saved"
        )
    table.caption = "\n".join(part for part in said if part)
    table.caption_justify = "left"
    return table


def _why(member: Json) -> str:
    needs = member.get("needs_bytes")
    return f"{member['reason']}: needs {needs:,} bytes" if needs else str(member["reason"])
