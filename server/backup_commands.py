"""`headland-server backup`, `restore` and `unhold`: what they ask and say; the work is done elsewhere."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from protocol.errors import StateError
from server.cli_state import STATE, opened
from server.clock import system_now_ms
from signing.console import emit, headland_errors, json_option, progress_console

PASSPHRASE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@STATE
@click.option("--keep", type=click.IntRange(min=1), help="Remove sets until so many are left; all stay unless you say.")
@click.option("--link", is_flag=True, help="Give blobs a second name instead of a copy, on the same disk.")
@click.option("--check", is_flag=True, help="Hash what was copied before, and copy again what is damaged.")
@click.option("--passphrase-file", type=PASSPHRASE, help="Seal keys, tokens and settings under its first line.")
@json_option
@headland_errors
def backup(
    folder: Path,
    *,
    state: Path,
    keep: int | None,
    link: bool,
    check: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Add a set to the backup in FOLDER, also while the server runs. Blobs that are there are not copied again.

    The folder is a secret: it holds keys. A set is whole once it has its name; one that was cut is never taken.
    """
    from server.backup import BackupOptions, back_up
    from signing.sealed_file import passphrase_in

    passphrase = None if passphrase_file is None else passphrase_in(passphrase_file)
    options = BackupOptions(passphrase=passphrase, link=link, check=check, keep=keep or 0)
    with Bars() as bars:
        done = back_up(state, folder, options, bars, now_ms=system_now_ms, random=os.urandom)
    contents = done.contents
    said = {
        "set": done.name,
        "folder": str(folder),
        "created_ms": contents.created_ms,
        "blobs": contents.blobs,
        "blob_bytes": contents.blob_bytes,
        "copied": done.copied,
        "copied_bytes": done.copied_bytes,
        "left_out": contents.left_out,
        "lacking": done.lacking,
        "damaged": done.damaged,
        "removed": done.removed,
    }
    table = Table("what", "value", show_header=False, box=None)
    table.add_row("set", done.name)
    table.add_row("blobs", f"{contents.blobs}, of which {done.copied} ({done.copied_bytes:,} bytes) were copied now")
    for text in contents.left_out:
        table.add_row(Text("not in it", style="bold"), text)
    for title, digests in (("copied again: damaged", done.damaged), ("lacking on the server", done.lacking)):
        if digests:
            table.add_row(title, f"{len(digests)} blobs, such as {digests[0]}")
    if done.removed:
        table.add_row("removed", ", ".join(done.removed))
    emit(as_json, said, table)
    if done.lacking:
        raise StateError(
            f"{len(done.lacking)} blobs that the catalog names are missing or damaged on the server itself",
            hint="`headland release push --again` brings them back; the set is whole but for them",
        )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@STATE
@click.option("--set", "name", default="", help="Which moment; the newest unless you say.")
@click.option("--revoke", multiple=True, metavar="DEVICE", help="A machine revoked after the backup; repeatable.")
@click.option("--passphrase-file", type=PASSPHRASE, help="Its first line opens a sealed set.")
@json_option
@headland_errors
def restore(
    folder: Path, *, state: Path, name: str, revoke: tuple[str, ...], passphrase_file: Path | None, as_json: bool
) -> None:
    """Make a new state folder out of the backup in FOLDER. Every hash is checked; nothing is overwritten.

    What the backup cannot know has come after it: read what this command prints.
    """
    import secrets

    from server.restoring import RestoreOptions, restore
    from signing.sealed_file import passphrase_in

    opens = None if passphrase_file is None else lambda: passphrase_in(passphrase_file)
    with Bars() as bars:
        done = restore(folder, state, RestoreOptions(name, opens, revoke), bars, lambda: secrets.token_hex(16))
    contents = done.contents
    warnings = [
        "Machines that were revoked since are not revoked any more. Name them: restore again with --revoke NAME, or "
        "`headland device revoke NAME` before machines call.",
        "What managers signed since is missing: nothing is published before `headland release push --again`.",
        "Rollouts are paused, and enrolment tokens made before are void. What was halted since is not known here.",
        "Machines that enrolled since are taken back by their certificate; nothing is assigned to them before "
        "`headland device readmit NAME`.",
    ]
    if done.unread:
        unread = "; ".join(done.unread)
        warnings.append(f"Newer sets could not be read, and a newer CA in them is missing: {unread}.")
    warnings.append(
        "If the CA was replaced after the backup, and ca/ as it was last is anywhere, put it in the place of this one "
        "now: machines that enrolled since then trust nothing else, and must be enrolled anew without it."
    )
    if done.lost:
        warnings.append(
            f"{len(done.lost)} blobs did not come back, such as {done.lost[0]}: the same push brings them again."
        )
    if done.unknown:
        warnings.append(f"Revoked by name only, for the backup does not know them: {', '.join(done.unknown)}.")
    said = {
        "state": str(state),
        "set": done.name,
        "keys_from": done.keys_from,
        "backup_ms": contents.created_ms,
        "blobs": done.blobs,
        "lost": done.lost,
        "left_out": contents.left_out,
        "revoked": revoke,
        "unknown": done.unknown,
        "warnings": warnings,
    }
    when = datetime.fromtimestamp(contents.created_ms / 1000, UTC)
    table = Table("what", "value", show_header=False, box=None)
    table.add_row("restored", f"{done.name}, a moment of {when:%Y-%m-%d %H:%M:%S} UTC, to {state}")
    table.add_row("blobs", str(done.blobs))
    if done.keys_from != done.name:
        table.add_row("CA and online keys", f"of the newer set {done.keys_from}")
    for text in contents.left_out:
        table.add_row(Text("not in it", style="bold"), text)
    for text in warnings:
        table.add_row(Text("mind", style="bold red"), text)
    table.add_row("next", f"headland-server run --state {state}")
    emit(as_json, said, table)


@click.command()
@STATE
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@headland_errors
def unhold(state: Path, *, yes: bool, as_json: bool) -> None:
    """Let a restored server publish what it has, although the managers did not push again.

    By your word: a machine that trusts something newer refuses what is published, until it comes back.
    """
    from server import restored

    with opened(state) as place:
        with place.catalog.read() as session:
            missing = restored.missing(session)
        for each in missing:
            progress_console().print(f"missing: {each.file}, on {', '.join(each.devices)}", markup=False)
        if not yes:
            click.confirm("Publish without waiting for more?", abort=True, err=True)
        with place.catalog.write() as session:
            restored.resume(session, "the operator of the server", system_now_ms())
    emit(as_json, {"held": False, "missing": missing}, "a server that runs publishes within a minute")


class Bars:
    """Shows how a copy goes, as bars on stderr; implements `server.backup.Meter`."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, console=progress_console(), disable=not os.isatty(2))

    def start(self, what: str, total_bytes: int) -> Callable[[int], None]:
        """Adds a bar."""
        task = self._progress.add_task(what, total=total_bytes)

        def advance(length: int) -> None:
            self._progress.update(task, advance=length)

        return advance

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
