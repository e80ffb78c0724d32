"""One step of a workload as a process of its own: `python -m tests.simulation.run act WORKLOAD HOME [--plant FAULT]`.

Promises go to `HOME/promises`, one a line.
"""

import argparse
import contextlib
from pathlib import Path

from tests.simulation.faults import FAULTS
from tests.simulation.workload import Promises
from tests.simulation.workloads.catalogue import CALIBRATIONS, WHOLE, WORKLOADS

STEPS = ("prepare", "act", "recover", "check")


def promised(home: Path) -> list[str]:
    """What was promised in this home so far."""
    try:
        return (home / "promises").read_text().splitlines()
    except FileNotFoundError:
        return []


def run(step: str, name: str, home: Path, fault: str | None = None) -> None:
    """Runs one step in this process.

    Args:
        step: One of `STEPS`.
        name: Of the workload.
        home: Its folder; made by `prepare`.
        fault: Planted while it runs.
    """
    work = (WORKLOADS | WHOLE | CALIBRATIONS)[name]
    with FAULTS[fault].plant() if fault else contextlib.nullcontext():
        match step:
            case "prepare":
                home.mkdir(parents=True, exist_ok=True)
                (home / "world").mkdir()
                work.prepare(home)
            case "act":
                promise = Promises(home / "promises")
                try:
                    work.act(home, promise)
                finally:
                    promise.close()
            case "recover":
                work.recover(home, promised(home))
            case "check":
                work.check(home, promised(home))


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.simulation.run", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("workload", choices=sorted(WORKLOADS | WHOLE | CALIBRATIONS))
    parser.add_argument("home", type=Path)
    parser.add_argument("--plant", choices=sorted(FAULTS), metavar="FAULT")
    options = parser.parse_args()
    run(options.step, options.workload, options.home, options.plant)


if __name__ == "__main__":
    main()
