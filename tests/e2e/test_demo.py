"""The main job, end to end: `scripts/demo` says of itself that every step was verified, and its facts add up."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEGMENT_BYTES = 256 * 1024  # of a patch
ATTACKS = {"token", "golden", "hash", "wrong-device", "rollback", "signature", "delisted"}


@pytest.mark.timeout(480)
def test_the_demo_verifies_every_step_and_its_facts_add_up():
    done = subprocess.run(
        [ROOT / "scripts" / "demo", "--json"], capture_output=True, text=True, timeout=460, check=False
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
        assert machine["bytes_as_patches"] > 0
        assert machine["bytes_saved"] > 0
        assert machine["bytes_as_patches"] + machine["bytes_whole"] <= machine["bytes_received"]
        assert machine["bytes_received"] < machine["bytes_on_the_wire"]

    reasons = {refusal["reason"] for refusal in told["refused"]}
    assert reasons >= ATTACKS
    assert any(reason.startswith("trial-") for reason in reasons)
    assert 0 <= told["bytes_fetched_again"] <= told["drops_in_download"] * SEGMENT_BYTES
    assert told["drops_in_download"] >= 3

    better = [update for update in told["updates"] if (update["rollout"], update["release"]) == ("better", "1.1.0")]
    assert {update["machine"] for update in better} == {"tractor-1", "tractor-2", "sprayer-1"}
    for update in better:
        assert update["outcome"] == "committed"
        assert update["delta_bytes"] > 0
        assert update["saved_bytes"] > 0
    slow = next(update for update in told["updates"] if update["release"] == "1.2.1")
    assert slow["saved_bytes"] > slow["delta_bytes"] + slow["full_bytes"], "its weights were there already"
    facts = told["better_model"]
    assert facts["received_bytes"] == facts["price_bytes"] + told["bytes_fetched_again"]
    assert facts["price_bytes"] < facts["whole_bytes"]
    assert facts["received_bytes"] < facts["on_the_wire_bytes"]
    deferred = told["deferred_by_budget"]
    assert deferred["machine"] == "sprayer-1"
    assert deferred["allowed_bytes"] < deferred["needs_bytes"]
