"""Disks that are really full: what SQLite and the kernel refuse there, no injection could make up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _may_mount(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        assert not os.environ.get("CI"), "root of this machine may not mount a small disk"
        pytest.skip("root may not mount a small disk here")
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["update", "outbox", "outbox-full", "trust", "enrolment", "ingest"])
def test_what_did_not_fit_is_made_good_once_there_is_room(name):
    command = [sys.executable, "-m", "tests.simulation.full_disk", name, "6"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    outcome = json.loads(done.stdout)
    print(f"{name}: on disks of {', '.join(outcome['tried'])}")
    assert outcome["broken"] == []
