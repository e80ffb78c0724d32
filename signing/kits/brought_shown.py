"""What came home by stick, for people and programs: the same from the manager's tool and from the server's command."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from protocol.errors import Refused
from signing.console import progress_console
from signing.kits.bringing import Brought


class PieceBar:
    """A bar on stderr that counts pieces."""

    def __init__(self, *, shown: bool) -> None:
        columns = (TextColumn("pieces"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, console=progress_console(), disable=not shown)
        self._task = self._progress.add_task("pieces", total=None)

    def at(self, done: int, of: int) -> None:
        """So many are done."""
        self._progress.update(self._task, completed=done, total=of)

    def __enter__(self) -> "PieceBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def brought_json(found: Mapping[str, Brought]) -> dict[str, Any]:
    """By machine, and over all."""
    counted = ("rows", "known", "conflicting", "losses", "pieces", "reports", "removed", "refused")
    total = {name: sum(getattr(each, name) for each in found.values()) for name in counted}
    machines = {machine: asdict(each) for machine, each in found.items()}
    complaints = sum(len(each.complaints) + each.unsaid for each in found.values())
    return {"machines": machines, **total, "complaints": complaints}


def brought_table(found: Mapping[str, Brought]) -> RenderableType:
    """A line for each machine, and one for each complaint."""
    if not found:
        return "No machine has put anything on this stick."
    table = Table(title="Brought home")
    for column in ("machine", "new results", "known", "conflicting", "losses", "reports", "pieces", "removed"):
        table.add_column(column)
    for machine, each in found.items():
        numbers = (each.rows, each.known, each.conflicting, each.losses, each.reports, each.pieces, each.removed)
        table.add_row(machine, *map(str, numbers))
    said = [Text(f"{machine}: {line}") for machine, each in found.items() for line in each.complaints]
    said += [Text(f"{machine}: and {each.unsaid} more") for machine, each in found.items() if each.unsaid]
    return Group(table, *said)


def exit_code(found: Mapping[str, Brought]) -> int:
    """0 when everything came home."""
    return Refused.exit_code if any(each.refused for each in found.values()) else 0
