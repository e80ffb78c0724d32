"""Compares Headland's deltas with other tools', side by side in one run, every result checked byte for byte.

    scripts/bench-delta                        on pairs that it prepares itself (kept in a cache folder)
    scripts/bench-delta FOLDER                 on every pair NAME.old.* and NAME.new.* of a folder
    scripts/bench-delta FOLDER --only headland hdiffpatch --pairs small-fp32 --json

For each pair and tool: bytes, seconds and peak memory to encode and to apply. A pair that fails is shown as failed and
the run goes on. Exit code 0: all that could run did, and every result was right; 1: something failed; 2: usage.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.delta_bench.pairs import Pair, find_pairs
from scripts.delta_bench.plot import draw
from scripts.delta_bench.prepare import prepare
from scripts.delta_bench.report import Report, Row, print_tables
from scripts.delta_bench.runs import Result, Took, digest_of, measured, try_out
from scripts.delta_bench.tools import (
    DELTA,
    OURS,
    PYTHON_PEERS,
    Tool,
    all_tools,
    install_debian_peers,
    install_packages,
    why_missing,
)

LIMIT_S = 1800
QUICK_BYTES = 16 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _asked(arguments)
    cache: Path = asked.cache
    packages = cache / "peers"
    tools = all_tools(packages)
    known = [tool.name for tool in tools]
    for name in asked.only:
        if name not in known:
            print(f"error: no tool {name}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    tools = [tool for tool in tools if not asked.only or tool.name in asked.only]

    unprepared: dict[str, str] = {}
    folder = asked.folder
    if folder is None:
        folder = cache / "pairs"
        unprepared = prepare(folder, cache, say, quick=asked.quick)
    elif not folder.is_dir():
        print(f"error: {folder} is no folder", file=sys.stderr)
        return 2
    pairs = [pair for pair in find_pairs(folder) if not asked.pairs or pair.name in asked.pairs]
    if asked.quick:
        pairs = [pair for pair in pairs if pair.new.stat().st_size <= QUICK_BYTES]
    if not pairs:
        print(f"error: no pairs NAME.old.* and NAME.new.* in {folder}", file=sys.stderr)
        return 2

    names = {tool.name for tool in tools}
    if names & {"bsdiff4", "hdiffpatch"}:
        install_packages(PYTHON_PEERS, packages, "bsdiff4 and HDiffPatch", say)
    if names & {"zstd", "zstd-patch", "xdelta3", "casync"}:
        install_debian_peers(say)
    missing = {tool.name: reason for tool in tools if (reason := why_missing(tool, packages))}
    for name, reason in missing.items():
        say(f"{name} does not run here: {reason}")
    tools = [tool for tool in tools if tool.name not in missing]

    bare = _quickest([sys.executable, "-I", "-c", "import numpy"])
    ours = any(tool.name == OURS for tool in tools)
    start = _quickest([str(DELTA), "apply", "--help"]) if ours else bare
    report = Report(tools, bare, start, _machine(), missing, unprepared)
    earlier = json.loads(asked.peers_from.read_text()) if asked.peers_from else {}
    if asked.scratch is not None:
        asked.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-delta-", dir=asked.scratch) as scratch:
        for number, pair in enumerate(pairs, 1):
            say(f"[{number}/{len(pairs)}] {pair.name}")
            report.rows.append(run_pair(pair, tools, Path(scratch) / "run", asked.limit, earlier))
            if asked.results:
                asked.results.write_text(json.dumps(report.as_json(), indent=1))
    plot: Path = asked.plot or cache / "bench-delta.svg"
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(draw(report))
    say(f"plot: {plot}")
    if asked.json:
        print(json.dumps(report.as_json()))
    else:
        # Wide enough for every column where the output is a file; a terminal says its own width.
        print_tables(report, Console(width=None if sys.stdout.isatty() else 200))
    return 1 if report.failures else 0


def run_pair(pair: Pair, tools: Sequence[Tool], scratch: Path, limit_s: float, earlier: dict[str, Any]) -> Row:
    """Runs every tool on one pair; a peer that an earlier run measured on the same bytes is taken from there."""
    digests = digest_of(pair.old), digest_of(pair.new)
    known: dict[str, Any] = {}
    for row in earlier.get("pairs", []):
        if (row["old_sha256"], row["new_sha256"]) == digests:
            known = {name: cell for name, cell in row["results"].items() if name != OURS and "failed" not in cell}
    results = {}
    for tool in tools:
        if tool.name in known:
            cell = known[tool.name]
            result = Result(tool.name, cell["patch_bytes"], Took(**cell["encode"]), Took(**cell["apply"]))
        else:
            result = try_out(tool, pair, scratch, limit_s)
            say(f"    {tool.title}: {result.failed or _summary(result)}")
        results[tool.name] = result
    return Row(pair, pair.old.stat().st_size, pair.new.stat().st_size, *digests, results)


def _summary(result: Result) -> str:
    return (
        f"{result.patch_bytes} bytes, encoded in {result.encode.seconds:.1f} s, applied in {result.apply.seconds:.1f} s"
    )


def _quickest(command: list[str]) -> Took:
    """The least that a command took of three times: what else the machine did is not its own."""
    return min((measured(command, LIMIT_S) for _ in range(3)), key=lambda took: took.cpu_seconds)


def _machine() -> dict[str, Any]:
    return {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "headland" / "delta-bench"


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench-delta", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="pairs NAME.old.* and NAME.new.*; without it, its own")
    parser.add_argument("--only", nargs="+", default=[], metavar="TOOL", help="these tools only")
    parser.add_argument("--pairs", nargs="+", default=[], metavar="NAME", help="these pairs only")
    parser.add_argument("--quick", action="store_true", help="small files only, and nothing is trained for it")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of tables")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the JSON here too, after every pair")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to write the plot (SVG); else into the cache")
    parser.add_argument("--peers-from", type=Path, metavar="FILE", help="peers' numbers of an earlier run's JSON")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="seconds that one command may take")
    parser.add_argument("--cache", type=Path, default=_cache(), metavar="FOLDER", help="where pairs and peers are kept")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where patches lie meanwhile")
    return parser.parse_args(arguments)
