"""Runs one command and prints, as the last line on its standard output, what it took: `python -I -S measure.py CMD...`.

A process of its own with next to nothing imported: Linux counts the memory of the process that forks into that of the
child, so a benchmark with its tables loaded would put a floor of its own under every measurement. What is left of the
floor are about 10 MiB.

Peak memory is exact for the largest process that the command starts. Where it starts several at once their sum is
sampled too (each page that they share counted once), and the larger of both is reported.
"""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

EVERY_S = 0.1


class Family(threading.Thread):
    """Watches how much memory a process and all that it started hold together."""

    def __init__(self, first: int) -> None:
        super().__init__(daemon=True)
        self._first = first
        self.peak_bytes = 0

    def run(self) -> None:
        while True:
            time.sleep(EVERY_S)
            family = _descendants(self._first)
            if len(family) > 1:  # of one alone the system knows the peak better than a sample does
                self.peak_bytes = max(self.peak_bytes, sum(map(_memory, family)))


def _descendants(first: int) -> list[int]:
    found, left = [], [first]
    while left:
        process = left.pop()
        found.append(process)
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            left += map(int, _read(children).split())
    return found


def _memory(process: int) -> int:
    share = re.search(r"^Pss: +(\d+) kB", _read(Path(f"/proc/{process}/smaps_rollup")), re.MULTILINE)
    return int(share[1]) * 1024 if share else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""


def main() -> None:
    start = time.monotonic()
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    family = Family(child)
    family.start()
    _, status, usage = os.wait4(child, 0)
    took = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": max(usage.ru_maxrss * 1024, family.peak_bytes),
    }
    print("\n" + json.dumps(took))


main()
