"""`python -m tests.simulation.crash NAME`: the crash states of one workload."""

import argparse
import sys
from pathlib import Path

from tests.simulation.crash.explore import Explorer, Extent, Failure, Report, as_json, fast_folder
from tests.simulation.crash.states import ORDERED, STRICT
from tests.simulation.faults import FAULTS
from tests.simulation.workloads.catalogue import CALIBRATIONS, WHOLE, WORKLOADS

CHECKOUT = Path(__file__).parents[3]


def main() -> int:
    everything = WORKLOADS | WHOLE | CALIBRATIONS
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.crash", description=__doc__)
    parser.add_argument("name", choices=sorted(everything), metavar="NAME", help=", ".join(everything))
    parser.add_argument("--model", choices=(STRICT, ORDERED), default=STRICT)
    parser.add_argument("--most", type=int, default=4096, help="combinations of one moment that are all taken")
    parser.add_argument("--states", type=int, help="so many, instead of all")
    parser.add_argument("--recoveries", type=int, default=0, help="so many are recorded, and cut as well")
    parser.add_argument("--states-of-recovery", type=int, help="so many of each, instead of all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to-first", action="store_true", help="only until something is broken")
    parser.add_argument("--plant", choices=sorted(FAULTS), metavar="FAULT", help="broken on purpose")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def show(report: Report) -> None:
        if sys.stderr.isatty() and not options.json:
            sys.stderr.write(f"\r{report.line()}")
            sys.stderr.flush()

    with fast_folder() as folder:
        explorer = Explorer(everything[options.name], folder, CHECKOUT, fault=options.plant)
        extent = Extent(
            options.model,
            options.most,
            options.states,
            options.recoveries,
            options.states_of_recovery,
            options.seed,
            options.to_first,
        )
        try:
            report = explorer.explore(explorer.record(), extent, show)
        except (AssertionError, RuntimeError) as error:
            if not options.plant:
                raise  # the work must be sound before it is cut
            report = Report(options.name, options.model, failures=[Failure(str(error), [], 0)])
    print(as_json(report) if options.json else report.line())
    if not options.json:
        for why, count in report.reasons.most_common():
            print(f"  {count} times: {why}")
        for failure in report.failures[:3]:
            print("", *failure.fates, failure.why, sep="\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
