"""`headland keys`: who may sign, the repositories' beginning, rotations, and what expires."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click
import msgspec
from rich.table import Table
from rich.text import Text
from securesystemslib.signer import Key
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from protocol.errors import HeadlandError, StateError
from protocol.ids import parse_product
from protocol.objects import TECHNICIANS
from protocol.wire import Message
from signing import durable, keyfile, lives, proposals
from signing.commands import signing_steps
from signing.commands.app import App, pass_app
from signing.commands.technicians import renewed
from signing.console import emit, headland_errors, json_option, progress_console
from signing.due import due, role_life
from signing.events import open_event, open_events
from signing.following import follow_ca
from signing.keys import import_public, resolve
from signing.lives import Life, Standing
from signing.managers import Manager, Register
from signing.metadata import parse
from signing.online_keys import OnlineKeys
from signing.repository import RepositoryKind, RepositorySet
from signing.workspace import KINDS, Workspace

ALGORITHMS = click.Choice(["ed25519", "ecdsa", "ml-dsa"])
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@dataclass(frozen=True)
class NewKey:
    """Where a manager's new key comes from: elsewhere by its URI, or made here."""

    uri: str | None
    public_key: Path | None
    algorithm: keyfile.Algorithm


class ManagerView(Message, omit_defaults=False):
    """A manager, for programs."""

    name: str
    keyid: str
    scheme: str
    next_keyid: str | None
    roles: tuple[str, ...]  # `REPOSITORY/ROLE` that trust the key


@click.group()
def keys() -> None:
    """Managers, their keys, and what the repositories trust."""


@keys.command()
@click.argument("name")
@click.option("--uri", help="Use a key that exists: hsm:2?label=TOKEN, awskms:..., headland-key:FILE.")
@click.option("--public-key", type=FILE, help="Its public half in PEM, for schemes that cannot be asked.")
@click.option("--algorithm", type=ALGORITHMS, default="ed25519", show_default=True, help="Of a key made here.")
@click.option("--here", is_flag=True, help="Only say where the key of a registered manager is on this computer.")
@json_option
@pass_app
@headland_errors
def add(
    app: App,
    *,
    name: str,
    uri: str | None,
    public_key: Path | None,
    algorithm: keyfile.Algorithm,
    here: bool,
    as_json: bool,
) -> None:
    """Register a manager with one key: an encrypted file made here, or a key elsewhere by its URI."""
    workspace = Workspace.create(app.workspace_path)
    register = Register(workspace)
    if here:
        if uri is None:
            raise StateError("--here needs --uri: where the key is")
        kept, key = import_public(resolve(uri, Path.cwd()), public_key, lambda what: app.secret(f"{what} of {name}"))
        register.set_uri(name, key, kept)
        emit(as_json, {"manager": name, "keyid": key.keyid, "uri": kept}, f"{name} signs on this computer with {kept}")
        return
    register.check_new(name)
    kept, key = _make_or_import(app, workspace, name, NewKey(uri, public_key, algorithm))
    register.add(name, key, kept)
    emit(
        as_json,
        {"manager": name, "keyid": key.keyid, "uri": kept, "scheme": key.scheme},
        f"{name} is registered with the {key.scheme} key {key.keyid[:12]} at {kept}",
    )


@keys.command()
@click.option("--product", required=True, help="The line of releases, such as pest-detector.")
@click.option("--threshold", type=click.IntRange(min=1), help="Signatures needed; a majority unless you say.")
@click.option("--manager", "names", multiple=True, help="Who may sign; all registered managers unless you say.")
@click.option("--server", "server_file", type=FILE, help="operator.json of headland-server.")
@click.option("--online-keys", "online_file", type=FILE, help="online-keys.json of headland-server; else it is asked.")
@json_option
@pass_app
@headland_errors
def init(
    app: App,
    *,
    product: str,
    threshold: int | None,
    names: tuple[str, ...],
    server_file: Path | None,
    online_file: Path | None,
    as_json: bool,
) -> None:
    """Propose both repositories with a first product, or one product more."""
    parse_product(product)
    workspace = app.workspace()
    register = Register(workspace)
    if server_file is not None:
        workspace.set_server_access(server_file.read_bytes(), app.random)
    chosen = [register.get(name) for name in dict.fromkeys(names)] if names else list(register.all().values())
    if not chosen:
        raise StateError("no manager is registered", hint="`headland keys add NAME` for each of them")
    needed = threshold or len(chosen) // 2 + 1
    if needed > len(chosen):
        raise StateError(f"{needed} signatures of {len(chosen)} managers can never be had")
    public = [manager.current() for manager in chosen]
    image = workspace.current("image")
    if image is None:
        online = _online(app, workspace, online_file)
        sealing = workspace.sealing_key()
        proposal = proposals.first(product, public, needed, online, app.now(), sealing_key=sealing)
    else:
        proposal = proposals.add_product(image, product, public, needed, app.now())
    with workspace.alone():
        event = open_event(workspace, proposal, app.now())
    who = ", ".join(manager.name for manager in chosen)
    text = f"{needed} of {who} sign for {product}. Each runs: headland keys sign --as NAME\n"
    emit(as_json, signing_steps.view(event), text + signing_steps.next_step(event))


@keys.command()
@click.option("--as", "name", required=True, help="The manager who signs.")
@click.option("--event", "wanted", help="Only this event; all open ones unless you say.")
@click.option("--yes", is_flag=True, help="Sign without being asked; the difference is shown all the same.")
@json_option
@pass_app
@headland_errors
def sign(app: App, *, name: str, wanted: str | None, yes: bool, as_json: bool) -> None:
    """Look at what open events change, and sign them. The same as `headland release sign`."""
    signing_steps.sign_open(app, name, wanted, yes=yes, as_json=as_json)


@keys.command()
@click.option("--manager", "replaced", multiple=True, help="Give this manager a new key.")
@click.option("--uri", help="The new key of that manager; an encrypted file is made unless you say.")
@click.option("--public-key", type=FILE, help="Its public half in PEM.")
@click.option("--algorithm", type=ALGORITHMS, default="ed25519", show_default=True, help="Of a key made here.")
@click.option("--add", "added", multiple=True, help="Let this registered manager sign from now on.")
@click.option("--remove", "removed", multiple=True, help="Take this manager's key out of every role.")
@click.option("--threshold", type=click.IntRange(min=1), help="Signatures needed from now on.")
@click.option("--online", "online_file", type=FILE, help="Trust the server's keys of this online-keys.json.")
@click.option("--online-of-server", is_flag=True, help="Trust the keys that the server asks for now.")
@click.option("--new-era", "era", help="Start the release counter of this product anew.")
@json_option
@pass_app
@headland_errors
def rotate(
    app: App,
    *,
    replaced: tuple[str, ...],
    uri: str | None,
    public_key: Path | None,
    algorithm: keyfile.Algorithm,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    threshold: int | None,
    online_file: Path | None,
    online_of_server: bool,
    era: str | None,
    as_json: bool,
) -> None:
    """Propose new keys, managers, thresholds, keys of the server, or a new era of a product."""
    workspace = app.workspace()
    register = Register(workspace)
    sets = {kind: workspace.need(kind) for kind in KINDS}
    busy = open_events(workspace)
    if busy:
        raise StateError(
            f"the event {busy[0].id} is open; keys change only while nothing else does",
            hint="sign and push it first, or `headland release cancel`",
        )
    if uri is not None and len(replaced) != 1:
        raise StateError("--uri goes with exactly one --manager")
    new_keys = {}
    for name in replaced:
        manager = register.get(name)
        if manager.next_key is None:  # else a rotation was cut after the key was made: it is used now
            kept, key = _make_or_import(app, workspace, name, NewKey(uri, public_key, algorithm))
            manager = register.propose_key(name, key, kept)
        new_keys[manager.current().keyid] = manager.usable()[-1]
    online = _new_online(app, workspace, online_file, ask=online_of_server)
    change = proposals.KeyChange(
        replace=new_keys,
        add=tuple(register.get(name).current() for name in added),
        remove=[register.get(name).current().keyid for name in removed],
        threshold=threshold,
        online=online,
        sealing_key=workspace.sealing_key() if online is not None else None,
        new_era_of=era,
    )
    with workspace.alone():
        event = open_event(workspace, proposals.change_keys(sets, change, app.now()), app.now())
    emit(as_json, signing_steps.view(event), signing_steps.next_step(event))


@keys.command()
@click.option("--online-keys", "online_file", type=FILE, help="online-keys.json of headland-server; else it is asked.")
@json_option
@pass_app
@headland_errors
def kits(app: App, *, online_file: Path | None, as_json: bool) -> None:
    """Propose field kits and technicians for repositories from before there were any.

    The managers of the director's targets sign for them, at the same threshold.
    """
    workspace = app.workspace()
    director = workspace.need("director")
    proposals.check_without_kits(director)
    _new_online(app, workspace, online_file, ask=online_file is None)
    proposal = proposals.add_kits(director, workspace.sealing_key(), app.now())
    with workspace.alone():
        event = open_event(workspace, proposal, app.now())
    emit(as_json, signing_steps.view(event), signing_steps.next_step(event))


@keys.command()
@click.argument("roles", nargs=-1, metavar="[REPOSITORY/ROLE]...")
@json_option
@pass_app
@headland_errors
def resign(app: App, *, roles: tuple[str, ...], as_json: bool) -> None:
    """Propose the same content with a new expiry, for the roles named or all that are due.

    The groups of technicians are resolved anew.
    """
    workspace = app.workspace()
    sets = {kind: workspace.need(kind) for kind in KINDS}
    offline = due(sets, (), app.now())
    names = {f"{each.repository}/{each.role}": each for each in offline}
    unknown = [role for role in roles if role not in names]
    if unknown:
        raise StateError(f"no offline role {unknown[0]!r}; there are: {', '.join(sorted(names))}")
    wanted = [names[role] for role in roles] if roles else [each for each in offline if each.state != "fresh"]
    if not wanted:
        raise StateError("nothing is due; name a role to sign it again all the same")
    pairs = [(_kind(each.repository), each.role) for each in wanted]
    proposal = proposals.resign(sets, pairs, app.now())
    if ("director", TECHNICIANS) in pairs:
        listed = proposals.set_technicians(sets["director"], renewed(app, workspace), "", app.now())
        proposal = replace(proposal, files={**proposal.files, **listed.files})
    with workspace.alone():
        event = open_event(workspace, proposal, app.now())
    emit(as_json, signing_steps.view(event), signing_steps.next_step(event))


@keys.command()
@json_option
@pass_app
@headland_errors
def show(app: App, *, as_json: bool) -> None:
    """Managers, their keys, and which roles trust them."""
    workspace = app.workspace()
    register = Register(workspace)
    roles = _trusted(workspace)
    managers = [_manager_view(manager, roles) for manager in register.all().values()]
    table = Table(title="Managers")
    for column in ("manager", "key", "scheme", "signs"):
        table.add_column(column)
    for each in managers:
        coming = " (a new key is proposed)" if each.next_keyid else ""
        table.add_row(each.name, f"{each.keyid[:12]}{coming}", each.scheme, ", ".join(each.roles))
    listed = [{"role": role, "threshold": number, "keyids": list(ids)} for role, (number, ids) in roles.items()]
    events = [signing_steps.view(event) for event in open_events(workspace)]
    emit(as_json, {"managers": managers, "roles": listed, "events": events}, table)


@keys.command("server")
@click.argument("server_file", type=FILE, metavar="OPERATOR.JSON")
@json_option
@pass_app
@headland_errors
def take_server(app: App, server_file: Path, *, as_json: bool) -> None:
    """Take the server's operator.json anew: its address, its CA, the operators' token."""
    workspace = app.workspace()
    workspace.set_server_access(server_file.read_bytes(), app.random)
    access = workspace.server_access()
    emit(as_json, {"server": access.url}, f"this workspace speaks to {access.url}")


@keys.command("due")
@json_option
@pass_app
@headland_errors
def show_due(app: App, *, as_json: bool) -> None:
    """What ends when, in the order in which to act: roles, keys, certificates, tokens.

    Marks are at 50 and 80 % of each life. What the server holds is listed as far as it can be asked.
    """
    workspace = app.workspace()
    sets = {kind: workspace.need(kind) for kind in KINDS}
    online, remark = _served(app, workspace)
    listed = due(sets, online, app.now())
    own = [lives.standing(role_life(each), app.now()) for each in listed]
    own += [lives.standing(each, app.now()) for each in _manager_lives(workspace, Register(workspace), sets)]
    told, machines = _servers_lives(app, workspace)
    order = lives.in_order([*own, *told])
    if remark:
        progress_console().print(remark, markup=False)
    answer = {"roles": listed, "order": order, "device_certificates": machines, "remark": remark}
    emit(as_json, answer, _due_table(order, machines))


def _make_or_import(app: App, workspace: Workspace, name: str, wanted: NewKey) -> tuple[str, Key]:
    if wanted.uri is not None:
        return import_public(
            resolve(wanted.uri, Path.cwd()), wanted.public_key, lambda what: app.secret(f"{what} of {name}")
        )
    signer = keyfile.generate(wanted.algorithm)
    passphrase = app.secret(f"new passphrase of {name}", new=True)
    relative = Path("keys") / f"{name}-{signer.public_key.keyid[:8]}.key"
    durable.make_dir(workspace.path / "keys")
    keyfile.write_key_file(workspace.path / relative, signer, passphrase, app.random, app.key_cost)
    return keyfile.uri_of(relative), signer.public_key


def _online(app: App, workspace: Workspace, online_file: Path | None) -> OnlineKeys:
    if online_file is not None:
        return workspace.set_online_keys(online_file.read_bytes())
    known = workspace.online_keys()
    if known is not None:
        return known
    with app.server() as server:
        content = server.get("/online-keys", msgspec.Raw)
    return workspace.set_online_keys(bytes(content))


def _new_online(app: App, workspace: Workspace, online_file: Path | None, *, ask: bool) -> OnlineKeys | None:
    if online_file is not None and ask:
        raise StateError("--online or --online-of-server, not both")
    if online_file is not None:
        return workspace.set_online_keys(online_file.read_bytes())
    if not ask:
        return None
    with app.server() as server:
        return workspace.set_online_keys(bytes(server.get("/online-keys", msgspec.Raw)))


def _kind(repository: str) -> RepositoryKind:
    return "image" if repository == "image" else "director"


def _trusted(workspace: Workspace) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Threshold and key ids of every role in force, by `REPOSITORY/ROLE`."""
    found: dict[str, tuple[int, tuple[str, ...]]] = {}
    for kind in KINDS:
        published = workspace.current(kind)
        if published is None:
            continue
        for name, root_role in parse(published.root(), Root, "root").signed.roles.items():
            found[f"{kind}/{name}"] = (root_role.threshold, tuple(root_role.keyids))
        delegations = parse(published.targets, Targets, "targets").signed.delegations
        for name, role in (delegations.roles or {}).items() if delegations is not None else ():
            found[f"{kind}/{name}"] = (role.threshold, tuple(role.keyids))
    return found


def _manager_view(manager: Manager, roles: dict[str, tuple[int, tuple[str, ...]]]) -> ManagerView:
    key = manager.current()
    return ManagerView(
        name=manager.name,
        keyid=key.keyid,
        scheme=key.scheme,
        next_keyid=manager.next_key["keyid"] if manager.next_key is not None else None,
        roles=tuple(name for name, (_, keyids) in roles.items() if key.keyid in keyids),
    )


def _served(app: App, workspace: Workspace) -> tuple[list[tuple[RepositoryKind, Timestamp | Snapshot]], str]:
    """The online roles as the server serves them, or a remark why they are not known."""
    if not workspace.knows_server():
        return [], "the server's own roles are not shown: this workspace knows no server"
    found: list[tuple[RepositoryKind, Timestamp | Snapshot]] = []
    try:
        with app.server() as server:
            for kind in KINDS:
                stamp = parse(server.metadata(kind, "timestamp.json"), Timestamp, "timestamp.json").signed
                name = f"{stamp.snapshot_meta.version}.snapshot.json"
                shot = parse(server.metadata(kind, name), Snapshot, name).signed
                found += [(kind, stamp), (kind, shot)]
    except HeadlandError as error:
        return found, f"the server's own roles are not shown: {error.message}"
    return found, ""


def _manager_lives(
    workspace: Workspace, register: Register, sets: Mapping[RepositoryKind, RepositorySet]
) -> list[Life]:
    found = []
    for keyid, since_ms in lives.manager_keys(sets, workspace.history("targets")).items():
        owner = register.owner(keyid)
        act = f"headland keys rotate --manager {owner or 'NAME'}"
        found.append(lives.key_life("manager-key", owner or keyid[:12], keyid, since_ms, act))
    return found


def _servers_lives(app: App, workspace: Workspace) -> tuple[list[Standing], dict[str, int] | None]:
    """What the server says of its own keys, certificates and tokens, and of machines' certificates by how they stand.

    Its word is for people: what is signed, this workspace knows better.
    """
    if not workspace.knows_server():
        return [], None
    try:
        with app.server() as server:
            follow_ca(workspace, server)
            status = server.get("/status", _ServerStatus)
    except HeadlandError:
        return [], None  # why stands in the remark already
    told = [each for each in status.lives if each.kind not in ("role", "manager-key")]
    return told, status.device_certificates


class _ServerStatus(msgspec.Struct):
    """The part of the server's status that is looked at."""

    lives: tuple[Standing, ...]
    device_certificates: dict[str, int]


def _due_table(listed: tuple[Standing, ...], machines: dict[str, int] | None) -> Table:
    old = {state: count for state, count in (machines or {}).items() if count and state != "fresh"}
    caption = ", ".join(f"{count} {state}" for state, count in old.items())
    table = Table(
        title="What ends when: act from the top", caption=f"machines' certificates: {caption}" if caption else None
    )
    for column in ("what", "80 %", "ends", "used", "", "what to do"):
        table.add_column(column)
    colours = {"fresh": "green", "due": "yellow", "urgent": "red", "expired": "bold red"}
    for each in listed:
        table.add_row(
            each.what if each.kind == "role" else f"{each.kind} {each.what}",
            each.most[:10],
            each.expires[:10],
            f"{each.used:.0%}",
            Text(each.state, style=colours[each.state]),
            "" if each.state == "fresh" else each.act,
        )
    return table
