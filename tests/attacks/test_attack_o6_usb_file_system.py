"""O6: a stick changes after it was looked at, or holds good and bad side by side: what was judged is used, or nothing.

Every call on a stick failing, damaged images, folders without an end: tests/simulation/test_kit_sweeps.py and
test_kit_images.py.
"""

import shutil
from pathlib import Path

import pytest

from device.kits.shown import KitState
from protocol.kits import BLOBS_FOLDER, KIT_FILE
from tests.fakes.kits import make_kit
from tests.simulation.kit_stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, model_bytes=20_000)


async def test_attack_o6_metadata_that_changes_after_the_copy_changes_nothing(stage: Stage) -> None:
    with stage.machine("machine") as machine:
        before, judge = machine.trusted(), machine.judge_kit

        async def change_then_judge(folder: str):
            for path in stage.kit.rglob("*.json"):
                path.write_bytes(b"{}")
            return await judge(folder)

        machine.judge_kit = change_then_judge  # type: ignore[method-assign]
        told = await machine.plug()
        machine.check(before, [machine.trusted()])
        assert machine.is_ready(), told
        assert machine.verdicts[0].kit is not None


async def test_attack_o6_a_blob_that_changes_after_the_plan_is_refused_and_a_good_one_taken(stage: Stage) -> None:
    after = stage.outcomes()
    with stage.machine("machine") as machine:
        before = machine.trusted()
        good = {path: path.read_bytes() for path in (stage.kit / BLOBS_FOLDER).iterdir()}
        fetch = machine._fetch

        async def change_then_fetch() -> str:
            for path, data in good.items():
                path.write_bytes(bytes(len(data)))
            return await fetch()

        machine._fetch = change_then_fetch  # type: ignore[method-assign]
        told = await machine.plug()
        assert told.words
        assert machine.stored() == set()
        machine.check(before, after)
        machine._fetch = fetch  # type: ignore[method-assign]
        for path, data in good.items():
            path.write_bytes(data)
        await machine.replug()
        told = await machine.plug()
        assert machine.is_ready(), told


async def test_attack_o6_a_bad_kit_beside_a_good_one_keeps_it_from_nothing(stage: Stage) -> None:
    bad = make_kit(stage.stick, stage.field.house, [stage.brings], kit="kit-a-bad", by=["alice"])
    shutil.copytree(stage.kit, bad.with_name("kit-b-renamed"))
    assert (bad / KIT_FILE).exists()
    with stage.machine("machine") as machine:
        told = await machine.plug()
        assert machine.is_ready(), told
        shown = {kit.kit: kit.state for kit in machine.yard.kits.shown().kits}
        refused = [name for name, state in shown.items() if state is KitState.REFUSED]
        assert refused == ["kit-a-bad", "kit-b-renamed"]
