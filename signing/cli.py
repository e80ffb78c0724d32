"""`headland`: the release manager's tool. The composition root; the commands are in `signing.commands`."""

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from signing.checker import SubprocessChecker
from signing.commands.app import App
from signing.commands.audit import audit
from signing.commands.device import device
from signing.commands.keys import keys
from signing.commands.kit import kit
from signing.commands.patch import patch
from signing.commands.permit import permit
from signing.commands.release import release
from signing.commands.rollout import rollout
from signing.commands.technicians import technicians
from signing.sealed_file import SCRYPT_N
from signing.server_client import ServerClient


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HEADLAND_WORKSPACE",
    default=Path("headland-workspace"),
    show_default=True,
    show_envvar=True,
    help="The folder that the managers share.",
)
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="HEADLAND_PASSPHRASE_FILE",
    show_envvar=True,
    help="For programs: its first line is the passphrase or PIN. People are asked.",
)
@click.pass_context
def main(context: click.Context, workspace: Path, passphrase_file: Path | None) -> None:
    """Build, sign and stage releases, and watch them reach the machines."""
    if context.obj is None:
        context.obj = App(
            workspace_path=workspace,
            passphrase_file=passphrase_file,
            now=lambda: datetime.now(UTC),
            random=os.urandom,
            checker=SubprocessChecker(),
            key_cost=SCRYPT_N,
            connect=ServerClient,
            environment=os.environ,
        )


for group in (keys, release, rollout, device, patch, kit, technicians, permit, audit):
    main.add_command(group)
