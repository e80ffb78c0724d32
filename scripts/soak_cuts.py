"""The parts of `scripts/soak` that cut and kill: see soak.py."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
MODELS = ("strict", "ordered")
RECOVERIES = 1000  # that differ, of one state in ten: all there are
STATES_OF_RECOVERY = 500


def crash(names: Sequence[str], states: int | None, processes: int, *, as_json: bool) -> int:
    """Looks at the crash states of workloads, each in a process of its own.

    Args:
        names: Of workloads; none means all.
        states: So many cuts of each; None: all.
        processes: At once.
        as_json: One object at the end instead of a line for each.
    """
    from tests.simulation.workloads.catalogue import WHOLE, WORKLOADS

    known = [*WORKLOADS, *WHOLE]
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"soak: no such workload: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    wanted = [(name, model) for name in (names or known) for model in MODELS]

    def explore(name: str, model: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.simulation.crash", name, "--model", model, "--json"]
        # The second reading is only reported: its recoveries need no cuts of their own.
        recoveries = 3 if states else RECOVERIES
        of_recovery = min(states or STATES_OF_RECOVERY, STATES_OF_RECOVERY)
        deeper = ["--recoveries", str(recoveries), "--states-of-recovery", str(of_recovery)]
        some = ["--states", str(states)] if states else []
        done = subprocess.run(
            [*command, *some, *(deeper if model == MODELS[0] else [])],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.stdout:
            return {"workload": name, "model": model, "broken": 1, "reasons": [[done.stderr.strip()[-2000:], 1]]}
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    reports = []
    with ThreadPoolExecutor(processes) as pool:
        for report in pool.map(lambda each: explore(*each), wanted):
            reports.append(report)
            print(_line(report), file=sys.stderr if as_json else sys.stdout, flush=True)
    # Of the second reading only this counts: whether it was looked at.
    broken = [each for each in reports if each["broken"] and (each["model"] == MODELS[0] or "checked" not in each)]
    if as_json:
        print(json.dumps({"workloads": reports}))
    else:
        checked = sum(report.get("checked", 0) + report.get("second_checked", 0) for report in reports)
        gate = f"broken: {', '.join(report['workload'] for report in broken)}" if broken else "every promise held"
        print(f"{checked} states of {len(reports)} recordings; {gate}")
    return 1 if broken else 0


def _line(report: dict[str, Any]) -> str:
    if "checked" not in report:
        return f"{report['workload']} ({report['model']}): {report['reasons'][0][0]}"
    said = (
        f"{report['workload']} ({report['model']}): {report['checked']} states of {report['cuts']} cuts,"
        f" {report['left_out']} combinations left out; {report['recorded']} recoveries recorded,"
        f" {report['recoveries']} that differ cut: {report['second_checked']} states; {report['broken']} broken;"
        f" {report['seconds']:.0f} s"
    )
    return "\n".join([said, *(f"  {count} times: {why}" for why, count in report["reasons"])])


def sweep(names: Sequence[str]) -> int:
    """Every harm at every fail point of workloads, all of them when none is named."""
    from tests.simulation.workloads.catalogue import WORKLOADS

    return subprocess.run(
        [sys.executable, "-m", "tests.simulation.sweep", *(names or WORKLOADS)], cwd=CHECKOUT, check=False
    ).returncode


def kill_machines(kills: int, seed: int | None, *, as_json: bool) -> int:
    """Kills real machines and their server in a live fleet."""
    from tests.simulation.machine_kills import Killing, Report

    def show(report: Report) -> None:
        if report.killed % 10 == 0:
            print(report.line(), file=sys.stderr, flush=True)

    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr, flush=True)
    root = Path(tempfile.mkdtemp(prefix="headland-soak-"))
    try:
        report = Killing(root, seed=seed).play(kills, show)
    except AssertionError as error:
        print(f"seed {seed}: {error}\nall is left in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    print(json.dumps(vars(report)) if as_json else f"{report.line()}\nevery machine came home")
    return 0


def kill_containers(updates: int, seed: int | None, *, as_json: bool) -> int:
    """Kills a real agent and its real engine while releases with containers come. 77: no engine can run here."""
    import pytest

    from tests.fakes.private_engine import CANNOT, PrivateEngine
    from tests.simulation.container_kills import Killing, Report

    def show(report: Report) -> None:
        print(report.line(), file=sys.stderr, flush=True)

    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr, flush=True)
    root = Path(tempfile.mkdtemp(prefix="headland-soak-"))
    try:
        report = Killing(root, PrivateEngine(), seed=seed).play(updates, show)
    except pytest.skip.Exception as error:  # as the engine of a test says that there is none
        print(f"soak: {error}", file=sys.stderr)
        shutil.rmtree(root)
        return CANNOT
    except (AssertionError, pytest.fail.Exception) as error:  # it does not come back, or there must be one
        print(f"seed {seed}: {error}\nall is left in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    print(json.dumps(vars(report)) if as_json else f"{report.line()}\na whole set ran after each")
    return 0


def kill_server(kills: int | None, seed: int | None, *, as_json: bool) -> int:
    """Kills a real server while machines drain and managers push.

    Args:
        kills: So many at random; None: one at each effect of one story.
        seed: Of all chance.
        as_json: For a program.
    """
    import asyncio
    import itertools

    from tests.simulation.server_kills import Report, at_points, at_random

    def show(report: Report) -> None:
        done = report.kills if kills is not None else sum(report.points.values())
        if done % 50 == 0:
            print(f"{done} kills, {report.rows} rows, {report.publications} publications", file=sys.stderr, flush=True)

    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr, flush=True)
    root = Path(tempfile.mkdtemp(prefix="headland-soak-"))
    try:
        if kills is None:
            report = asyncio.run(at_points(root, points=itertools.count(1), seed=seed, show=show))
        else:
            report = asyncio.run(at_random(root, kills=kills, seed=seed, show=show))
    except AssertionError as error:
        print(f"seed {seed}: {error}\nall is left in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    print(json.dumps(vars(report), default=str) if as_json else f"{report}\nevery promise held")
    return 0
