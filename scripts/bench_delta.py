#!/usr/bin/env python3
"""Compares Headland's deltas with other tools' on pairs of files: see `delta_bench/command.py`, or --help.

Also as `scripts/bench-delta`. Started by any Python, it goes on in `.venv`, made where it is not there yet.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def in_our_environment(script: str = __file__) -> None:
    """Starts anew in `.venv` unless it runs there."""
    if Path(sys.prefix).resolve() == (ROOT / ".venv").resolve():
        return
    subprocess.run([ROOT / "scripts" / "setup"], check=True)
    python = str(ROOT / ".venv" / "bin" / "python")
    os.execv(python, [python, script, *sys.argv[1:]])


if __name__ == "__main__":
    in_our_environment()
    sys.path.insert(0, str(ROOT))
    from scripts.delta_bench.command import main

    sys.exit(main())
