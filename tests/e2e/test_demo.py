"""The main job, end to end: `scripts/demo` says of itself that every step was verified, and its facts add up."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEGMENT_BYTES = 256 * 1024  # of a patch
ATTACKS = {"token", "golden", "hash", "wrong-device", "rollback", "signature", "delisted"}


@pytest.mark.timeout(900)
def test_the_demo_verifies_every_step_and_its_facts_add_up():
    done = subprocess.run(
        [ROOT / "scripts" / "demo", "--json"], capture_output=True, text=True, timeout=860, check=False
    )
    told = json.loads(done.stdout)
    assert done.returncode == 0, [step for step in told["steps"] if not step["ok"]]
    assert told["ok"]
    containers = told.get("containers")
    assert containers or os.environ.get("CI") != "true", done.stderr
    assert len(told["steps"]) == (10 if containers else 9)
    assert all(step["ok"] and step["detail"] for step in told["steps"])

    assert {machine["id"] for machine in told["machines"]} == {"tractor-1", "tractor-2", "sprayer-1"}
    for machine in told["machines"]:
        has_containers = containers is not None and machine["id"] == containers["machine"]
        assert machine["release"] == ("1.6.0" if has_containers else "1.1.0")
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

    cuts = told["cuts"]
    assert sum(cut["how"] == "drop" for cut in cuts) >= 3
    assert sum(cut["how"] == "kill" and cut["came_bytes"] < cut["of_bytes"] for cut in cuts) >= 1, "none on the way"
    for cut in cuts:
        assert cut["from_bytes"] <= cut["of_bytes"]
        assert cut["bytes_again"] == max(cut["came_bytes"] - cut["from_bytes"], 0) <= SEGMENT_BYTES
        assert cut["segments_again"] <= 1
        assert cut["groups_again"] <= 1

    better = [update for update in told["updates"] if (update["rollout"], update["release"]) == ("better", "1.1.0")]
    assert {update["machine"] for update in better} == {"tractor-1", "tractor-2", "sprayer-1"}
    for update in better:
        assert update["outcome"] == "committed"
        assert update["delta_bytes"] > 0
        assert update["saved_bytes"] > 0
    slow = next(update for update in told["updates"] if update["release"] == "1.2.1")
    assert slow["saved_bytes"] > slow["delta_bytes"] + slow["full_bytes"], "its weights were there already"
    facts = told["better_model"]
    assert facts["received_bytes"] <= facts["price_bytes"] + sum(cut["bytes_again"] for cut in cuts)
    assert facts["price_bytes"] < 0.5 * facts["whole_bytes"], "a fine-tune of the last layers"
    assert facts["saved_bytes"] == facts["whole_bytes"] - facts["price_bytes"]
    assert (facts["drops"] + facts["kills"], facts["groups"]) == (len(cuts), 1)
    assert facts["received_bytes"] < facts["on_the_wire_bytes"]
    deferred = told["deferred_by_budget"]
    assert deferred["machine"] == "sprayer-1"
    assert deferred["allowed_bytes"] < deferred["needs_bytes"]
    if containers:
        assert containers["drops"] >= 1
        assert containers["received_bytes"] <= containers["on_the_wire_bytes"] < containers["pull_bytes"]
        assert containers["saved_bytes"] > containers["received_bytes"]
