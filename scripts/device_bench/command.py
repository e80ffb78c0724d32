"""Measures a machine's outbox and agent, side by side with other queues in one run, on the disk where it runs.

    scripts/bench-device                  all of it: about half an hour, and 3 GB of disk
    scripts/bench-device --quick          the same with less of everything: about four minutes
    scripts/bench-device --only latency rate --json

`latency`: how long a row takes to be durable, at 200 a second beside the agent's own worker process, which infers
pictures without a pause: decoded, through the demo's detector, with boxes as they come out.
`rate`: how many rows a second, a thousand in each call. Both beside bare SQLite with the same pragmas (WAL, FULL) and
beside `persist-queue` and `litequeue` from PyPI, which are installed into a folder of the cache. `drain`: how fast a
million rows leave, and in how much memory. `readers`: how late alarms are, at the machine's own line and at a reader,
when the local socket has all the readers that it may have, some of which read nothing, and a program that asks without
a pause; beside an agent that nobody reads. `agent`: how long a real agent takes to be up with a million rows queued,
and what it holds when it idles.

What is compared takes turns, for a computer is never the same twice. Exit code 0: every budget holds; 1: one does not,
or something failed; 2: usage.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.delta_bench.tools import install_packages
from scripts.device_bench import agent
from scripts.device_bench.queues import NAMES, TITLES
from scripts.device_bench.report import Figure, print_table

ROOT = Path(__file__).resolve().parent.parent.parent
RELEASE = ROOT / "scripts" / "demo_models" / "pest-detector-1.1.0.toml"
PACKAGES = ("persist-queue==1.1.0", "litequeue==0.9")
LIMIT_S = 3600
RATE = 200
FRAMES = 30  # a second, as a camera's; each fourth one is an alarm
BATCH_ROWS = 2500  # what one batch of ours holds of these rows: bare SQLite deletes as many at once


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rounds: int
    latency_s: float  # of each queue in each round
    rate_rows: int
    slow_rows: int  # of a queue that takes minutes for what others do in a second
    drain_rows: int
    starts: int
    idle_s: float


FULL = Size(6, 15.0, 200_000, 4_000, 1_000_000, 5, 20.0)
QUICK = Size(3, 4.0, 50_000, 2_000, 100_000, 2, 8.0)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _asked(arguments)
    size = QUICK if asked.quick else FULL
    packages = asked.cache / "peers"
    names = list(NAMES)
    if not install_packages(PACKAGES, packages, "persist-queue and litequeue", say):
        names = ["headland", "bare"]
    figures: list[Figure] = []
    if asked.scratch is not None:
        asked.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-device-", dir=asked.scratch) as scratch:
        bench = Bench(Path(scratch), packages, names, size)
        for part in asked.only or PARTS:
            say(f"{part}")
            figures += PARTS[part](bench)
    if asked.json:
        print(json.dumps({"machine": _machine(), "figures": [figure.as_json() for figure in figures]}))
    else:
        print_table(figures, Console(width=None if sys.stdout.isatty() else 160))
    return 1 if any(figure.judged is False for figure in figures) else 0


class Bench:
    """Runs the parts.

    Args:
        scratch: A folder on the disk that is measured.
        packages: Where the other queues lie.
        names: Of the queues that run here.
        size: How much of everything.
    """

    def __init__(self, scratch: Path, packages: Path, names: Sequence[str], size: Size) -> None:
        self._scratch = scratch
        self._packages = packages
        self._names = names
        self._size = size

    def latency(self) -> list[Figure]:
        took: dict[str, list[int]] = {name: [] for name in self._names}
        with self._folder("release") as release, _inferring(release):
            for number in range(self._size.rounds):
                for name in self._turn(number):
                    with self._folder() as folder:
                        found = part("latency", name, folder, self._packages, RATE, self._size.latency_s)
                    took[name] += found["took_us"]
                    say(f"    {TITLES[name]}: p99 {_percentile(found['took_us'], 99):.2f} ms")
        figures = []
        for percent in (50, 99):
            ours = _percentile(took["headland"], percent)
            for name in self._names[1:]:
                most = 1.5 if (name, percent) == ("bare", 99) else None
                other = _percentile(took[name], percent)
                what = f"enqueue, {RATE}/s beside inference, p{percent}"
                figures.append(Figure(what, "ms", ours, other, TITLES[name], most=most))
        return figures

    def rate(self) -> list[Figure]:
        rates: dict[str, list[float]] = {name: [] for name in self._names}
        callers = []
        for number in range(self._size.rounds):
            for name in self._turn(number):
                rows = self._size.rate_rows if name in ("headland", "bare") else self._size.slow_rows
                with self._folder() as folder:
                    rates[name].append(part("rate", name, folder, self._packages, rows)["rows_s"])
                say(f"    {TITLES[name]}: {rates[name][-1]:,.0f} rows/s")
            with self._folder() as folder:
                callers.append(part("callers", folder, self._size.rate_rows // 10, 64)["rows_s"])
        ours = statistics.median(rates["headland"])
        figures = [
            Figure(
                "full rate, 1000 rows in a call",
                "rows/s",
                ours,
                statistics.median(rates[name]),
                TITLES[name],
                least=0.5 if name == "bare" else None,
            )
            for name in self._names[1:]
        ]
        return [*figures, Figure("full rate, 64 callers with a row each", "rows/s", statistics.median(callers))]

    def drain(self) -> list[Figure]:
        rows = self._size.drain_rows
        with self._folder() as folder:
            for file in self._queued().iterdir():
                shutil.copy(file, folder)
            ours = part("drain", folder / "outbox.db")
        assert ours["rows"] == rows, ours
        say(f"    drained at {ours['rows_s']:,.0f} rows/s")
        with self._folder() as folder:
            part("fill_bare", folder / "bare.db", rows)
            bare = part("drain_bare", folder / "bare.db", BATCH_ROWS)
        return [
            Figure(
                f"drain of {rows:,} rows: read, compressed, signed, receipted",
                "rows/s",
                ours["rows_s"],
                bare["rows_s"],
                "bare SQLite: read, deleted",
            ),
            Figure(f"drain of {rows:,} rows: memory above an open outbox", "MiB", ours["grew_mib"]),
            Figure(f"opening an outbox with {rows:,} rows", "s", ours["opened_s"]),
        ]

    def readers(self) -> list[Figure]:
        late: dict[str, list[int]] = {"nobody": [], "crowd": [], "reader": []}
        for number in range(self._size.rounds):
            for crowd in ("nobody", "crowd") if number % 2 else ("crowd", "nobody"):
                with self._folder() as folder:
                    found = part("alarm", folder, FRAMES, self._size.latency_s, crowd)
                late[crowd] += [round(1000 * ms) for ms in found["late_ms"]]
                late["reader"] += [round(1000 * ms) for ms in found["reader_ms"]]
                say(f"    {crowd}: {found['frames_s']:.1f} frames/s")
        figures = []
        for percent in (50, 99):
            alone = _percentile(late["nobody"], percent)
            what, beside = f"alarm of a frame, a crowd at the local socket, p{percent}", "nobody there"
            figures.append(Figure(what, "ms", _percentile(late["crowd"], percent), alone, beside))
        at_reader = _percentile(late["reader"], 99)
        return [*figures, Figure("the same at a reader, p99", "ms", at_reader, most=100)]

    def agent(self) -> list[Figure]:
        rows = self._size.drain_rows
        with self._folder() as folder, agent.enrolled(folder / "field") as (machine, server):
            agent.started_s(machine)
            idle_mib = agent.idle_mib(machine, self._size.idle_s)
            machine.process.stop()
            say(f"    idle: {idle_mib:.1f} MiB")
            server.stop()
            empty = agent.starts_s(machine, self._size.starts, say)
            agent.put_outbox(machine, self._queued() / "outbox.db")
            full = agent.starts_s(machine, self._size.starts, say)
            agent.started_s(machine)
            queued_mib = agent.idle_mib(machine, self._size.idle_s)
        return [
            Figure(
                f"agent up, {rows:,} rows queued",
                "s",
                statistics.median(full),
                statistics.median(empty),
                "the agent with an empty outbox",
            ),
            Figure("agent idle, resident", "MiB", idle_mib, most=60),
            Figure(f"agent without a link, {rows:,} rows queued, resident", "MiB", queued_mib),
        ]

    def _turn(self, number: int) -> list[str]:
        """Each round begins with another one: what warms up, or fills a disk's cache, hits all alike."""
        begin = number % len(self._names)
        return [*self._names[begin:], *self._names[:begin]]

    def _queued(self) -> Path:
        """The folder of an outbox with all rows of `drain_rows` queued: filled once, and to be copied."""
        folder = self._scratch / "queued"
        if not folder.exists():
            folder.mkdir()
            part("fill", folder / "outbox.db", self._size.drain_rows)
            say(f"    {self._size.drain_rows:,} rows are queued")
        return folder

    @contextmanager
    def _folder(self, name: str = "run") -> Iterator[Path]:
        folder = self._scratch / name
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "latency": Bench.latency,
    "rate": Bench.rate,
    "drain": Bench.drain,
    "readers": Bench.readers,
    "agent": Bench.agent,
}


def part(*arguments: object) -> dict[str, Any]:
    """Runs one part in a process of its own, and returns what it printed."""
    command = [sys.executable, "-m", "scripts.device_bench.parts", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=LIMIT_S)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def _inferring(scratch: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "scripts.device_bench.parts", "infer", str(RELEASE), str(scratch)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the demo's detector does not run here")
        yield
    finally:
        process.kill()
        process.wait()


def _percentile(took_us: Sequence[int], percent: int) -> float:
    """In milliseconds."""
    ordered = sorted(took_us)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1000


def _machine() -> dict[str, Any]:
    return {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headland" / "device-bench"
    parser = argparse.ArgumentParser(
        prog="bench-device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help="of: " + ", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="less of everything: for a look, not for a record")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of a table")
    parser.add_argument("--cache", type=Path, default=cache, metavar="FOLDER", help="where other queues are kept")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="a folder on the disk to be measured")
    return parser.parse_args(arguments)
