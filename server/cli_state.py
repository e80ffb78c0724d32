"""What the commands that work on a state folder share: the option, and the folder opened with its catalog."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # a command that only prints its help loads no database
    from server.founding import Layout
    from server.settings import ServerSettings
    from server.storage.catalog import Catalog

STATE = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    envvar="HEADLAND_SERVER_STATE",
    show_envvar=True,
    help="The server's state folder.",
)


@dataclass(frozen=True)
class Opened:
    """A state folder that `init` made, whether or not a server runs on it."""

    layout: "Layout"
    settings: "ServerSettings"
    catalog: "Catalog"


@contextmanager
def opened(state: Path) -> Iterator[Opened]:
    """Opens a state folder for as long as the block lasts.

    Raises:
        StateError: It is none, or its catalog is of another version: an older server may be running on it.
    """
    from server.founding import catalog_url, open_layout
    from server.settings import read_settings
    from server.storage.catalog import Catalog

    layout = open_layout(state)
    settings = read_settings(state)
    catalog = Catalog(catalog_url(settings, state), migrate=False)
    try:
        yield Opened(layout, settings, catalog)
    finally:
        catalog.close()
