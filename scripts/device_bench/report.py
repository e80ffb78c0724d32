"""The figures of a run, each beside what it is measured against, with the budget where there is one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One line.

    Attributes:
        what: Was measured.
        unit: Of both values.
        ours: Headland's.
        other: What it is held against in the same run; None where a budget is a plain number.
        against: Its name.
        budget: `most` or `least` of the ratio, or of the plain number where nothing stands beside it.
    """

    what: str
    unit: str
    ours: float
    other: float | None = None
    against: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.other is None else self.ours / self.other

    @property
    def judged(self) -> bool | None:
        """Whether the budget holds; None where there is none."""
        value = self.ours if self.ratio is None else self.ratio
        if self.most is not None:
            return value <= self.most
        return None if self.least is None else value >= self.least

    def as_json(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        found["ratio"], found["holds"] = self.ratio, self.judged
        return found


def print_table(figures: Sequence[Figure], console: Console) -> None:
    table = Table(title="outbox and agent: side by side, in one run")
    for name in ("what", "Headland", "beside it", "", "ratio", "budget"):
        table.add_column(name, justify="left" if name in ("what", "") else "right")
    for one in figures:
        budget = ""
        if one.judged is not None:
            bound = f"<= {one.most:g}" if one.most is not None else f">= {one.least:g}"
            budget = f"[{'green' if one.judged else 'bold red'}]{bound} {'holds' if one.judged else 'MISSED'}[/]"
        other = "" if one.other is None else f"{one.other:,.{_digits(one.other)}f} {one.unit}"
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        table.add_row(one.what, f"{one.ours:,.{_digits(one.ours)}f} {one.unit}", other, one.against, ratio, budget)
    console.print(table)


def _digits(value: float) -> int:
    return 0 if value >= 1000 else 2
