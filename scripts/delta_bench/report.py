"""What a run found: as one JSON object, and as tables for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.delta_bench.pairs import CLASSES, WORST, Pair
from scripts.delta_bench.runs import Result, Took
from scripts.delta_bench.tools import OURS, Tool

MIB = 1 << 20
MODEL_SPEED, LAYER_SPEED = 8.0, 20.0  # MB/s of output to apply, one core: what we set ourselves
APPLY_MEMORY = 32 * MIB  # above an interpreter that has numpy


@dataclass(frozen=True)
class Row:
    """One pair with what every tool made of it."""

    pair: Pair
    old_bytes: int
    new_bytes: int
    old_sha256: str
    new_sha256: str
    results: Mapping[str, Result]

    @property
    def best_peer(self) -> Result | None:
        """The peer with the smallest verified patch."""
        done = [r for r in self.results.values() if r.tool != OURS and r.failed is None and r.patch_bytes is not None]
        return min(done, key=lambda result: result.patch_bytes or 0, default=None)

    @property
    def ours(self) -> Result | None:
        result = self.results.get(OURS)
        return None if result is None or result.failed else result

    @property
    def ratio(self) -> float | None:
        """The best peer's bytes divided by ours."""
        best, ours = self.best_peer, self.ours
        return best.patch_bytes / ours.patch_bytes if best and ours and best.patch_bytes and ours.patch_bytes else None


@dataclass
class Report:
    """A whole run.

    Attributes:
        bare: A bare interpreter that imports numpy, to compare our memory with.
        start: Our command when it does nothing, to take off its speed.
        missing: Tools that could not run here, with the reason.
        unprepared: Pairs that could not be prepared, with the reason.
    """

    tools: Sequence[Tool]
    bare: Took
    start: Took
    machine: Mapping[str, Any]
    missing: dict[str, str] = field(default_factory=dict)
    unprepared: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        cells = [(row, cell) for row in self.rows for cell in row.results.values() if cell.failed]
        return [f"{row.pair.name}, {cell.tool}: {cell.failed}" for row, cell in cells]

    def classes(self) -> list[dict[str, Any]]:
        """By class: the (geometric) mean and the worst of the best peer's bytes divided by ours, with the goal."""
        found = []
        for kind in CLASSES:
            ratios = [row.ratio for row in self.rows if row.pair.kind is kind and row.ratio is not None]
            if ratios:
                mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
                worst = min(ratios)
                found.append(
                    {
                        "class": kind.title,
                        "pairs": len(ratios),
                        "mean_ratio": round(mean, 4),
                        "worst_ratio": round(worst, 4),
                        "goal": kind.goal,
                        "reached": mean >= kind.goal and worst >= WORST,
                    }
                )
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": dict(self.machine),
            "bare_interpreter": asdict(self.bare),
            "bare_command": asdict(self.start),
            "tools": {tool.name: tool.title for tool in self.tools},
            "missing": self.missing,
            "unprepared": self.unprepared,
            "pairs": [self._row(row) for row in self.rows],
            "classes": self.classes(),
            "failures": self.failures,
        }

    def _row(self, row: Row) -> dict[str, Any]:
        best, ours = row.best_peer, row.ours
        found: dict[str, Any] = {
            "name": row.pair.name,
            "class": row.pair.kind.title,
            "old_bytes": row.old_bytes,
            "new_bytes": row.new_bytes,
            "old_sha256": row.old_sha256,
            "new_sha256": row.new_sha256,
            "results": {name: result.as_json() for name, result in row.results.items()},
            "best_peer": best.tool if best else None,
            "ratio": round(row.ratio, 4) if row.ratio else None,
        }
        if ours and ours.apply:
            found["apply_above_bare_bytes"] = ours.apply.peak_bytes - self.bare.peak_bytes
            found["apply_mb_per_s"] = round(self.speed(row), 2)
        return found

    def speed(self, row: Row) -> float:
        """Our MB/s of output to apply: by processor time, one core's, without the start of the command."""
        if row.ours is None or row.ours.apply is None:
            return 0.0
        return row.new_bytes / 1e6 / max(row.ours.apply.cpu_seconds - self.start.cpu_seconds, 1e-3)


def print_tables(report: Report, console: Console) -> None:
    """The tables for people: bytes, then time and memory, then the classes with their goals."""
    console.print(_bytes_table(report))
    console.print(_cost_table(report, "encode"))
    console.print(_cost_table(report, "apply"))
    if report.classes():
        console.print(_ours_table(report))
        console.print(_classes_table(report))
    for name, reason in report.missing.items():
        console.print(f"not run: {name} ({reason})", markup=False)
    for name, reason in report.unprepared.items():
        console.print(f"not prepared: {name} ({reason})", markup=False)
    for failure in report.failures:
        console.print(f"failed: {failure}", markup=False)


def _table(title: str, caption: str = "") -> Table:
    return Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")


def _bytes_table(report: Report) -> Table:
    table = _table("Bytes of the patch", "best / ours: the best peer's bytes divided by ours")
    for heading in ("pair", "new file", *(tool.title for tool in report.tools), "best / ours", "goal"):
        table.add_column(heading, justify="left" if heading == "pair" else "right", overflow="fold")
    for row in report.rows:
        best = row.best_peer
        cells = [_bytes_cell(row.results.get(tool.name), best) for tool in report.tools]
        ratio = row.ratio
        judged = "" if ratio is None else _judged(f"{ratio:.3f}", ratio >= WORST)
        table.add_row(row.pair.name, str(row.new_bytes), *cells, judged, f"{row.pair.kind.goal:.2f}")
    return table


def _bytes_cell(result: Result | None, best: Result | None) -> str:
    if result is None:
        return ""
    if result.failed is not None:
        return "[red]failed[/red]"
    return f"[bold]{result.patch_bytes}[/bold]" if result is best else str(result.patch_bytes)


def _cost_table(report: Report, verb: str) -> Table:
    table = _table(f"To {verb}: seconds and peak MiB", "memory is all that a tool's processes hold")
    for heading in ("pair", *(tool.title for tool in report.tools)):
        table.add_column(heading, justify="left" if heading == "pair" else "right", overflow="fold")
    for row in report.rows:
        cells = []
        for tool in report.tools:
            result = row.results.get(tool.name)
            took: Took | None = getattr(result, verb) if result else None
            cells.append(f"{took.seconds:.2f} s {took.peak_bytes / MIB:.0f}" if took else "")
        table.add_row(row.pair.name, *cells)
    return table


def _ours_table(report: Report) -> Table:
    table = _table(
        "Headland, to apply",
        f"MB/s of output by one core's time, without the start of the command ({report.start.cpu_seconds:.2f} s);"
        f" memory above an interpreter with numpy imported ({report.bare.peak_bytes / MIB:.1f} MiB),"
        f" at most {APPLY_MEMORY / MIB:.0f} MiB",
    )
    for heading in ("pair", "MB/s", "goal", "MiB above"):
        table.add_column(heading, justify="left" if heading == "pair" else "right")
    for row in report.rows:
        if row.ours is None or row.ours.apply is None:
            continue
        above = row.ours.apply.peak_bytes - report.bare.peak_bytes
        goal = LAYER_SPEED if row.pair.kind.layer else MODEL_SPEED
        speed = report.speed(row)
        table.add_row(
            row.pair.name,
            _judged(f"{speed:.1f}", speed >= goal),
            f"{goal:.0f}",
            _judged(f"{above / MIB:.1f}", above <= APPLY_MEMORY),
        )
    return table


def _classes_table(report: Report) -> Table:
    table = _table("Best peer's bytes divided by ours, by class")
    for heading in ("class", "pairs", "mean", "worst", "goal", "reached"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for found in report.classes():
        table.add_row(
            found["class"],
            str(found["pairs"]),
            f"{found['mean_ratio']:.3f}",
            _judged(f"{found['worst_ratio']:.3f}", found["worst_ratio"] >= WORST),
            f"{found['goal']:.2f}",
            _judged("yes" if found["reached"] else "no", found["reached"]),
        )
    return table


def _judged(text: str, good: bool) -> str:
    return f"[green]{text}[/green]" if good else f"[red]{text}[/red]"
