"""Results onto real FAT32 and exFAT: pulled while it is written, full, read-only; nothing is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from signing.durable import Disk
from tests.fakes.contact_machine import opened
from tests.fakes.stick_images import FILE_SYSTEMS, FileSystem, StickImage, need
from tests.unit.device.kits.test_export import BIG, KEY, Place, incompressible

pytestmark = pytest.mark.timeout(120)
ROWS = 400


@pytest.fixture(params=FILE_SYSTEMS)
def kind(request: pytest.FixtureRequest) -> FileSystem:
    need(request.param)
    found: FileSystem = request.param
    return found


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(tmp_path, budget_bytes=BIG, key=KEY) as machine:
        await machine.outbox.enqueue_all([("results", incompressible(n)) for n in range(ROWS)])
        yield Place(machine, tmp_path / "mount")


async def test_a_stick_that_is_pulled_while_it_is_written_has_each_row_once_after_the_next_visit(
    place: Place, tmp_path: Path, kind: FileSystem
) -> None:
    image = StickImage(tmp_path / "stick.img", kind)
    renames = 0

    def pull(effect: str, path: object) -> None:
        nonlocal renames
        renames += effect == "rename"
        if renames == 4:
            image.pull()

    await asyncio.to_thread(image.plug, place.folder)
    cut = await place.put_in(Disk(before=pull))
    assert (cut.end, place.machine.outbox.queued()) == ("gone", ROWS)
    await asyncio.to_thread(image.plug, place.folder)
    try:
        done = await place.put_in()
        assert (done.end, place.machine.outbox.queued()) == ("complete", ROWS)
        found = await asyncio.to_thread(place.rows)
        assert len(found) == len(set(found)) == ROWS
        assert len(await asyncio.to_thread(place.reports)) == 1
    finally:
        await asyncio.to_thread(image.unplug)


async def test_a_full_stick_says_so_and_the_next_one_takes_all(place: Place, tmp_path: Path, kind: FileSystem) -> None:
    for size_mib, end in ((36, "full"), (96, "complete")):
        more = 2200 - place.machine.outbox.queued()
        await place.machine.outbox.enqueue_all([("results", incompressible(n)) for n in range(more)])
        image = StickImage(tmp_path / f"{size_mib}.img", kind, size_mib)
        await asyncio.to_thread(image.plug, place.folder)
        try:
            done = await place.put_in()
            assert done.end == end, done.words
            found = await asyncio.to_thread(place.rows)
            assert len(found) == len(set(found)) == done.rows
            assert place.machine.outbox.queued() == 2200
        finally:
            await asyncio.to_thread(image.unplug)


async def test_a_read_only_stick_is_said_to_be_that(place: Place, tmp_path: Path, kind: FileSystem) -> None:
    image = StickImage(tmp_path / "stick.img", kind)
    await asyncio.to_thread(lambda: image.plug(place.folder, read_only=True))
    try:
        done = await place.put_in()
        assert done.end == "read-only", done.words
    finally:
        await asyncio.to_thread(image.unplug)
