#!/usr/bin/env python3
"""Compares container updates with registry pulls: see `container_bench/command.py`, or --help.

Also as `scripts/bench-containers`. Started by any Python, it goes on in `.venv`, made where it is not there yet.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from scripts.bench_delta import in_our_environment

    in_our_environment(__file__)
    from scripts.container_bench.command import main

    sys.exit(main())
