"""T6: a stick gives garbage while another one is good: the next one is tried, and the bad one is not asked again."""

import shutil
from pathlib import Path

from protocol.kits import BLOBS_FOLDER
from tests.simulation.kit_stage import Stage


async def test_attack_t6_blobs_that_are_garbage_come_from_the_next_stick(tmp_path: Path) -> None:
    stage = Stage(tmp_path, model_bytes=20_000)
    second = tmp_path / "second"
    shutil.copytree(stage.stick, second)
    for path in (stage.kit / BLOBS_FOLDER).iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    with stage.machine("machine") as machine:
        machine.yard.finder.add(second)
        before = machine.trusted()
        told = await machine.plug()
        assert machine.is_ready(), told
        machine.check(before, [machine.trusted()])
        assert {place.stick.root for place, _ in machine.yard.shelf._bad} == {stage.stick}


async def test_attack_t6_a_stick_whose_metadata_is_garbage_is_refused_and_the_next_one_taken(tmp_path: Path) -> None:
    stage = Stage(tmp_path, model_bytes=20_000)
    second = tmp_path / "second"
    shutil.copytree(stage.stick, second)
    for path in stage.kit.rglob("*.json"):
        path.write_bytes(b"<html>welcome to the hotel</html>")
    with stage.machine("machine") as machine:
        before = machine.trusted()
        told = await machine.plug()
        assert told.words
        assert machine.trusted() == before
        machine.yard.finder.add(second)
        told = await machine.plug()
        assert machine.is_ready(), told
