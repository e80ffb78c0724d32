"""Draws a run as one SVG: for each pair the size of every tool's patch as a share of the new file, ours stressed.

Lines of marks on a logarithmic scale: further to the left is fewer bytes. To the right stands by how much we are ahead
of the best peer. Written by hand: a plot needs no library.
"""

import math
from collections.abc import Iterator
from html import escape
from itertools import groupby

from scripts.delta_bench.pairs import CLASSES
from scripts.delta_bench.report import Report, Row
from scripts.delta_bench.tools import OURS

TOLD_EXACTLY = 10  # a ratio below it has decimals
LEFT, PLOT, RIGHT = 250, 620, 170  # pixels: names, marks, ratios
ROW, HEADING, TOP, BOTTOM = 22, 30, 96, 44
INK, FAINT, GRID, GOOD, BAD = "#1c2430", "#66707d", "#e3e7ec", "#0b7a4b", "#b3261e"
OUR_COLOUR = "#d9480f"
# Shape and colour both tell the tools apart: the page may be printed in grey.
MARKS = {
    "zstd": ("bar", "#9aa4b1"),
    "zstd-patch": ("square", "#3b6fb6"),
    "xdelta3": ("triangle", "#7a4fb5"),
    "bsdiff4": ("cross", "#1b8a8f"),
    "hdiffpatch": ("ring", "#2f5d1e"),
    "casync": ("plus", "#a07410"),
    OURS: ("disc", OUR_COLOUR),
}


def draw(report: Report) -> str:
    """The plot as SVG text."""
    rows = sorted(report.rows, key=lambda row: CLASSES.index(row.pair.kind))
    groups = [(kind, list(members)) for kind, members in groupby(rows, key=lambda row: row.pair.kind)]
    height = TOP + sum(HEADING + ROW * len(members) for _, members in groups) + BOTTOM
    width = LEFT + PLOT + RIGHT
    low = _lowest(report)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(16, 28, "Bytes to send, as a share of the new file", size=17, weight="bold"),
        _text(16, 47, "further left is less; logarithmic scale; every patch was applied and compared", colour=FAINT),
        *_legend(report),
        *_grid(low, height),
        _text(LEFT + PLOT + 16, TOP - 10, "best peer / ours", weight="bold"),
    ]
    y = TOP
    for kind, members in groups:
        parts.append(_text(16, y + 20, kind.title, weight="bold"))
        parts.append(_text(LEFT + PLOT + 16, y + 20, f"goal {kind.goal:.2f}", colour=FAINT))
        y += HEADING
        for row in members:
            parts += _row(report, row, y + ROW / 2, low)
            y += ROW
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _lowest(report: Report) -> float:
    """The power of ten at the left edge."""
    shares = [share for row in report.rows for _, share in _shares(report, row)]
    return math.floor(math.log10(min(shares, default=0.1)))


def _shares(report: Report, row: Row) -> Iterator[tuple[str, float]]:
    for tool in report.tools:
        result = row.results.get(tool.name)
        if result and not result.failed and result.patch_bytes and row.new_bytes:
            yield tool.name, result.patch_bytes / row.new_bytes


def _x(share: float, low: float) -> float:
    high = math.log10(1.5)  # a patch may be larger than the file
    return LEFT + PLOT * (math.log10(min(share, 1.5)) - low) / (high - low)


def _legend(report: Report) -> Iterator[str]:
    x = 16.0
    for tool in report.tools:
        yield _mark(tool.name, x + 6, 68)
        yield _text(x + 18, 72, tool.title, weight="bold" if tool.name == OURS else "normal")
        x += 36 + 6.7 * len(tool.title)


def _grid(low: float, height: int) -> Iterator[str]:
    for power in range(int(low), 1):
        for step in range(1, 10 if power < 0 else 2):
            x, thick = _x(step * 10.0**power, low), 2 if step == 1 else 0.6
            yield f'<path d="M{x:.1f} {TOP} V{height - BOTTOM + 6}" stroke="{GRID}" stroke-width="{thick}"/>'
        yield _text(_x(10.0**power, low), height - BOTTOM + 22, f"{100 * 10.0**power:g} %", anchor="middle")


def _row(report: Report, row: Row, y: float, low: float) -> Iterator[str]:
    yield _text(LEFT - 12, y + 4, row.pair.name, anchor="end")
    shares = list(_shares(report, row))
    if shares:
        ends = [_x(share, low) for _, share in shares]
        yield f'<path d="M{min(ends):.1f} {y} H{max(ends):.1f}" stroke="{FAINT}" stroke-width="0.8"/>'
    for name, share in sorted(shares, key=lambda found: found[0] == OURS):
        yield _mark(name, _x(share, low), y)
    failed = [name for name, result in row.results.items() if result.failed]
    note, colour = "", INK
    if row.ratio is not None:
        note, colour = told_ratio(row.ratio), GOOD if row.ratio >= row.pair.kind.goal else BAD
    if failed:
        note, colour = f"{note} failed: {', '.join(failed)}".strip(), BAD
    yield _text(LEFT + PLOT + 16, y + 4, note, colour=colour, weight="bold")


def told_ratio(ratio: float) -> str:
    """A ratio in three digits or so, cut and not rounded: one that misses its goal must not read like the goal."""
    return f"{math.floor(ratio * 100 + 1e-9) / 100:.2f}" if ratio < TOLD_EXACTLY else f"{math.floor(ratio)}"


def _mark(name: str, x: float, y: float) -> str:
    shape, colour = MARKS[name]
    line = f'stroke="{colour}" stroke-width="2" fill="none"'
    shapes = {
        "disc": f'<circle cx="{x:.1f}" cy="{y}" r="6.5" fill="{colour}" stroke="white" stroke-width="1.2"/>',
        "ring": f'<circle cx="{x:.1f}" cy="{y}" r="4.5" {line}/>',
        "square": f'<rect x="{x - 4:.1f}" y="{y - 4}" width="8" height="8" fill="{colour}" fill-opacity="0.85"/>',
        "bar": f'<path d="M{x:.1f} {y - 6} v12" {line}/>',
        "triangle": f'<path d="M{x:.1f} {y - 5} l5 9 h-10 z" fill="{colour}" fill-opacity="0.85"/>',
        "cross": f'<path d="M{x - 4:.1f} {y - 4} l8 8 m0 -8 l-8 8" {line}/>',
        "plus": f'<path d="M{x - 5:.1f} {y} h10 m-5 -5 v10" {line}/>',
    }
    return shapes[shape]


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = INK, size: int = 12, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"'
        f' font-weight="{weight}">{escape(text)}</text>'
    )
