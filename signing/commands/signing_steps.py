"""Signing, pushing and cancelling open events: shared by `headland keys` and `headland release`."""

from collections.abc import Iterable
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from protocol.wire import Message
from signing.commands.app import App, UploadBars
from signing.console import emit, progress_console
from signing.differences import Change, differences, printable
from signing.events import Event, Need, find_event, open_events
from signing.following import follow_ca
from signing.keys import open_signer, resolve
from signing.managers import Register
from signing.publishing import describe, push, push_again


class NeedView(Message):
    """How far one file is signed, for programs."""

    file: str
    by: str
    threshold: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]


class EventView(Message, omit_defaults=False):
    """An open event, for programs."""

    id: str
    title: str
    ready: bool
    needs: tuple[NeedView, ...]
    changes: tuple[Change, ...] = ()


def view(event: Event, changes: Iterable[Change] = ()) -> EventView:
    """An event as programs get it."""
    needs = event.needs()
    return EventView(
        id=event.id,
        title=event.record.title,
        ready=all(need.met for need in needs),
        needs=tuple(
            NeedView(file=n.file, by=n.by, threshold=n.threshold, signed=n.signed, missing=n.missing) for n in needs
        ),
        changes=tuple(changes),
    )


def next_step(event: Event) -> str:
    """What a person does next with an event."""
    if event.ready():
        return f"{event.id} has all signatures it needs. Publish it: headland release push"
    lines = [describe(need) for need in event.needs() if not need.met]
    return "\n".join([f"{event.id} still needs:", *(f"  {line}" for line in lines)])


def sign_open(app: App, name: str, wanted: str | None, *, yes: bool, as_json: bool) -> None:
    """Shows each open event that a manager can sign, asks, and signs."""
    workspace = app.workspace()
    register = Register(workspace)
    register.get(name)
    events = (find_event(workspace, wanted),) if wanted is not None else open_events(workspace)
    if not events:
        find_event(workspace, None)  # says that none is open
    signers: dict[str, Any] = {}
    done = []
    for event in events:
        keys = event.keys_wanted(name)
        event.check_owners()
        changes = differences(workspace, event, app.now())
        if not keys:
            progress_console().print(f"{event.id}: {name} has no part in it", markup=False)
            continue
        show_changes(event, changes)
        if not yes and not click.confirm(f"Sign {event.id} as {name}?", err=True):
            progress_console().print("not signed", markup=False)
            continue
        for key in keys:
            if key.keyid not in signers:
                uri = resolve(register.uri(name, key.keyid), workspace.path)
                signers[key.keyid] = open_signer(uri, key, lambda secret: app.secret(f"{secret} of {name}"))
        event.sign(name, signers)
        done.append((event, changes))
    text = "\n".join(next_step(event) for event, _ in done) or "nothing was signed"
    emit(as_json, {"signed_by": name, "events": [view(event, changes) for event, changes in done]}, text)


def push_open(app: App, wanted: str | None, *, again: bool, as_json: bool) -> None:
    """Publishes the open events that are ready; with none ready, says what is missing."""
    workspace = app.workspace()
    published = []
    with workspace.alone(), app.server() as server, UploadBars() as meter:
        follow_ca(workspace, server)
        if again:
            done = push_again(workspace, server, meter)
            place = (workspace.server_access().workspace or "")[:8]
            said = [f"not sent: {line}" for line in done.missing] + _on_hold(done.held)
            said += [f"this workspace is {place} to the server"] if done.held and place else []
            text = "\n".join(said or ["the server has everything that is in force"])
            told = {"published": [], "again": True, "held": done.held, "missing": done.missing, "workspace": place}
            emit(as_json, told, text)
            return
        events = (find_event(workspace, wanted),) if wanted is not None else open_events(workspace)
        if not events:
            find_event(workspace, None)
        held = ""
        ready = [event for event in events if event.ready()] or list(events[:1])
        for event in ready:
            held = push(workspace, event, server, meter, app.now())
            published.append({"id": event.id, "title": event.record.title})
    waiting = [event.id for event in open_events(workspace)]
    lines = [f"published: {each['title']}" for each in published] + [f"still open: {each}" for each in waiting]
    lines += _on_hold(held)
    emit(as_json, {"published": published, "again": False, "open": waiting, "held": held}, "\n".join(lines))


def _on_hold(why: str) -> list[str]:
    if not why:
        return []
    return [f"the server keeps it and offers nothing yet: it was restored from a backup, and {why}"]


def cancel(app: App, wanted: str | None, *, yes: bool, as_json: bool) -> None:
    """Ends an event without publishing it."""
    event = find_event(app.workspace(), wanted)
    if not yes:
        click.confirm(f"Drop {event.id} ({printable(event.record.title)})?", abort=True, err=True)
    event.close(published=False)
    emit(as_json, {"cancelled": event.id}, f"{event.id} was dropped")


def show_changes(event: Event, changes: Iterable[Change]) -> None:
    """Prints the difference on stderr, warnings marked."""
    console = progress_console()
    console.print(f"\n[bold]{escape(event.id)}[/]: {escape(printable(event.record.title))}", soft_wrap=True)
    file = ""
    for change in changes:
        if change.file != file:
            file = change.file
            console.print(f"  {escape(file)}")
        text = escape(change.text)
        console.print(f"    [bold red]! {text}[/]" if change.warning else f"    {text}", soft_wrap=True)


def needs_table(needs: Iterable[Need], title: str) -> Table:
    """Signatures, present and missing."""
    table = Table(title=title)
    for column in ("file", "needed", "signed by", "not yet"):
        table.add_column(column)
    for need in needs:
        by = " (old root)" if need.by == "old root" else ""
        table.add_row(
            need.file + by,
            str(need.threshold),
            ", ".join(need.signed),
            ", ".join(need.missing),
        )
    return table
