"""A server that is lost and comes back out of last week's backup: real server, real agents, real managers' tool.

One machine enrolled and one release was published after the backup. Nothing of either is lost, nobody is turned away,
and no machine ever refuses what it is offered.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import cast
from scripts.cast import BIN, run_json
from tests.e2e.device_stage import FieldMachine, Stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]


PATIENCE_S = 120.0  # several processes with a model each, on a computer that may be busy


def wait_for(what: str, look: Callable[[], Any]) -> Any:
    return cast.wait_for(what, look, PATIENCE_S)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    try:
        stage.open()
        yield stage
    finally:
        stage.close()


def status(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = stage.server.get("/status")
    return found


def kinds(stage: Stage) -> Counter[str]:
    return Counter(event["kind"] for event in stage.server.get("/events?limit=10000")["events"])


def settled(machine: FieldMachine) -> bool:
    return machine.waiting_frames() == 0 and machine.queued() == 0


def is_here(stage: Stage, machine: FieldMachine) -> bool:
    """Every row that it ever produced, once."""
    rows = stage.server.results(machine.name)
    assert len({(row["epoch"], row["lane"], row["seq"]) for row in rows}) == len(rows)
    return len(rows) == machine.produced()


def restored(stage: Stage, backup: Path) -> dict[str, Any]:
    """Killed, and brought back in a new folder under the same addresses."""
    server = stage.server
    server.process.kill()
    state = stage.root / "server-again"
    said = run_json(BIN / "headland-server", "restore", backup, "--state", state)
    server.process.command[-1] = str(state)
    server.state = state
    server.start()
    return said


def test_a_server_out_of_a_backup_gets_back_what_it_lacks_and_no_machine_refuses_it(stage: Stage) -> None:
    stage.release("1.0.0")
    stage.rollout("first", "1.0.0")
    tractor = stage.machine("tractor-1")
    tractor.start()
    tractor.show(20)
    tractor.until_it_runs("1.0.0", PATIENCE_S)
    wait_for("the outbox to drain", lambda: settled(tractor))
    backup = stage.root / "backup"
    done = run_json(BIN / "headland-server", "backup", backup, "--state", stage.server.state)
    assert done["copied"] == done["blobs"] > 0 and done["lacking"] == []
    old = status(stage)

    stage.release("1.1.0")
    stage.rollout("second", "1.1.0")
    newcomer = stage.machine("sprayer-2")
    newcomer.start()
    for machine in (tractor, newcomer):
        machine.until_it_runs("1.1.0", PATIENCE_S)
        machine.show(10)
    wait_for("the outboxes to drain", lambda: settled(tractor) and settled(newcomer))
    lost = status(stage)["repositories"]["image"]
    said = restored(stage, backup)
    assert said["lost"] == [] and any("--revoke" in text for text in said["warnings"])

    # Before any person acts: machines call, send again what the backup lacks, and give back what managers signed.
    wait_for("both to call", lambda: status(stage)["restored"]["called"] == 2)
    wait_for("every row to be here again", lambda: is_here(stage, tractor) and is_here(stage, newcomer))
    wait_for("signed files to come back", lambda: kinds(stage)["metadata-returned"])
    now = wait_for("nothing to be missing", lambda: (found := status(stage))["missing"] == [] and found)
    assert now["restored"]["held"] and now["generation"] != old["generation"]
    image = now["repositories"]["image"]
    assert image["pest-detector"]["version"] == lost["pest-detector"]["version"]
    assert image["timestamp"]["version"] == old["repositories"]["image"]["timestamp"]["version"]
    assert stage.server.get("/devices/sprayer-2")["returned"]
    for machine in (tractor, newcomer):
        machine.show(5)
        wait_for("inference to go on", lambda machine=machine: settled(machine))
        assert machine.runs() == "1.1.0"

    pushed = stage.managers("release", "push", "--again")
    assert (pushed["held"], pushed["missing"]) == ("", [])
    stage.managers("device", "readmit", "sprayer-2", "--yes")
    stage.managers("device", "groups", "sprayer-2", "field")
    stage.rollout("second", "1.1.0")
    now = status(stage)
    assert not now["restored"]["held"] and now["devices"]["returned"] == 0
    for role in ("timestamp", "snapshot"):
        assert now["repositories"]["image"][role]["version"] > lost[role]["version"]

    def trusts(machine: FieldMachine) -> bool:
        held = stage.server.get(f"/devices/{machine.name}")["versions"]
        roles = {
            f"{kind}/{role}": one["version"] for kind, of in now["repositories"].items() for role, one in of.items()
        }
        return all(held.get(role, 0) >= version for role, version in roles.items())

    wait_for("both to trust what is published now", lambda: trusts(tractor) and trusts(newcomer))
    wait_for("every row to be here", lambda: is_here(stage, tractor) and is_here(stage, newcomer))
    for machine in (tractor, newcomer):
        alerts = stage.server.get(f"/devices/{machine.name}")["alerts"]
        assert [alert for alert in alerts if alert["kind"].startswith(("refused", "stale"))] == []
    found = kinds(stage)
    assert (found["clone"], found["conflict"], found["returned"], found["server-restored"]) == (0, 0, 1, 1)
    wait_for("both to count as committed", lambda: stage.server.get("/rollouts/second")["phases"][0]["committed"] == 2)
    assert stage.server.get("/rollouts/first")["state"] == "paused"
