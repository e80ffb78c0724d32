"""`headland audit`: what happened, by whom, and the proof that nothing of it was changed."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from signing import audit_trail
from signing.audit_trail import Checked, Walk
from signing.commands.app import App, LineBar, pass_app
from signing.console import emit, headland_errors, json_option

Json = dict[str, Any]


@click.group()
def audit() -> None:
    """The audit trail: what happened, by whom; exported and verified."""


@audit.command("list")
@click.option("--last", default=50, show_default=True, type=click.IntRange(1, 10_000), help="How many lines.")
@click.option("--machine", help="Only of this machine.")
@json_option
@pass_app
@headland_errors
def list_lines(app: App, *, last: int, machine: str | None, as_json: bool) -> None:
    """The newest lines, oldest first."""
    query = {"last": str(last)} | ({"device": machine} if machine is not None else {})
    with app.server() as server:
        page = server.get("/events", audit_trail.TrailPage, query)
    table = Table(title="Audit trail")
    for column in ("line", "when (UTC)", "who", "what happened", "machine", "what", "reason", "detail"):
        table.add_column(column)
    for line in page.events:
        when = datetime.fromtimestamp(line.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(str(line.id), when, line.who, line.kind, line.device, line.what, line.reason, line.detail)
    emit(as_json, page, table if page.events else "The audit trail is empty.")


@audit.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@pass_app
@headland_errors
def export(app: App, *, file: Path, as_json: bool) -> None:
    """Write the whole trail to FILE as JSON lines. It is verified on its way."""
    workspace = app.workspace()
    seen = audit_trail.recall(workspace.path)
    with app.server() as server, LineBar("audit trail") as bar:
        base, lines = audit_trail.fetch(server, bar.advance)
        walk = Walk(base, seen)
        audit_trail.write_file(file, base, walk.through(lines))
    done = walk.done()
    audit_trail.remember(workspace.path, done.head)
    emit(as_json, _told(done), f"{file}: {_words(done)}")


@audit.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--forget", is_flag=True, help="Take the server's trail as it is now, whatever was seen here before.")
@json_option
@pass_app
@headland_errors
def verify(app: App, *, file: Path | None, forget: bool, as_json: bool) -> None:
    """Verify the server's trail, or the exported FILE: each line against the one before, and against what was seen.

    This workspace remembers the newest line at each look: a trail that was written anew, or cut, shows.
    """
    workspace = app.workspace()
    seen = None if forget else audit_trail.recall(workspace.path)
    if file is not None:
        base, lines = audit_trail.read_file(file)
        done = Walk(base, None).all(lines)
        emit(as_json, _told(done), f"{file}: {_words(done)}")
        return
    with app.server() as server, LineBar("audit trail") as bar:
        base, lines = audit_trail.fetch(server, bar.advance)
        done = Walk(base, seen).all(lines)
    audit_trail.remember(workspace.path, done.head)
    emit(as_json, _told(done), _words(done))


def _told(done: Checked) -> Json:
    return {"lines": done.lines, "base": done.base, "head": done.head, "seen": done.seen, "seen_is_old": done.is_old}


def _words(done: Checked) -> str:
    said = f"{done.lines} lines hold, up to line {done.head.number} ({done.head.hash[:12]})"
    if done.base.number:
        said += f"; lines up to {done.base.number} are older than the server keeps"
    if done.seen is None:
        return said
    return said + (
        f"; line {done.seen.number}, seen before, is among those that went"
        if done.is_old
        else f"; line {done.seen.number}, seen before, is the same"
    )
