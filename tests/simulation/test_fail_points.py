"""Layer 2 on each commit: at each effect something goes wrong; `scripts/soak` tries everything everywhere.

`python -m tests.simulation.sweep NAME` does so for one workload.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.tripwire import HARMS
from tests.simulation.workloads.catalogue import WORKLOADS

CHECKOUT = Path(__file__).parents[2]


SHARES = {
    "update": 5,
    "rollback": 5,
    "dying": 5,
    "images": 10,
    "kit": 10,
    "outbox-damaged": 5,
    "trust": 10,
    "enrolment": 5,
    "publish": 10,
}
SHARES |= {"backup": 15, "restore": 15}
"""One in so many of the harms at the effects of work that has many of them, or takes long; of the rest every other."""

ENDED_ONLY = {"sealed"}
"""It loses the whole database on top: of what a full disk kept from the seal, nothing is promised then."""


def swept(name: str, *options: str) -> dict:
    """What came of a sweep in a process of its own, whose forks are of a small parent without threads."""
    command = [sys.executable, "-m", "tests.simulation.sweep", name, *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", WORKLOADS)
def test_what_was_promised_holds_wherever_a_process_is_killed_or_the_disk_refuses(name):
    harms = ("kill", "cut") if name in ENDED_ONLY else HARMS
    options = [word for harm in harms for word in ("--harm", harm)]
    outcome = swept(name, *options, "--share", str(SHARES.get(name, 2)))
    print(f"{name}: {outcome['effects']} effects, {sum(outcome['tried'].values())} fail points: {outcome['tried']}")
    assert outcome["broken"] == []
    assert outcome["effects"] >= 8
    assert sorted(outcome["tried"]) == sorted(harms)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_is_planted_shows(name):
    outcome = swept(FAULTS[name].workload, "--harm", FAULTS[name].harm, "--stop-at", "1", "--plant", name)
    assert len(outcome["broken"]) == 1, outcome
    assert FAULTS[name].says in outcome["broken"][0]
