"""The option that each command of a machine takes."""

from pathlib import Path
from typing import Final

import click

DEFAULT_STATE: Final = "/var/lib/headland-device"

state_option = click.option(
    "--state",
    envvar="HEADLAND_DEVICE_STATE",
    show_envvar=True,
    default=DEFAULT_STATE,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The machine's state folder.",
)
