"""A fixed sample of the states in which a power cut can leave a machine or the server; `scripts/soak` looks at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.simulation.crash import trace
from tests.simulation.crash.explore import Extent
from tests.simulation.crash.states import ORDERED
from tests.simulation.faults import FAULTS
from tests.simulation.workloads.catalogue import WORKLOADS

CHECKOUT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(
        not trace.strace_found() and not os.environ.get("CI"), reason="strace is not installed: apt-get install strace"
    ),
    pytest.mark.timeout(600),
]

# States, recoveries that are cut again, and states of each of those: about ten seconds of each workload.
SAMPLES = {
    "update": Extent(states=150, recoveries=4, states_of_recovery=20),
    "rollback": Extent(states=100, recoveries=3, states_of_recovery=20),
    "dying": Extent(states=80, recoveries=3, states_of_recovery=10),
    "images": Extent(states=60, recoveries=2, states_of_recovery=10),
    "kit": Extent(states=60, recoveries=2, states_of_recovery=10),
    "outbox": Extent(states=150, recoveries=4, states_of_recovery=20),
    "outbox-full": Extent(states=80, recoveries=2, states_of_recovery=20),
    "outbox-damaged": Extent(states=80, recoveries=2, states_of_recovery=20),
    "frames": Extent(states=120, recoveries=3, states_of_recovery=15),
    "sealed": Extent(states=60, recoveries=2, states_of_recovery=10),
    "rebuilt": Extent(states=40, recoveries=1, states_of_recovery=15),
    "rebuilt-from-link": Extent(states=20, recoveries=1, states_of_recovery=10),
    "trust": Extent(states=50, recoveries=2, states_of_recovery=10),
    "enrolment": Extent(states=60, recoveries=2, states_of_recovery=15),
    "renewal": Extent(states=100, recoveries=2, states_of_recovery=20),  # fewer than a hundred: these are all
    "ca-rotation": Extent(states=100, recoveries=2, states_of_recovery=40),
    "online-key-rotation": Extent(states=100, recoveries=1, states_of_recovery=10),
    "publish": Extent(states=25, recoveries=1, states_of_recovery=8),
    "ingest": Extent(states=60, recoveries=2, states_of_recovery=10),
    "backup": Extent(states=100, recoveries=1, states_of_recovery=10),
    "restore": Extent(states=40, recoveries=1, states_of_recovery=8),
}


def explored(name, extent, *more):
    """The report of a process of its own: forks of one that had other threads may hang."""
    command = [
        sys.executable,
        "-m",
        "tests.simulation.crash",
        name,
        "--json",
        "--most",
        "16",
        "--states",
        str(extent.states),
    ]
    command += ["--recoveries", str(extent.recoveries), "--states-of-recovery", str(extent.states_of_recovery)]
    done = subprocess.run([*command, *more], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    print({fact: value for fact, value in report.items() if fact != "failures"})
    return SimpleNamespace(**report)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
def test_after_a_power_cut_anywhere_every_promise_holds(name):
    extent = SAMPLES[name]
    report = explored(name, extent)
    assert not report.failures, "\n".join([report.failures[0]["why"], *report.failures[0]["fates"]])
    assert report.cuts == min(extent.states, report.combinations - report.left_out)
    assert report.checked > report.cuts / 3
    assert report.promises > 0
    assert report.second_checked > 0


@pytest.mark.slow
def test_the_order_of_an_ordinary_file_system_leaves_less_and_breaks_nothing():
    report = explored("update", Extent(states=60, states_of_recovery=1), "--model", ORDERED)
    assert report.checked > 30
    assert not report.failures, report.failures[0]["why"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_was_planted_is_found(fault):
    extent = Extent(states=400, states_of_recovery=1)
    report = explored(FAULTS[fault].workload, extent, "--to-first", "--plant", fault)
    assert report.failures, f"{fault}: {report.checked} states, and none broke"
    assert FAULTS[fault].says in report.failures[0]["why"]
