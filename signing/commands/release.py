"""`headland release`: build, sign, push, delist, and look at releases."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table
from rich.text import Text
from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.metadata import Metadata, Targets

from protocol import limits
from protocol.container import Container
from protocol.errors import StateError
from protocol.release import parse_manifest
from signing import proposals
from signing.commands import signing_steps
from signing.commands.app import App, pass_app
from signing.console import emit, headland_errors, json_option, progress_console
from signing.containers_shown import container_lines, image_lines, unpacked_bytes
from signing.differences import differences, printable, untried_reason
from signing.events import find_event, open_event, open_events
from signing.managers import Register
from signing.metadata import parse
from signing.release_build import build as build_release
from signing.repository import ListedRelease, read_release_list, releases_of
from signing.workspace import Workspace


@click.group()
def release() -> None:
    """Releases: built here, signed together, pushed to the server."""


@release.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--untried", metavar="REASON", help="Run no golden inputs here; the reason is shown to all who sign.")
@json_option
@pass_app
@headland_errors
def build(app: App, *, source: Path, untried: str | None, as_json: bool) -> None:
    """Build a release from a description (TOML), or from a folder with a release.toml."""
    console = progress_console()
    workspace = app.workspace()
    with workspace.alone():
        built = build_release(
            source,
            workspace,
            app.checker,
            app.now(),
            untried=untried,
            environment=app.environment,
            say=lambda line: console.print(line, markup=False, style="dim"),
        )
    manifest = built.manifest
    lines = [f"{manifest.product} {manifest.version} (counter {manifest.release_counter}) is {built.sha256}"]
    lines += [f"  {name}: golden inputs hold" for name in built.tried]
    lines += [f"  {name}: NOT TRIED: {reason}" for name, reason in built.untried.items()]
    for container in manifest.containers:
        lines.append(f"  container {container.name}")
        lines += [f"  {printable(line)}" for image in container.images for line, _ in image_lines(image)]
    lines.append(f"Each manager runs: headland release sign --as NAME\n{signing_steps.next_step(built.event)}")
    content = {
        "product": manifest.product,
        "version": manifest.version,
        "counter": manifest.release_counter,
        "era": manifest.era,
        "manifest_sha256": built.sha256,
        "tried": built.tried,
        "untried": built.untried,
        "containers": [_container_view(container) for container in manifest.containers],
        "event": signing_steps.view(built.event),
    }
    emit(as_json, content, "\n".join(lines))


def _container_view(container: Container) -> dict[str, Any]:
    return {
        "name": container.name,
        "images": [
            {
                "platform": image.platform,
                "hardware": image.hardware,
                "config_sha256": image.config.sha256,
                "layers": len(image.layers),
                "unpacked_bytes": unpacked_bytes(image),
                "source": image.source,
            }
            for image in container.images
        ],
    }


@release.command()
@click.option("--as", "name", required=True, help="The manager who signs.")
@click.option("--event", "wanted", help="Only this event; all open ones unless you say.")
@click.option("--yes", is_flag=True, help="Sign without being asked; the difference is shown all the same.")
@json_option
@pass_app
@headland_errors
def sign(app: App, *, name: str, wanted: str | None, yes: bool, as_json: bool) -> None:
    """Look at what open events change, and sign them."""
    signing_steps.sign_open(app, name, wanted, yes=yes, as_json=as_json)


@release.command()
@click.option("--event", "wanted", help="Only this event.")
@click.option("--again", is_flag=True, help="Send everything in force to a server that was restored from a backup.")
@json_option
@pass_app
@headland_errors
def push(app: App, *, wanted: str | None, again: bool, as_json: bool) -> None:
    """Upload artifacts, then publish what has all its signatures."""
    signing_steps.push_open(app, wanted, again=again, as_json=as_json)


@release.command()
@click.option("--event", "wanted", help="The event, when several are open.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_app
@headland_errors
def cancel(app: App, *, wanted: str | None, yes: bool, as_json: bool) -> None:
    """Drop an open event. What was signed stays signed: drop it before the threshold is reached."""
    signing_steps.cancel(app, wanted, yes=yes, as_json=as_json)


@release.command()
@click.argument("versions", nargs=-1, metavar="VERSION...")
@click.option("--product", help="Needed when there are several.")
@click.option("--floor", type=click.IntRange(min=1), help="Machines refuse releases with a counter below this.")
@json_option
@pass_app
@headland_errors
def delist(app: App, *, versions: tuple[str, ...], product: str | None, floor: int | None, as_json: bool) -> None:
    """Propose to revoke releases: no machine that has seen it installs them any more."""
    if not versions and floor is None:
        raise StateError("name a version, or a --floor")
    workspace = app.workspace()
    name = pick_product(workspace, product)
    proposal = proposals.delist(workspace.need("image"), name, versions, floor, app.now())
    with workspace.alone():
        event = open_event(workspace, proposal, app.now())
    emit(as_json, signing_steps.view(event), signing_steps.next_step(event))


@release.command()
@click.argument("signals", nargs=-1, metavar="[SIGNAL]...")
@click.option("--skippable", multiple=True, metavar="SIGNAL", help="A technician may force an update in spite of it.")
@click.option("--product", help="Needed when there are several.")
@json_option
@pass_app
@headland_errors
def interlocks(
    app: App, *, signals: tuple[str, ...], skippable: tuple[str, ...], product: str | None, as_json: bool
) -> None:
    """Propose which machine signals (such as driving) must be off before anything is activated; replaces the list.

    And which of these, or of those that an assignment asks for, a technician may skip: none unless you say.
    """
    workspace = app.workspace()
    name = pick_product(workspace, product)
    proposal = proposals.set_interlocks(workspace.need("image"), name, signals, skippable, app.now())
    with workspace.alone():
        event = open_event(workspace, proposal, app.now())
    emit(as_json, signing_steps.view(event), signing_steps.next_step(event))


@release.command("list")
@click.option("--product", help="Needed when there are several.")
@json_option
@pass_app
@headland_errors
def list_releases(app: App, *, product: str | None, as_json: bool) -> None:
    """What the product's current role lists."""
    workspace = app.workspace()
    name = pick_product(workspace, product)
    image = workspace.need("image")
    listed = read_release_list(image, name)
    table = Table(title=f"Releases of {name}")
    for column in ("version", "counter", "era", "manifest"):
        table.add_column(column)
    for each in listed:
        table.add_row(each.version, str(each.release_counter), str(each.era), each.manifest_sha256[:16])
    role = parse(image.delegated[name], Targets, name).signed
    events = [event.id for event in open_events(workspace)]
    content = {"product": name, "role_version": role.version, "releases": [as_dict(e) for e in listed], "open": events}
    emit(as_json, content, table)


@release.command()
@click.argument("version", required=False)
@click.option("--product", help="Needed when there are several.")
@click.option("--event", "wanted", help="An open event, when several are open.")
@json_option
@pass_app
@headland_errors
def show(app: App, *, version: str | None, product: str | None, wanted: str | None, as_json: bool) -> None:
    """A published release with who signed it; without a version, the open event with its signatures."""
    workspace = app.workspace()
    if version is None:
        event = find_event(workspace, wanted)
        changes = differences(workspace, event, app.now())
        signing_steps.show_changes(event, changes)
        table = signing_steps.needs_table(event.needs(), f"Signatures of {event.id}")
        emit(as_json, signing_steps.view(event, changes), table)
        return
    name = pick_product(workspace, product)
    first, listed = _first_listing(workspace, name, version)
    still = {each.version for each in read_release_list(workspace.need("image"), name)}
    data = workspace.read_blob(listed.manifest_sha256, limits.MANIFEST_BYTES)
    manifest = parse_manifest(data)
    signers = _signers(workspace, first)
    content = {
        **as_dict(listed),
        "listed": version in still,
        "role_version": first.signed.version,
        "signed_by": signers,
        "untried": untried_reason(manifest),
        "manifest": msgspec.to_builtins(manifest),
    }
    table = Table(title=f"{name} {version}", show_header=False)
    table.add_row("manifest", listed.manifest_sha256)
    table.add_row("counter", f"{listed.release_counter} (era {listed.era})")
    table.add_row("listed", "yes" if version in still else "no: delisted")
    table.add_row("signed by", f"{', '.join(signers)} (version {first.signed.version} of the role)")
    for model in manifest.models:
        for variant in model.variants:
            kind = f"{variant.runtime} on {variant.accelerator}, {variant.artifact.length_bytes:,} bytes"
            table.add_row(f"model {model.name}", f"{variant.name}: {kind}")
    for container in manifest.containers:
        (first_line, _), *lines = container_lines(container)
        name_of, _, command = first_line.partition(": ")
        shown = [command, *(text.removeprefix("  ") for text, _ in lines)]
        table.add_row(name_of, "\n".join(map(printable, shown)))
    for key, value in msgspec.to_builtins(manifest.lineage).items():
        table.add_row(key, str(value))
    if content["untried"]:
        table.add_row(Text("not tried", style="bold red"), str(content["untried"]))
    emit(as_json, content, table)


def pick_product(workspace: Workspace, wanted: str | None) -> str:
    """The named product, or the only one.

    Raises:
        StateError: Not clear which, or none of that name.
    """
    image = workspace.need("image")
    if wanted is None and len(image.delegated) == 1:
        return next(iter(image.delegated))
    if wanted is None:
        raise StateError(
            f"there are several products: {', '.join(sorted(image.delegated))}", hint="name one: --product"
        )
    proposals.product_role(image, wanted)
    return wanted


def as_dict(listed: ListedRelease) -> dict[str, object]:
    """A listed release with every field, for programs."""
    return {field: getattr(listed, field) for field in listed.__struct_fields__}


def _first_listing(workspace: Workspace, product: str, version: str) -> tuple[Metadata[Targets], ListedRelease]:
    """The oldest published state of the role that lists the release: those who signed it signed this release."""
    for metadata in workspace.history(product):
        for listed in releases_of(product, metadata.signed):
            if listed.version == version:
                return metadata, listed
    raise StateError(f"{product} {version} was never published", hint="`headland release list`")


def _signers(workspace: Workspace, metadata: Metadata[Targets]) -> list[str]:
    found = []
    for name, manager in Register(workspace).all().items():
        for key in manager.all_keys():
            try:
                key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
            except (KeyError, UnverifiedSignatureError):
                continue
            found.append(name)
    return found
