"""Runs one of the product's modules under a wall clock that is off. What it starts for trust has the same clock.

    python wrong_wall.py SECONDS device.agent --state DIR

Nothing else is changed: CLOCK_BOOTTIME and the boot id are this computer's. The wall clock stops at 1970.
"""

import runpy
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()


def command(off_s: float, module: str, *arguments: str) -> list[str]:
    """The command line that does it."""
    return [sys.executable, str(HERE), str(off_s), module, *arguments]


def main() -> None:
    off_ns, module = int(float(sys.argv[1]) * 1e9), sys.argv[2]
    sys.path[0] = str(HERE.parents[2])
    true_ns = time.time_ns
    time.time_ns = lambda: max(0, true_ns() + off_ns)
    time.time = lambda: time.time_ns() / 1e9
    from device.trust.client import KeeperTrust

    defaults = KeeperTrust.__init__.__kwdefaults__
    assert defaults is not None
    assert defaults["command"][-1] == "device.trust.keeper"
    defaults["command"] = tuple(command(float(sys.argv[1]), "device.trust.keeper"))
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
