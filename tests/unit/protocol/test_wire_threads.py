"""Records are read in many threads at once, and from the first time on: msgspec alone ends the process there."""

import subprocess
import sys
from pathlib import Path

READS = """
import sys, threading
from protocol.wire import Message, decode, pack, unpack

sys.setswitchinterval(1e-6)
TEXT = '''
class Inner(Message):
    a: int = 0
    b: tuple[str, ...] = ()

class Outer(Message):
    inner: Inner = Inner()
    table: dict[str, Inner] = {}
'''

def read(barrier, kind, found):
    barrier.wait()
    found.append(decode(b'{"inner": {"a": 1}, "table": {"x": {"b": ["y"]}}}', kind, limit=100))
    found.append(unpack(pack({"inner": {"a": 1}, "table": {"x": {"b": ["y"]}}}), kind, limit=100))

for _ in range(100):
    names = {"Message": Message, "__name__": "__main__"}
    exec(TEXT, names)
    globals().update(names)
    barrier, found = threading.Barrier(4), []
    threads = [threading.Thread(target=read, args=(barrier, Outer, found)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Outer(inner=Inner(a=1), table={"x": Inner(b=("y",))})] * 8
"""


def test_threads_that_read_a_record_for_the_first_time_do_not_end_the_process():
    checkout = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", READS], cwd=checkout, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] or f"ended by {-done.returncode}"
