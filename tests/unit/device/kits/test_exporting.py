"""When results go onto sticks: once a visit, when asked, after a kit's update; and no stick holds up the machine."""

import asyncio
import contextlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from device.cancelling import cancel
from device.kits.export import Exported
from device.kits.exporting import Exports
from device.update.states import Ended, Held, Offer, State, UpdateRecord
from protocol.errors import StateError
from signing.durable import Disk
from tests.fakes.contact_machine import opened
from tests.fakes.kit_yard import KitYard
from tests.unit.device.kits.test_export import BIG, KEY, Place
from tests.unit.device.kits.test_finding import finding

HELD = Held(digest="0" * 64, version="1.1.0", release_counter=2)


class Writing:
    """Implements `device.kits.exporting.Writer`."""

    def __init__(self) -> None:
        self.wrote: list[str] = []
        self.end = "complete"
        self.may = asyncio.Event()
        self.may.set()

    async def to(self, stick, device=None) -> Exported:
        await self.may.wait()
        self.wrote.append(stick.name)
        return Exported(end=self.end, words="3 results in 1 piece written; all that waits is on the stick", pieces=1)


@pytest.fixture
async def yard(tmp_path):
    """A machine with sticks, whose results are written by `yard.writing`."""
    yard = KitYard(tmp_path)
    yard.writing = Writing()
    yard.exports = yard.kits._exports = Exports(yard.writing, yard.finder, yard.updates)
    task = asyncio.create_task(yard.exports.run())
    async with yard.running():
        yield yard
    await cancel(task)


@contextlib.contextmanager
def mounted(folder):
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_a_stick_gets_results_once_for_each_visit(yard):
    stick = yard.media / "stick"
    with mounted(stick):
        (stick / "headland-kits").mkdir()
        for _ in range(3):
            await yard.turn()
        assert yard.writing.wrote == ["stick"]
        assert "It is safe to pull the stick out" in yard.kits.shown().results
    await yard.turn()
    assert "3 results" in yard.kits.shown().results, "what was done last is still said"
    with mounted(stick):
        (stick / "headland-results").mkdir()
        await yard.turn()
    assert yard.writing.wrote == ["stick"] * 2


async def test_nothing_is_written_to_our_own_disk_where_a_stick_was(yard):
    (yard.media / "left" / "headland-kits").mkdir(parents=True)
    with mounted(yard.media / "foreign"):
        await yard.turn()
    assert yard.writing.wrote == []
    with pytest.raises(StateError, match="no stick"):
        await yard.exports.ask()


async def test_a_person_has_them_written_again_and_to_any_folder(yard, tmp_path):
    with mounted(yard.media / "stick") as stick:
        (stick / "headland-kits").mkdir()
        await yard.turn()
        assert [one.stick for one in (await yard.exports.ask()).sticks] == [str(stick)]
        folder = tmp_path / "anywhere"
        found = await yard.exports.ask(folder)
        assert "3 results" in found.sentence
        folder.joinpath("headland-results").mkdir(parents=True)
        for _ in range(2):
            await yard.turn()
        assert yard.writing.wrote == ["stick", "stick", "anywhere"]


async def test_what_came_of_a_kit_is_written_once_it_ended_and_not_before(yard):
    with mounted(yard.media / "stick") as stick:
        (stick / "headland-kits").mkdir()
        yard.updates.record = UpdateRecord(state=State.FETCH, offer=Offer(release=HELD, rollout="kit-a"))
        await yard.turn()
        assert "leave the stick in" in yard.kits.shown().results
        ended = Ended(release=HELD, rollout="kit-a", outcome="committed")
        for state, times in ((State.COMMIT, 1), (State.CLEANUP, 2), (State.IDLE, 2)):
            yard.updates.record = UpdateRecord(state=state, last=ended)
            await yard.turn()
            await asyncio.sleep(0.05)
            assert len(yard.writing.wrote) == times, state
        assert "It is safe to pull the stick out" in yard.kits.shown().results
        yard.updates.record = UpdateRecord(last=Ended(release=HELD, rollout="spring", outcome="committed"))
        await yard.turn()
        assert len(yard.writing.wrote) == 2


async def test_while_a_stick_is_written_to_kits_go_on_and_it_is_said(yard):
    yard.writing.may.clear()
    with mounted(yard.media / "stick") as stick:
        (stick / "headland-kits").mkdir()
        await yard.turn()
        await yard.turn()
        assert "leave it in" in yard.kits.shown().results
        yard.writing.may.set()
        yard.writing.end = "gone"
        await yard.exports.ask()
    assert "safe" not in yard.kits.shown().results


async def test_a_stick_that_hangs_holds_up_nobody_and_its_folders_stay_open_until_it_is_back(tmp_path):
    goes_on = threading.Event()
    (tmp_path / "stick").mkdir()
    (tmp_path / "other").mkdir()

    def hang(effect: str, path: object) -> None:
        if effect == "rename":
            goes_on.wait(20)

    async with opened(tmp_path, budget_bytes=BIG, key=KEY) as machine:
        place = Place(machine, tmp_path / "stick")
        await machine.outbox.enqueue("results", b"one")
        export = place.export(Disk(before=hang), answer_s=0.3)
        async with asyncio.timeout(5):
            assert (await export.to(place.folder)).end == "gone"
            assert "does not answer" in (await export.to(place.folder)).words
        (thread,) = [each for each in threading.enumerate() if each.name.startswith("hand on")]
        assert thread.daemon, "the agent ends although it hangs"
        assert open_below(place.results) == 1
        goes_on.set()
        await asyncio.to_thread(thread.join, 5)
        assert open_below(place.results) == 0
        assert (await export.to(place.folder)).end == "complete"
        assert (await export.to(tmp_path / "other")).end == "complete"
        assert len(place.rows()) == 1


def open_below(folder) -> int:
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += each.readlink() == folder
    return found


async def test_another_file_system_than_the_one_that_was_seen_gets_nothing(tmp_path):
    (tmp_path / "stick").mkdir()
    async with opened(tmp_path, budget_bytes=BIG, key=KEY) as machine:
        place = Place(machine, tmp_path / "stick")
        here = place.folder.stat().st_dev
        assert (await place.export().to(place.folder, here + 1)).end == "gone"
        assert not list(place.folder.iterdir())
        assert (await place.export().to(place.folder, here)).end == "complete"


async def test_a_driver_that_counts_no_blocks_does_not_say_that_the_stick_is_full(tmp_path, monkeypatch):
    (tmp_path / "stick").mkdir()
    monkeypatch.setattr(os, "statvfs", lambda fd: os.statvfs_result((512, 512, 0, 0, 0, 0, 0, 0, 0, 255)))
    async with opened(tmp_path, budget_bytes=BIG, key=KEY) as machine:
        assert (await Place(machine, tmp_path / "stick").put_in()).end == "complete"


async def test_only_mounts_and_folders_that_a_person_named_carry_results(tmp_path):
    (tmp_path / "media" / "left" / "headland-kits").mkdir(parents=True)
    (tmp_path / "named" / "headland-results").mkdir(parents=True)
    async with finding(tmp_path / "media") as finder:
        finder.add(tmp_path / "named")
        with mounted(tmp_path / "media" / "stick") as stick:
            (stick / "headland-results").mkdir()
            await finder.look()
            assert finder.carriers == {
                stick: stick.stat().st_dev,
                tmp_path / "named": (tmp_path / "named").stat().st_dev,
            }
        await finder.look()
        assert list(finder.carriers) == [tmp_path / "named"]
