"""`python -m tests.simulation.crash explore NAME`: the crash states of one workload. `act NAME HOME` does its work."""

import argparse
import sys
from pathlib import Path

from tests.simulation.crash.explore import Explorer, Report, as_json, fast_folder
from tests.simulation.crash.states import ORDERED, STRICT
from tests.simulation.crash.workloads import workload_named
from tests.simulation.workload import Promises

CHECKOUT = Path(__file__).parents[3]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.crash", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    act = commands.add_parser("act")
    act.add_argument("name")
    act.add_argument("home", type=Path)
    explore = commands.add_parser("explore")
    explore.add_argument("name")
    explore.add_argument("--model", choices=(STRICT, ORDERED), default=STRICT)
    explore.add_argument("--most", type=int, default=4096, help="combinations of one moment that are all taken")
    explore.add_argument("--sample", type=int, help="so many states, instead of all")
    explore.add_argument("--deeper", type=int, default=0, help="in so many of them the recovery is cut as well")
    explore.add_argument("--seed", type=int, default=1)
    explore.add_argument("--json", action="store_true")
    options = parser.parse_args()
    workload = workload_named(options.name)
    if options.command == "act":
        workload.act(options.home, Promises(options.home / "promises"))
        return 0
    with fast_folder() as folder:
        command = [sys.executable, "-m", "tests.simulation.crash", "act", options.name]
        explorer = Explorer(workload, folder, command, CHECKOUT)
        report = explorer.explore(
            explorer.record(),
            model=options.model,
            most=options.most,
            sample=options.sample,
            deeper=options.deeper,
            seed=options.seed,
            on_progress=lambda _: None if options.json or not sys.stderr.isatty() else _show(_),
        )
    print(as_json(report) if options.json else report.line())
    if not options.json:
        for why, count in report.reasons.most_common():
            print(f"  {count} times: {why}")
    return 1 if report.failures else 0


def _show(report: Report) -> None:
    sys.stderr.write(f"\r{report.line()}")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
