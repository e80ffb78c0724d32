"""An update as a patch, from the server that makes it to the machine that applies it; killed on the way, counted."""

import signal

import pytest

from tests.e2e.device_stage import Machine, Stage, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SLOW_LINK = """
[link]
kind = "cellular"
rate_kib_s = 100

[transfer]
rate_cap_bytes_s = 200000.0
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp("stage"))
    try:
        stage.open()
        stage.release("1.0.0")
        stage.rollout("first", "1.0.0")
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def tractor(stage) -> Machine:
    machine = stage.machine("tractor-1")
    machine.start()
    until("1.0.0 to be committed", lambda: machine.film(1) or machine.runs() == "1.0.0", 60)
    machine.agent.end()
    with (machine.state / "device.toml").open("a") as file:
        file.write(SLOW_LINK)
    machine.start()
    return machine


def patches_are_made(stage) -> bool:
    patches = stage.seen("/status")["patches"]
    return patches["surveyed"] and not patches["waiting"] and patches["ready"] > 0


def test_a_newer_release_comes_as_a_patch_although_the_machine_is_killed_on_the_way(stage, tractor):
    stage.release("1.1.0")
    until("the patch to be made", lambda: patches_are_made(stage), 120)
    before = tractor.status()
    assert before["delta_bytes"] == 0
    stage.rollout("second", "1.1.0")
    until("the patch to travel", lambda: tractor.status()["delta_bytes"] > 0, 60)
    for _ in range(2):
        tractor.agent.end(signal.SIGKILL)
        tractor.start()
    until("1.1.0 to be committed", lambda: tractor.film(1) or tractor.runs() == "1.1.0", 90)
    status = tractor.status()
    took = status["update"]["transfer"]
    full = next(r for r in stage.seen("/releases?product=pest-detector")["releases"] if r["version"] == "1.1.0")
    assert 0 < took["delta_bytes"] < full["full_bytes"]
    assert took["saved_bytes"] > 0
    assert (status["delta_bytes"], status["saved_bytes"]) == (took["delta_bytes"], took["saved_bytes"])
    # Three lives, each of which may have lost one segment that was open.
    planned = full["full_bytes"] - took["saved_bytes"]
    assert took["delta_bytes"] + took["full_bytes"] <= planned + 2 * 256 * 1024
    assert list((tractor.state / "store" / "parts").iterdir()) == []
    seen = until(
        "the server to hear of it",
        lambda: (d := stage.seen("/devices/tractor-1"))["counters"].get("delta_bytes") and d,
    )
    assert seen["counters"]["delta_bytes"] == took["delta_bytes"]
    assert seen["inventory"]["patch_codecs"] == [1]
