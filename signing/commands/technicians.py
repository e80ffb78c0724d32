"""`headland technicians`: who may walk up to which machine and force an update, as the managers sign it."""

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.table import Table
from securesystemslib.signer import SSlibKey

from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import DeviceId, parse_name
from protocol.kits import Technician
from signing import durable, keyfile, proposals
from signing.commands import signing_steps
from signing.commands.app import App, pass_app
from signing.console import emit, headland_errors, json_option, progress_console
from signing.differences import printable
from signing.events import open_event
from signing.repository import technicians_of
from signing.server_client import Operator
from signing.technicians_shown import day, where
from signing.workspace import Workspace

PUBLIC_KEY: Final = re.compile(r"^[0-9a-f]{64}\Z")
DAYS: Final = 365
"""Of an entry, proposed: a season and the winter after it. The list itself ends much sooner, and is signed again."""


class _Device(msgspec.Struct):
    """The part of a machine's row that is looked at."""

    device: str
    groups: tuple[str, ...] = ()
    revoked: bool = False


class _Devices(msgspec.Struct):
    devices: tuple[_Device, ...]


@click.group()
def technicians() -> None:
    """Technicians: whose key may force what a kit or the server offers a machine already."""


@technicians.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The new key file.")
@json_option
@pass_app
@headland_errors
def key(app: App, *, name: str, out: Path, as_json: bool) -> None:
    """Make a technician's key: an encrypted file for them, and beside it FILE.pub for the managers."""
    parse_name(name, "technician")
    signer = keyfile.generate("ed25519")
    passphrase = app.secret(f"new passphrase of {name}", new=True)
    keyfile.write_key_file(out, signer, passphrase, app.random, app.key_cost)
    public = _raw(signer.public_key)
    beside = out.with_name(f"{out.name}.pub")
    durable.write(beside, public.encode() + b"\n", 0o644)
    text = f"{name} keeps {out}. A manager runs: headland technicians add {name} --key {beside}"
    emit(as_json, {"technician": name, "public_key": public, "file": str(out), "public_file": str(beside)}, text)


@technicians.command()
@click.argument("name")
@click.option("--key", "key_text", metavar="FILE|HEX", help="The public key; may be left out to change who is listed.")
@click.option("--machine", "machines", multiple=True, help="Where the entry counts; every machine unless you say.")
@click.option("--group", "groups", multiple=True, help="The same: the machines that are in this group now.")
@click.option("--force/--no-force", "may_force", default=True, help="May force updates (the default), or not.")
@click.option("--days", type=click.IntRange(1, 3650), default=DAYS, show_default=True, help="Until the entry ends.")
@json_option
@pass_app
@headland_errors
def add(
    app: App,
    *,
    name: str,
    key_text: str | None,
    machines: tuple[str, ...],
    groups: tuple[str, ...],
    may_force: bool,
    days: int,
    as_json: bool,
) -> None:
    """Propose a technician, or something else for one who is listed."""
    workspace = app.workspace()
    listed = {each.name: each for each in _listed(workspace)}
    parse_name(name, "technician")
    if key_text is None and name not in listed:
        raise StateError(f"{name} is not listed yet", hint="name the public key: --key FILE.pub")
    if machines and groups:
        raise StateError("--machine or --group, not both: at the next renewal nobody could tell which were which")
    ends = app.now() + timedelta(days=days)
    entry = Technician(
        name=name,
        public_key=_public_key(key_text) if key_text is not None else listed[name].public_key,
        expires_ms=int(ends.timestamp() * 1000),
        may_force=may_force,
        machines=tuple(sorted({parse_name(each, "device") for each in machines})) or None,
        groups=tuple(sorted({parse_name(each, "group") for each in groups})),
    )
    if groups:
        with app.server() as server:
            (entry,) = in_groups(server, (entry,))
    if unknown := _unknown(app, entry.machines or ()):
        words = f"the server knows no machine {', '.join(unknown[:5])}: is that its name?"
        progress_console().print(printable(words), markup=False, soft_wrap=True)
    _propose(app, workspace, {**listed, name: entry}.values(), f"technician {name}", as_json=as_json)


@technicians.command()
@click.argument("name")
@json_option
@pass_app
@headland_errors
def remove(app: App, *, name: str, as_json: bool) -> None:
    """Propose to revoke a technician: on no machine that has seen the new list they count any more."""
    workspace = app.workspace()
    listed = {each.name: each for each in _listed(workspace)}
    if name not in listed:
        raise StateError(f"{name!r} is not listed; listed: {', '.join(listed) or 'nobody'}")
    del listed[name]
    _propose(app, workspace, listed.values(), f"revoke the technician {name}", as_json=as_json)


@technicians.command()
@json_option
@pass_app
@headland_errors
def renew(app: App, *, as_json: bool) -> None:
    """Propose the same list for a whole lifetime more; groups are the machines that are in them now."""
    workspace = app.workspace()
    _propose(app, workspace, renewed(app, workspace), "renew the list of technicians", as_json=as_json)


@technicians.command("list")
@json_option
@pass_app
@headland_errors
def list_technicians(app: App, *, as_json: bool) -> None:
    """Who is in the published list."""
    workspace = app.workspace()
    role = proposals.technicians_role(workspace.need("director"))
    listed = technicians_of(role).technicians
    over = " (EXPIRED)" if role.is_expired(app.now()) else ""
    table = Table(title=f"Technicians, version {role.version}, until {role.expires:%Y-%m-%d}{over}")
    for column in ("technician", "key", "may force", "where", "until"):
        table.add_column(column)
    for each in listed:
        table.add_row(
            each.name, each.public_key[:12], "yes" if each.may_force else "no", where(each), day(each.expires_ms)
        )
    content = {"version": role.version, "expires": role.expires.isoformat(), "technicians": listed}
    emit(as_json, content, table)


def renewed(app: App, workspace: Workspace) -> tuple[Technician, ...]:
    """The published entries, groups resolved anew where there are any.

    Raises:
        StateError: A group has no machines any more.
        LinkError: The server cannot be asked.
    """
    listed = _listed(workspace)
    if not any(each.groups for each in listed):
        return listed
    with app.server() as server:
        return in_groups(server, listed)


def _unknown(app: App, machines: Sequence[DeviceId]) -> list[DeviceId]:
    """Of these, what the server does not know. A list may be signed where no server is in reach: nothing then."""
    try:
        with app.server() as server:
            known = {each.device for each in server.get("/devices", _Devices).devices}
    except (StateError, LinkError):
        return []
    return [each for each in machines if each not in known]


def in_groups(server: Operator, entries: Sequence[Technician]) -> tuple[Technician, ...]:
    """Entries that name groups, for the machines that are in them now.

    Raises:
        StateError: A group without machines.
    """
    devices = [each for each in server.get("/devices", _Devices).devices if not each.revoked]

    def resolved(entry: Technician) -> Technician:
        for group in entry.groups:
            if not any(group in each.groups for each in devices):
                raise StateError(
                    f"{entry.name}: no machine is in the group {group!r}", hint="`headland device list` shows groups"
                )
        machines = sorted(each.device for each in devices if set(each.groups) & set(entry.groups))
        return msgspec.structs.replace(entry, machines=tuple(machines))

    return tuple(resolved(entry) if entry.groups else entry for entry in entries)


def _listed(workspace: Workspace) -> tuple[Technician, ...]:
    return technicians_of(proposals.technicians_role(workspace.need("director"))).technicians


def _propose(app: App, workspace: Workspace, entries: Iterable[Technician], title: str, *, as_json: bool) -> None:
    proposal = proposals.set_technicians(workspace.need("director"), entries, title, app.now())
    with workspace.alone():
        event = open_event(workspace, proposal, app.now())
    emit(as_json, signing_steps.view(event), signing_steps.next_step(event))


def _public_key(text: str) -> str:
    """From hexadecimal, a file that holds it, or the header of a key file."""
    if PUBLIC_KEY.match(text):
        return text
    path = Path(text)
    if not path.is_file():
        raise StateError(f"{text!r:.200} is neither 64 hexadecimal digits nor a file")
    with path.open("rb") as file:
        data = file.read(64 * limits.KIB)
    if data.startswith(b"{"):
        return _raw(keyfile.public_key_of(path))
    found = data.strip().decode(errors="replace")
    if not PUBLIC_KEY.match(found):
        raise Refused(Reason.METADATA, f"{text} holds no Ed25519 key in hexadecimal")
    return found


def _raw(key: Any) -> str:
    if not isinstance(key, SSlibKey) or key.scheme != "ed25519":
        raise Refused(Reason.METADATA, "a technician's key is Ed25519")
    return str(key.keyval["public"])
