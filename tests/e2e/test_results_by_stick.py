"""A machine that no signal reaches: updated from a stick, its results come home on sticks, and each counts once."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from protocol.kits import read_piece
from scripts.cast import BIN, run_json, wait_for
from tests.e2e.device_stage import ALICE, FieldMachine, Stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NOWHERE = 'url = "https://127.0.0.1:9"\n'


class Walker:
    """The machine, and the one who walks there."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.machine: FieldMachine = stage.machine("walker", group="far")
        self.settings = self.machine.state / "device.toml"
        self.settings.write_text(self.settings.read_text().replace("[server]\n", f"[server]\n{NOWHERE}"))

    def device(self, *arguments: str | Path) -> dict[str, Any]:
        command, *rest = arguments
        return run_json(BIN / "headland-device", "kit", command, *rest, "--state", self.machine.state)

    def export(self, stick: Path) -> dict[str, Any]:
        stick.mkdir(exist_ok=True)
        (one,) = self.device("export", stick)["sticks"]
        exported: dict[str, Any] = one["exported"]
        return exported

    def bring_home(self, stick: Path, code: int = 0) -> dict[str, Any]:
        found = self.stage.managers("kit", "import", stick, code=code)
        return {**found, "words": found["machines"]["walker"]["complaints"]}

    def ingested(self) -> int:
        rows = self.stage.server.results("walker")
        assert len({(row["epoch"], row["lane"], row["seq"]) for row in rows}) == len(rows)
        return len(rows)

    def known(self) -> dict[str, Any]:
        found: dict[str, Any] = self.stage.server.get("/devices/walker")
        return found

    def rest(self) -> int:
        """How many rows there are once all frames are through."""
        wait_for("all frames to be inferred", lambda: self.machine.waiting_frames() == 0)
        return self.machine.produced()


def pieces(stick: Path, kind: str = "") -> list[Path]:
    found = sorted(stick.rglob("*.piece"))
    return [path for path in found if not kind or read_piece(path.read_bytes())[0].kind == kind]


def test_what_a_machine_without_a_link_did_comes_home_by_sticks_once(stage: Stage, tmp_path: Path) -> None:
    walker = Walker(stage)
    machine = walker.machine
    stick, damaged, copy, second, late = (tmp_path / name for name in ("stick", "damaged", "copy", "second", "late"))
    stick.mkdir()
    stage.managers("kit", "build", stick, "--machine", "walker", "--yes", "--as", ALICE, person=ALICE)
    machine.start()
    walker.device("apply", stick, "--no-wait")
    machine.until_it_runs("1.0.0")

    # What came of the kit is on the stick without a word of anybody.
    wait_for("the sentence", lambda: "safe to pull" in walker.device("list")["results"])
    (told,) = pieces(stick, "report")
    assert read_piece(told.read_bytes())[0].number > 1, "it was written again at the end"
    machine.show(40)
    produced = walker.rest()
    walker.export(stick)
    assert len(pieces(stick, "report")) == 1
    shutil.copytree(stick, copy)
    shutil.copytree(stick, damaged)

    # One byte costs one piece.
    bad = max(pieces(damaged, "batch"), key=lambda path: path.stat().st_size)
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    found = walker.bring_home(damaged, code=4)
    assert (len(found["words"]), found["rows"]) == (1, walker.ingested())
    assert found["rows"] < produced
    assert pieces(damaged) == [bad]

    # What was installed offline, the server knows.
    known = walker.known()
    assert known["report"]["release"] == "1.0.0"
    (ended,) = [each for each in known["statuses"] if each.get("outcome") == "committed"]
    assert ended["rollout"].startswith("kit-")

    # The rest from the stick; from its copy nothing.
    found = walker.bring_home(stick)
    assert (walker.ingested(), found["words"], pieces(stick)) == (produced, [], [])
    assert walker.bring_home(copy)["rows"] == 0
    assert walker.ingested() == produced

    # A second stick meanwhile, which knows of no receipt: again each row, and new ones.
    machine.show(5)
    more = walker.rest()
    assert walker.export(second)["rows"] == more > produced
    walker.export(late)

    # The first one back at the machine: what it brought home is settled here.
    back = walker.export(stick)
    assert (back["settled"], machine.queued()) == (produced, more - produced)
    found = walker.bring_home(second)
    assert (found["rows"], found["known"], walker.ingested()) == (more - produced, produced, more)

    # A contact, and then a stick from before it: that changes nothing of what is known.
    machine.process.stop()
    walker.settings.write_text(walker.settings.read_text().replace(NOWHERE, ""))
    machine.start()
    wait_for("the outbox to drain", lambda: machine.queued() == 0)
    machine.show(3)
    more = walker.rest()
    wait_for("the outbox to drain", lambda: machine.queued() == 0 and walker.ingested() == more)
    machine.process.stop()
    known = walker.known()
    assert walker.bring_home(late)["rows"] == 0
    assert {**walker.known(), "receipts": 0} == {**known, "receipts": 0}
    assert walker.ingested() == more
