"""`headland permit`: one machine may go back to one release, once, by the managers' signatures."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table

from protocol.errors import StateError
from protocol.ids import parse_name
from protocol.kits import PERMIT_DAYS, PermitTerms
from signing import proposals
from signing.commands import signing_steps
from signing.commands.app import App, pass_app
from signing.commands.release import pick_product
from signing.console import emit, headland_errors, json_option
from signing.events import open_event
from signing.metadata import plain
from signing.proposals import Proposal
from signing.repository import permits_of, read_release_list
from signing.workspace import Workspace

PRODUCT = click.option("--product", help="Needed when there are several.")


@click.group()
def permit() -> None:
    """Permits to go back: one machine, one release, once, for some days."""


@permit.command()
@click.argument("device")
@click.argument("release")
@click.option("--reason", required=True, help="Why, for those who sign and for the audit.")
@click.option("--days", type=click.IntRange(1, PERMIT_DAYS), default=14, show_default=True, help="How long it is good.")
@PRODUCT
@json_option
@pass_app
@headland_errors
def grant(app: App, *, device: str, release: str, reason: str, days: int, product: str | None, as_json: bool) -> None:
    """Propose that DEVICE may go back to RELEASE, which must be listed."""
    workspace = app.workspace()
    name = pick_product(workspace, product)
    image = workspace.need("image")
    found = [each for each in read_release_list(image, name) if each.version == release]
    if not found:
        raise StateError(f"{name} {release} is not listed", hint="`headland release list`")
    now = app.now()
    terms = PermitTerms(
        kind="permit",
        permit=app.random(16).hex(),
        device=parse_name(device, "device"),
        release=release,
        manifest=found[0].manifest_sha256,
        created_ms=_ms(now),
        expires_ms=_ms(now + timedelta(days=days)),
        reason=_reason(reason),
    )
    _propose(app, workspace, proposals.grant_permit(image, name, terms, now), as_json=as_json, permit=terms.permit)


@permit.command()
@click.argument("permit_id", metavar="PERMIT")
@PRODUCT
@json_option
@pass_app
@headland_errors
def withdraw(app: App, *, permit_id: str, product: str | None, as_json: bool) -> None:
    """Propose to take a permit back; some digits of its id will do. A machine that used it has gone back already."""
    workspace = app.workspace()
    name = pick_product(workspace, product)
    proposal = proposals.withdraw_permit(workspace.need("image"), name, permit_id, app.now())
    _propose(app, workspace, proposal, as_json=as_json)


@permit.command("list")
@PRODUCT
@json_option
@pass_app
@headland_errors
def list_permits(app: App, *, product: str | None, as_json: bool) -> None:
    """Permits that the product's current role has. Whether one was used, the machine reports."""
    workspace = app.workspace()
    name = pick_product(workspace, product)
    now = app.now()
    found = permits_of(name, proposals.product_role(workspace.need("image"), name))
    table = Table(title=f"Permits of {name}")
    for column in ("permit", "device", "release", "until", "reason"):
        table.add_column(column)
    for each in found:
        until = datetime.fromtimestamp(each.expires_ms / 1000, UTC)
        over = " (ended)" if until <= now else ""
        table.add_row(each.permit[:12], each.device, each.release, f"{until:%Y-%m-%d}{over}", each.reason)
    rows = [{**plain(each), "ended": each.expires_ms <= _ms(now)} for each in found]
    emit(as_json, {"product": name, "permits": rows}, table)


def _propose(app: App, workspace: Workspace, proposal: Proposal, *, as_json: bool, **more: Any) -> None:
    with workspace.alone():
        event = open_event(workspace, proposal, app.now())
    emit(as_json, {**plain(signing_steps.view(event)), **more}, signing_steps.next_step(event))


def _reason(text: str) -> str:
    if not 1 <= len(text.strip()) <= 500:
        raise StateError("a reason has 1 to 500 characters")
    return text.strip()


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
