"""`headland kit`: field kits, built onto a stick, signed by managers, and looked at."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from protocol.errors import LinkError, Refused, StateError
from protocol.ids import parse_name
from protocol.kits import BLOBS_FOLDER, LIFETIME_DAYS
from protocol.objects import Conditions
from signing.commands.activation import activation_lines, activation_options, parse_moment, parse_window, show_moment
from signing.commands.app import App, UploadBars, pass_app
from signing.commands.budget import parse_size
from signing.commands.release import pick_product
from signing.console import emit, headland_errors, json_option, progress_console
from signing.differences import printable
from signing.following import follow_ca
from signing.keys import open_signer, resolve
from signing.kits.bringing import TakenPiece, bring_home
from signing.kits.brought_shown import PieceBar, brought_json, brought_table, exit_code
from signing.kits.building import write_kit
from signing.kits.checking import KitReport, check_kit, find_kits, parse_targets
from signing.kits.choosing import Chosen, choose
from signing.kits.kit_file import (
    KitObject,
    Signatures,
    add_signature,
    drop_what_does_not_hold,
    put_kit,
    signatures,
    signing_key,
)
from signing.kits.offer import KitQuestion
from signing.kits.planning import CLUSTER_BYTES
from signing.kits.preparing import KitRequest, Prepared, prepare
from signing.kits.receipts import put_receipts
from signing.managers import Register
from signing.server_client import Operator
from signing.stick import stick_errors, stick_folder
from signing.workspace import Workspace

WAIT_S: Final = 2.0
WAIT_TIMES: Final = 300
UNTRUSTED_CODE: Final = 7
"""Exit code of `verify` when a kit is whole, but no workspace was there to say whose it is."""


@click.group()
def kit() -> None:
    """Field kits: sticks for machines that no signal reaches."""


@kit.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--product", help="Needed when there are several.")
@click.option("--release", "versions", multiple=True, help="A listed version; the newest unless you say.")
@click.option("--group", "groups", multiple=True, help="For the machines that are in it now.")
@click.option("--machine", "machines", multiple=True, help="For this machine. Every machine unless you say.")
@click.option("--fit", help="All of it takes no more, such as 4GB; patches are left out first.")
@click.option(
    "--days",
    type=click.IntRange(1, LIFETIME_DAYS),
    default=LIFETIME_DAYS,
    show_default=True,
    help="How long it is good.",
)
@activation_options
@click.option("--as", "name", help="Sign it too, as this manager.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.option("--yes", is_flag=True, help="Write, and sign, without being asked.")
@json_option
@pass_app
@headland_errors
def build(
    app: App,
    *,
    out: Path,
    product: str | None,
    versions: tuple[str, ...],
    groups: tuple[str, ...],
    machines: tuple[str, ...],
    fit: str | None,
    days: int,
    not_before: str | None,
    activate_before: str | None,
    window: str | None,
    name: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Build a kit onto a stick, or into any folder. The same again goes on where it broke off."""
    workspace = app.workspace()
    request = KitRequest(
        question=KitQuestion(
            product=pick_product(workspace, product),
            releases=versions,
            machines=tuple(parse_name(each, "device") for each in machines),
            groups=tuple(parse_name(each, "group") for each in groups),
        ),
        days=days,
        conditions=Conditions(
            not_before_ms=parse_moment(not_before),
            activate_before_ms=parse_moment(activate_before),
            window_utc=parse_window(window),
        ),
        fit_bytes=parse_size(fit) if fit is not None else None,
        cluster_bytes=_cluster_bytes(out),
    )
    console = progress_console()
    with app.server() as server:
        follow_ca(workspace, server)
        prepared = prepare(workspace, server, request, app.now(), _no_waiting if dry_run else _Waiting())
        if name is not None:
            signing_key(prepared.director, Register(workspace), name)  # said before anything is written
        with stick_errors(out):
            chosen = choose(out, prepared)
        made = chosen.kit
        for line in plan_lines(prepared, chosen):
            console.print(printable(line), markup=False, soft_wrap=True)
        free = _free_bytes(out)
        if dry_run:
            emit(as_json, {"dry_run": True, "plan": plan_view(prepared, chosen, free)}, "nothing was written")
            return
        _check_room(prepared, chosen, free)
        if not yes:
            click.confirm(f"Write it to {out}?", abort=True, err=True)
        with stick_errors(out), UploadBars() as meter:
            write_kit(prepared, chosen, workspace, server, meter)
        folder = chosen.path
        if name is not None:
            _sign(app, workspace, made, name)
        held = signatures(made, prepared.director, Register(workspace))
        with stick_errors(out), stick_folder(folder) as stick:
            put_kit(stick, made, met=held.met)
        receipts, said = _receipts(server, prepared, out)
    content = {"kit": chosen.name, "path": str(folder), "ready": held.met, "receipts": receipts, **_signed_view(held)}
    emit(as_json, content | {"plan": plan_view(prepared, chosen, free)}, f"{folder}\n{_next_step(held, folder)}{said}")


@kit.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--as", "name", required=True, help="The manager who signs.")
@click.option("--yes", is_flag=True, help="Sign without being asked; what is in it is shown all the same.")
@json_option
@pass_app
@headland_errors
def sign(app: App, *, path: Path, name: str, yes: bool, as_json: bool) -> None:
    """Look at a kit (or at all drafts on a stick), and sign it. Signed by enough, machines take it. The exit code is 4
    when one of several cannot be read."""
    workspace = app.workspace()
    director = parse_targets(workspace)
    register = Register(workspace)
    signing_key(director, register, name)
    console = progress_console()
    done: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    lines = []
    folders = find_kits(path)
    for folder in folders:
        report = check_kit(folder, workspace, app.now(), _nothing, blobs=False)
        if report.kit is None or not report.draft:
            why = "; ".join(report.faults) or "it is signed by enough"
            if len(folders) == 1:
                raise StateError(f"{folder.name} is no draft: {why}")
            left.append({"kit": folder.name, "readable": report.kit is not None, "why": why})
            lines.append(f"{folder.name} was left as it is: {why}")
            continue
        for line in kit_lines(report):
            console.print(printable(line), markup=False, soft_wrap=True)
        if report.faults:
            raise StateError(
                f"{folder.name} is not as it should be: {report.faults[0]}", hint="build it again: that repairs it"
            )
        if not yes and not click.confirm(f"Sign {folder.name} as {name}?", err=True):
            left.append({"kit": folder.name, "readable": True, "why": "it was not confirmed"})
            lines.append(f"{folder.name} was left as it is: not confirmed")
            continue
        drop_what_does_not_hold(report.kit, director)
        _sign(app, workspace, report.kit, name)
        held = signatures(report.kit, director, register)
        with stick_errors(path), stick_folder(folder) as stick:
            put_kit(stick, report.kit, met=held.met)
        done.append({"kit": folder.name, "path": str(folder), "ready": held.met, **_signed_view(held)})
        lines.append(f"{folder.name}: {_next_step(held, folder)}")
    emit(as_json, {"signed_by": name, "kits": done, "left": left}, _text(lines))
    if not all(each["readable"] for each in left):
        sys.exit(Refused.exit_code)


@kit.command("import")
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--keep", is_flag=True, help="Remove no piece from the stick.")
@json_option
@pass_app
@headland_errors
def import_(app: App, *, path: Path, keep: bool, as_json: bool) -> None:
    """Bring home what machines put on the stick at PATH: upload it to the server.

    Each result counts once, however often and in whatever order sticks come. Receipts for the machines are written to
    the stick, and what is wholly taken in is removed from it. Broken off, the same again goes on. The exit code is 4
    when a piece was not taken.
    """
    workspace = app.workspace()
    with app.server() as server:
        follow_ca(workspace, server)
        with PieceBar(shown=os.isatty(2)) as bar:
            found = bring_home(
                path, lambda data: server.send("/kits/results", data, TakenPiece), keep=keep, progress=bar.at
            )
    emit(as_json, brought_json(found), brought_table(found))
    sys.exit(exit_code(found))


@kit.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
@pass_app
@headland_errors
def verify(app: App, *, path: Path, as_json: bool) -> None:
    """Check every byte of a kit, or of all on a stick, as a machine would. The exit code is 4 when one is bad, 7 when
    they are whole but there is no workspace to say whose they are."""
    workspace = _workspace(app)
    reports = []
    with UploadBars() as meter:
        for folder in find_kits(path):
            advance = meter.start(folder.name, _lengths(folder))
            reports.append(check_kit(folder, workspace, app.now(), advance))
    lines = [line for report in reports for line in kit_lines(report)]
    if workspace is None:
        lines.append("There is no workspace here: this says that they are whole, not who made them.")
    emit(as_json, {"trusted": workspace is not None, "kits": [kit_view(each) for each in reports]}, _text(lines))
    if any(report.faults or report.draft for report in reports):
        sys.exit(Refused.exit_code)
    if workspace is None:
        sys.exit(UNTRUSTED_CODE)


@kit.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
@pass_app
@headland_errors
def show(app: App, *, path: Path, as_json: bool) -> None:
    """What is in a kit, or in all on a stick. Blobs are not read: `verify` does."""
    workspace = _workspace(app)
    reports = [check_kit(folder, workspace, app.now(), _nothing, blobs=False) for folder in find_kits(path)]
    lines = [line for report in reports for line in kit_lines(report)]
    emit(as_json, {"kits": [kit_view(each) for each in reports]}, _text(lines))


def plan_lines(prepared: Prepared, chosen: Chosen) -> list[str]:
    """The plan for people."""
    plan, offer, out = prepared.plan, prepared.offer, chosen.stick
    lines = [f"A kit of {offer.product} for {_for_whom(offer.machines)}, good until {chosen.kit.expires:%Y-%m-%d}:"]
    for release in plan.releases:
        full = sum(step.method == "full" for step in release.steps)
        lines.append(f"  {release.release}: {full} artifacts in full, {len(release.steps) - full} patches")
    for offered in offer.releases:
        lines += [f"  ! {offered.release} does not fit {name}: {why}" for name, why in sorted(offered.unsuited.items())]
    if offer.unseen and offer.machines is not None:
        lines.append(f"  all variants are in: {', '.join(offer.unseen[:5])} never said what hardware they have")
    lines.append(
        f"  {len(plan.blobs)} blobs: {plan.bytes_of('full'):,} bytes in full, {plan.bytes_of('delta'):,} of patches, "
        f"{plan.bytes_of('manifest') + sum(prepared.metadata):,} of manifests and metadata"
    )
    if plan.left_out:
        lines.append(f"  left out to fit: {len(plan.left_out)} patches; what they are for is there in full")
    free = _free_bytes(out)
    room = (
        f"{free:,} are free on {out}, besides what is there already"
        if free is not None
        else f"{out} does not say how many are free"
    )
    lines.append(f"  about {prepared.needs_bytes:,} bytes; {room}")
    if chosen.word:
        lines.append(f"  {chosen.word}")
    lines.append("  no file is larger than 2 GiB: it fits on FAT32")
    return lines


def plan_view(prepared: Prepared, chosen: Chosen, free_bytes: int | None) -> dict[str, Any]:
    """The plan for programs."""
    plan = prepared.plan
    return {
        "product": prepared.offer.product,
        "machines": prepared.offer.machines,
        "unseen": prepared.offer.unseen,
        "releases": [
            {
                "release": release.release,
                "manifest": release.manifest.sha256,
                "full": sum(step.method == "full" for step in release.steps),
                "deltas": sum(step.method == "delta" for step in release.steps),
            }
            for release in plan.releases
        ],
        "unsuited": {each.release: each.unsuited for each in prepared.offer.releases},
        "blobs": len(plan.blobs),
        "full_bytes": plan.bytes_of("full"),
        "delta_bytes": plan.bytes_of("delta"),
        "manifest_bytes": plan.bytes_of("manifest"),
        "metadata_bytes": sum(prepared.metadata),
        "needs_bytes": prepared.needs_bytes,
        "free_bytes": free_bytes,
        "left_out": len(plan.left_out),
        "kit": chosen.name,
        "goes_on": chosen.goes_on,
        "expires": chosen.kit.expires.isoformat(),
    }


def kit_lines(report: KitReport) -> list[str]:
    """A kit for people."""
    lines = [f"{report.name}{' (a draft: no machine takes it)' if report.draft else ''}"]
    if report.kit is not None:
        body = report.kit.body
        lines.append(f"  {body.product}, for {_for_whom(body.machines)}")
        lines.append(f"  made at {show_moment(body.created_ms)}, good until {report.kit.expires:%Y-%m-%d}")
        for release in body.releases:
            deltas = sum(step.method == "delta" for step in release.steps)
            size = sum(step.travels_bytes() for step in release.steps)
            lines.append(
                f"  {release.release} ({release.manifest.sha256[:12]}): {len(release.steps) - deltas} artifacts in "
                f"full, {deltas} patches, {size:,} bytes"
            )
        lines += [f"  {line}" for line in activation_lines(body.conditions)]
    if report.signed is not None:
        who = ", ".join(report.signed.signed) or "nobody"
        lines.append(f"  signed by {who}; {report.signed.threshold} must")
    lines += [f"  ! {fault}" for fault in report.faults] + [f"  {note}" for note in report.notes]
    return lines


def kit_view(report: KitReport) -> dict[str, Any]:
    """A kit for programs."""
    kit = report.kit
    return {
        "kit": report.name,
        "draft": report.draft,
        "whole": not report.faults,
        "trusted": report.trusted,
        "faults": report.faults,
        "notes": report.notes,
        "expires": kit.expires.isoformat() if kit else None,
        "body": msgspec.to_builtins(kit.body) if kit else None,
        **(_signed_view(report.signed) if report.signed else {}),
    }


def _free_bytes(out: Path) -> int | None:
    """What may be written; None where the file system does not say (a driver of FAT that counts nothing)."""
    usage = shutil.disk_usage(out)
    return usage.free if usage.total else None


def _receipts(server: Operator, prepared: Prepared, out: Path) -> tuple[int | None, str]:
    """Puts them on the stick: how many, and a word. The kit is whole before, and stays so when they fail (None)."""
    try:
        count = put_receipts(server, out, prepared.offer.product, prepared.offer.machines)
    except (LinkError, OSError) as error:
        return None, f"\nreceipts for what came home by stick are not all on it: {error}; the same again fetches them"
    return count, f"\n{count} receipts for what came home by stick are on it too" if count else ""


def _cluster_bytes(out: Path) -> int:
    """What the stick rounds each file up to."""
    found = os.statvfs(out)
    return max(found.f_frsize, 512) if found.f_blocks else CLUSTER_BYTES


def _lengths(kit: Path) -> int:
    """Bytes of all that lies among a kit's blobs. Links count for nothing, and lead nowhere."""
    return sum(each.lstat().st_size for each in (kit / BLOBS_FOLDER).glob("*"))


def _check_room(prepared: Prepared, chosen: Chosen, free_bytes: int | None) -> None:
    """Says before anything is written what cannot fit: what lies there of this kit was begun before."""
    if free_bytes is None:
        return
    begun = _lengths(chosen.path)
    short = prepared.needs_bytes - begun - free_bytes
    if short > 0:
        raise StateError(
            f"{chosen.stick} has {short:,} bytes too little for this kit",
            hint=f"make room, or leave patches out: --fit {max(free_bytes + begun, 1)}",
        )


class _Waiting:
    """Waits while the server makes payloads, and says so."""

    def __init__(self) -> None:
        self._left = WAIT_TIMES

    def __call__(self, count: int) -> bool:
        self._left -= 1
        progress_console().print(f"the server is still making {count} payloads", style="dim")
        time.sleep(WAIT_S)
        return self._left > 0


def _no_waiting(count: int) -> bool:
    return False


def _nothing(count: int) -> None:
    """Nobody looks at progress."""


def _sign(app: App, workspace: Workspace, kit: KitObject, name: str) -> None:
    register = Register(workspace)
    director = parse_targets(workspace)
    key = signing_key(director, register, name)
    signatures(kit, director, register)  # nobody counts twice
    uri = resolve(register.uri(name, key.keyid), workspace.path)
    add_signature(kit, open_signer(uri, key, lambda secret: app.secret(f"{secret} of {name}")))


def _signed_view(held: Signatures) -> dict[str, Any]:
    return {"threshold": held.threshold, "signed": held.signed, "missing": held.missing}


def _next_step(held: Signatures, folder: Path) -> str:
    if held.met:
        return f"signed by {', '.join(held.signed)}: machines take it. `headland kit verify` reads all of it once more."
    short = held.threshold - len(held.signed)
    return f"a draft: {short} more of {', '.join(held.missing)} must sign: headland kit sign {folder} --as NAME"


def _for_whom(machines: Sequence[str] | None) -> str:
    if machines is None:
        return "every machine"
    more = f" and {len(machines) - 5} more" if len(machines) > 5 else ""
    return f"{len(machines)} machine{'' if len(machines) == 1 else 's'}: {', '.join(machines[:5])}{more}"


def _workspace(app: App) -> Workspace | None:
    """This computer's workspace, if it has one with repositories in it."""
    try:
        workspace = app.workspace()
        workspace.need("image")
    except StateError:
        return None
    return workspace


def _text(lines: list[str]) -> str:
    return "\n".join(printable(line) for line in lines)
