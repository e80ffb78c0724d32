"""The main job, end to end: `scripts/demo` says of itself that every step was verified, and its facts add up."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEGMENT_BYTES = 1 << 20
ATTACKS = {"token", "golden", "hash", "wrong-device", "rollback", "signature", "delisted"}


@pytest.mark.timeout(420)
def test_the_demo_verifies_every_step_and_its_facts_add_up():
    done = subprocess.run(
        [ROOT / "scripts" / "demo", "--json"], capture_output=True, text=True, timeout=400, check=False
    )
    told = json.loads(done.stdout)
    assert done.returncode == 0, [step for step in told["steps"] if not step["ok"]]
    assert told["ok"]
    assert len(told["steps"]) == 8
    assert all(step["ok"] and step["detail"] for step in told["steps"])

    assert {machine["id"] for machine in told["machines"]} == {"tractor-1", "tractor-2", "sprayer-1"}
    for machine in told["machines"]:
        assert machine["release"] == "1.1.0"
        assert machine["frames_dropped"] == 0
        assert machine["results_produced"] == machine["results_ingested"] + machine["results_lost"] > 0
        assert 0 < machine["bytes_received"] < machine["bytes_full"]

    reasons = {refusal["reason"] for refusal in told["refused"]}
    assert reasons >= ATTACKS
    assert any(reason.startswith("trial-") for reason in reasons)
    assert 0 <= told["bytes_fetched_again"] <= told["drops_in_download"] * SEGMENT_BYTES
    assert told["drops_in_download"] >= 3
