"""`headland-server kit`: what a stick brings home from machines."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Final

import click

from server.cli_keys import online_secret
from server.cli_state import STATE, opened
from server.clock import system_now_ms
from signing.console import emit, headland_errors, json_option

AT_THE_SERVER: Final = "the operator of the server"


@click.group()
def kit() -> None:
    """Field kits: what a technician's stick brings home."""


@kit.command("import")
@STATE
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--keep", is_flag=True, help="Remove no piece from the stick.")
@json_option
@headland_errors
def import_(state: Path, path: Path, *, keep: bool, as_json: bool) -> None:
    """Take in what machines put on the stick at PATH, beside a running server or without one.

    Each result counts once, however often and in whatever order sticks come. Receipts for the machines are written to
    the stick, and what is wholly taken in is removed from it. Broken off, the same again goes on. The exit code is 4
    when a piece was not taken.
    """
    from server.app import open_pieces
    from signing.kits.bringing import bring_home
    from signing.kits.brought_shown import PieceBar, brought_json, brought_table, exit_code

    with opened(state) as at:
        pieces = open_pieces(state, at.catalog, system_now_ms, online_secret)
        with PieceBar(shown=os.isatty(2)) as bar:
            found = bring_home(path, partial(pieces.take, who=AT_THE_SERVER), keep=keep, progress=bar.at)
    emit(as_json, brought_json(found), brought_table(found))
    sys.exit(exit_code(found))
