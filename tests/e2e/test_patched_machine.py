"""An update as a patch, from the server that makes it to the machine that applies it; killed on the way, counted."""

import pytest

from protocol.limits import PATCH_SEGMENT_BYTES
from scripts.cast import wait_for
from tests.e2e.device_stage import FieldMachine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SLOW_LINK = """
[link]
kind = "cellular"
rate_kib_s = 100

[transfer]
rate_cap_bytes_s = 30000.0
"""


@pytest.fixture(scope="module")
def slow_tractor(tractor: FieldMachine) -> FieldMachine:
    tractor.process.stop()
    with (tractor.state / "device.toml").open("a") as file:
        file.write(SLOW_LINK)
    tractor.start()
    return tractor


def is_fetching(machine: FieldMachine, least_bytes: int) -> bool:
    update = machine.status()["update"]
    return update["state"] == "fetch" and update["bytes_done"] >= least_bytes


def patches_are_made(stage) -> bool:
    patches = stage.server.get("/status")["patches"]
    return patches["surveyed"] and not patches["waiting"] and patches["ready"] > 0


def test_a_newer_release_comes_as_a_patch_although_the_machine_is_killed_on_the_way(stage, slow_tractor):
    tractor = slow_tractor
    stage.release("1.1.0")
    wait_for("the patch to be made", lambda: patches_are_made(stage), 120)
    before = tractor.status()
    assert before["delta_bytes"] == 0
    stage.rollout("second", "1.1.0")
    for least in (30_000, 60_000):
        wait_for("the patch to travel", lambda least=least: is_fetching(tractor, least), 60)
        tractor.process.kill()
        tractor.start()
    tractor.until_it_runs("1.1.0")
    status = tractor.status()
    took = status["update"]["transfer"]
    full = next(r for r in stage.server.get("/releases?product=pest-detector")["releases"] if r["version"] == "1.1.0")
    assert 0 < took["delta_bytes"] < full["full_bytes"]
    assert took["saved_bytes"] > 0
    assert (status["delta_bytes"], status["saved_bytes"]) == (took["delta_bytes"], took["saved_bytes"])
    # Three lives: two kills, each of which may have lost one segment that was open.
    planned = full["full_bytes"] - took["saved_bytes"]
    assert took["delta_bytes"] + took.get("full_bytes", 0) <= planned + 2 * PATCH_SEGMENT_BYTES
    assert list((tractor.state / "store" / "parts").iterdir()) == []
    seen = wait_for(
        "the server to hear of it",
        lambda: (d := stage.server.get("/devices/tractor-1"))["counters"].get("delta_bytes") and d,
    )
    assert seen["counters"]["delta_bytes"] == took["delta_bytes"]
    assert seen["inventory"]["patch_codecs"] == [1]
