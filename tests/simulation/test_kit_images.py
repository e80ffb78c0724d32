"""Kits on real FAT32 and exFAT sticks: read-only, damaged, with folders that never end, pulled out at any moment."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.stick_images import FILE_SYSTEMS, FileSystem, need
from tests.simulation import kit_images
from tests.simulation.fleet.template import scratch
from tests.simulation.kit_images import RealStick, endless, pulled, turn_into
from tests.simulation.kit_stage import MODEL_BYTES

SEED = 6
DAMAGED = 30
PULLS = 4
PULL_S = 0.3  # a whole try takes about this


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = scratch()
    yield folder
    shutil.rmtree(folder)


async def test_a_damaged_stick_brings_what_was_signed_or_a_word(folder: Path) -> None:
    for kind in FILE_SYSTEMS:
        need(kind)
    report = await kit_images.sweep(folder, seed=SEED, count=DAMAGED)
    print(f"seed {SEED}: {report.line()}")
    assert report.broken == []
    assert min(report.not_mounted, report.with_words, report.whole) > 0


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
async def test_a_stick_is_pulled_at_some_moment_and_plugged_in_again(folder: Path, kind: FileSystem) -> None:
    need(kind)
    stick = RealStick(folder / "stick", kind, MODEL_BYTES)
    draw = random.Random(SEED)
    moments = [draw.random() * PULL_S for _ in range(PULLS)]
    print(f"pulled after {', '.join(f'{moment:.3f} s' for moment in moments)}")
    for moment in moments:
        await pulled(stick, moment)


@pytest.mark.parametrize("harm", ["a folder holds itself", "a folder never ends"])
async def test_a_loop_on_a_stick_holds_up_nobody(folder: Path, harm: str) -> None:
    need("fat32")
    stick = RealStick(folder / "stick", "fat32", 20_000)
    bad = stick.copy(folder / "bad.img")
    if harm == "a folder holds itself":
        turn_into(bad.path, "director", "headland-kits")
    else:
        endless(bad.path, "headland-kits")
    with stick.stage.machine("machine", stick.mount) as machine:
        before = machine.trusted()
        bad.plug(stick.mount, read_only=True)
        try:
            async with asyncio.timeout(60):
                told = await machine.plug()
        finally:
            bad.pull()
        print(told)
        assert machine.is_ready() or told.words
        machine.check(before, stick.after)
        await stick.again(machine, before)
