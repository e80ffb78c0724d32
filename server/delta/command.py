"""`scripts/delta`: makes, applies and describes patches between any two files.

To apply takes little memory, so what only the others need is imported by them.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from server.delta.applying import Progress as Report
from server.delta.applying import apply_patch
from signing.console import emit, headland_errors, json_option, progress_console


class _Target(click.Path):
    """A file that is to be written. Its folder is looked at first: work that nobody could keep is not begun."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, context)))
        folder = path.absolute().parent
        if not folder.is_dir():
            make = f"mkdir -p {shlex.quote(str(folder))}"
            self.fail(f"there is no folder {folder}; make it first: {make}", param, context)
        if not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"you may not write into the folder {folder}; name another one", param, context)
        return path


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TARGET = _Target()


@click.group()
def main() -> None:
    """Deltas between any two files: PATCH holds what would travel, index included.

    Exit codes: 0 done; 1 a file cannot be read or written; 2 wrong usage; 4 refused: PATCH is damaged, hostile or made
    for another OLD.
    """


@main.command("encode")
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.argument("patch", type=_TARGET)
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="That code side by side.")
@click.option("--seconds", type=click.FloatRange(0), help="For looking for what resembles what; the rest goes simply.")
@json_option
@headland_errors
def encode_command(*, old: Path, new: Path, patch: Path, processes: int, seconds: float | None, as_json: bool) -> None:
    """Writes PATCH, which makes NEW from OLD."""
    from server.delta.encode import EncodeOptions
    from server.delta.writing import write_patch

    options = EncodeOptions(processes=processes, seconds=seconds)
    with _progress("encode", as_json) as report:
        made = write_patch(old, new, patch, options=options, progress=report)
    patch_bytes = patch.stat().st_size
    emit(
        as_json,
        {
            "patch_bytes": patch_bytes,
            "payload_bytes": made.payload_bytes,
            "index_bytes": len(made.index or b""),
            "output_bytes": made.output_bytes,
            "base_sha256": made.base_sha256,
            "output_sha256": made.output_sha256,
            "payload_sha256": made.payload_sha256,
        },
        f"{patch}: {patch_bytes:,} bytes for {made.output_bytes:,}",
    )


@main.command("apply")
@click.argument("old", type=_FILE)
@click.argument("patch", type=_FILE)
@click.argument("out", type=_TARGET)
@json_option
@headland_errors
def apply_command(old: Path, patch: Path, out: Path, as_json: bool) -> None:
    """Makes OUT from OLD and PATCH. OUT is there when all its bytes are right, or not at all."""
    with _progress("apply", as_json) as report:
        done = apply_patch(old, patch, out, progress=report)
    emit(
        as_json,
        {"output_bytes": done.output_bytes, "output_sha256": done.output_sha256, "groups": done.groups},
        f"{out}: {done.output_bytes:,} bytes, sha256 {done.output_sha256}",
    )


@main.command("info")
@click.argument("patch", type=_FILE)
@json_option
@headland_errors
def info_command(patch: Path, as_json: bool) -> None:
    """Says what PATCH is made of: segments, groups, and bytes by kind."""
    from rich.table import Table

    from server.delta.inspect import describe

    found = describe(patch)
    table = Table(title=f"{patch}: {found.patch_bytes:,} bytes give {found.output_bytes:,}, in {found.groups} groups")
    table.add_column("kind")
    for column in ("streams", "output bytes", "patch bytes"):
        table.add_column(column, justify="right")
    for name, kind in found.kinds.items():
        figures = (kind.streams, kind.output_bytes, kind.patch_bytes)
        table.add_row(name, *(f"{figure:,}" for figure in figures))
    emit(as_json, found, table)


@contextmanager
def _progress(what: str, as_json: bool) -> Iterator[Report]:
    if as_json or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress_console(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    main(prog_name="scripts/delta")
