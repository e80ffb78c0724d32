"""Runs one command and prints, as the last line on its standard output, what it took: `python -I -S measure.py CMD...`.

A process of its own with next to nothing imported: Linux counts the memory of the process that forks into that of the
child, so a benchmark with its tables loaded would put a floor of its own under every measurement.
"""

import json
import os
import sys
import time


def main() -> None:
    start = time.monotonic()
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(child, 0)
    took = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,  # of the largest process of those that it started
    }
    print("\n" + json.dumps(took))


main()
