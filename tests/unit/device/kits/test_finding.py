"""A stick is found soon: one that was there at start, one that is mounted later, one that a person names."""

import asyncio
import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest
from watchdog.observers.api import BaseObserver

from device.cancelling import cancel
from device.kits.finding import AT_ONCE, FOLDERS, LOOKED_INTO, NAMED, Finder, mounts_in
from device.kits.folder import Stick
from tests.fakes.sticks import KIT, write_kit


@contextlib.asynccontextmanager
async def finding(*folders, **options):
    finder = Finder(folders, **options)
    await finder.start()
    try:
        yield finder
    finally:
        await finder.close()


async def found_within(finder, seconds):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = await finder.look()
        if found:
            return [(one.stick.root, one.kit) for one in found]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, ends - time.monotonic())):
                await finder.news()
    return []


@pytest.mark.parametrize("below", [(), ("stick",), ("person", "stick")])
async def test_what_is_there_at_the_start_is_found(tmp_path, below):
    stick = tmp_path.joinpath("media", *below)
    write_kit(stick)
    async with finding(tmp_path / "media", tmp_path / "absent") as finder:
        assert [(one.stick.root, one.kit) for one in await finder.look()] == [(stick, KIT)]
        assert finder.troubles == {}


async def test_what_else_lies_on_a_stick_hides_no_kit(tmp_path):
    stick = tmp_path / "media" / "stick"
    for number in range(FOLDERS + 20):
        (stick / f"photos {number}").mkdir(parents=True)
    for number in range(1000):
        (stick / "headland-kits" / f"notes {number}").mkdir(parents=True)
    write_kit(stick)
    async with finding(tmp_path / "media") as finder:
        assert [(one.stick.root, one.kit) for one in await finder.look()] == [(stick, KIT)]


async def test_what_lies_deeper_or_behind_a_link_is_not(tmp_path):
    write_kit(tmp_path / "media" / "a" / "b" / "c")
    write_kit(tmp_path / "elsewhere")
    (tmp_path / "media" / "link").symlink_to(tmp_path / "elsewhere")
    async with finding(tmp_path / "media") as finder:
        assert await finder.look() == ()


async def test_a_folder_with_any_number_of_folders_takes_few_threads_and_few_looks(tmp_path, monkeypatch):
    for outer in range(20):
        for inner in range(20):
            (tmp_path / "mnt" / f"{outer}" / f"{inner}").mkdir(parents=True)
    write_kit(tmp_path / "media" / "stick")
    real, now, most, roots = Stick.do, 0, 0, set()

    async def counted(stick, work):
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        roots.add(stick.root)
        try:
            return await real(stick, work)
        finally:
            now -= 1

    monkeypatch.setattr(Stick, "do", counted)
    async with finding(tmp_path / "mnt", tmp_path / "media") as finder:
        assert [one.stick.root.name for one in await finder.look()] == ["stick"]
    assert most <= AT_ONCE
    assert len(roots) <= LOOKED_INTO


async def test_only_the_last_folders_that_people_named_are_kept(tmp_path):
    write_kit(tmp_path / "first")
    write_kit(tmp_path / "again")
    async with finding() as finder:
        finder.add(tmp_path / "first")
        finder.add(tmp_path / "again")
        for number in range(NAMED - 1):
            if number == 5:
                finder.add(tmp_path / "again")
            finder.add(tmp_path / f"{number}")
        assert [one.stick.root.name for one in await finder.look()] == ["again"]


async def test_a_stick_whose_name_nobody_can_be_told_is_named_as_far_as_it_goes(tmp_path):
    write_kit(tmp_path / "media" / "good")
    write_kit(tmp_path / "media" / os.fsdecode(b"st\xfcck"))
    async with finding(tmp_path / "media") as finder:
        assert [one.stick.root.name for one in await finder.look()] == ["good"]
        (trouble,) = finder.troubles.values()
        assert "st\ufffdck" in trouble
        trouble.encode()


async def test_a_folder_that_comes_wakes(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    write_kit(tmp_path / "fresh")
    async with finding(media) as finder:
        assert await finder.look() == ()
        asyncio.get_running_loop().call_later(0.2, os.rename, tmp_path / "fresh", media / "fresh")
        assert await found_within(finder, 5) == [(media / "fresh", KIT)]


async def test_a_new_watch_is_followed_by_a_second_look(tmp_path, monkeypatch):
    monkeypatch.setattr(BaseObserver, "schedule", lambda *_, **__: None)  # as if it began only after the stick came
    async with finding(tmp_path) as finder:
        await finder.look()
        async with asyncio.timeout(5):
            await finder.news()


async def test_a_folder_that_a_person_names_is_a_stick(tmp_path):
    write_kit(tmp_path / "anywhere")
    async with finding(tmp_path / "media") as finder:
        assert await finder.look() == ()
        finder.add(tmp_path / "anywhere")
        assert await found_within(finder, 2) == [(tmp_path / "anywhere", KIT)]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, which takes root")
async def test_a_mount_and_its_end_are_seen_within_a_second_or_two(tmp_path, caplog):
    stick = tmp_path / "media" / "a person" / "stick"
    stick.mkdir(parents=True)
    image = tmp_path / "source"
    write_kit(image)
    async with finding(tmp_path / "media") as finder:
        assert await finder.look() == ()
        done = await asyncio.to_thread(
            subprocess.run, ["mount", "--bind", image, stick], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        try:
            began = time.monotonic()
            await finder.news()
            assert time.monotonic() - began < 2.5
            caplog.clear()
            assert [(one.stick.root, one.kit) for one in await finder.look()] == [(stick, KIT)]
            assert stick in mounts_in()
            assert [one.message for one in caplog.records if "without nosuid" in one.message]
            caplog.clear()
            await finder.look()
            assert not caplog.records
        finally:
            await asyncio.to_thread(subprocess.run, ["umount", stick], check=True)
        began = time.monotonic()
        while await finder.look():
            await finder.news()
        assert time.monotonic() - began < 2.5


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, which takes root")
async def test_the_depths_of_another_disk_are_not_looked_into(tmp_path):
    disk = tmp_path / "mnt" / "data"
    disk.mkdir(parents=True)
    done = await asyncio.to_thread(
        subprocess.run, ["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        write_kit(disk / "of somebody")
        async with finding(tmp_path / "mnt") as finder:
            assert await finder.look() == ()
            write_kit(disk)
            assert [one.stick.root for one in await finder.look()] == [disk]
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", disk], check=True)


async def test_nothing_goes_round_while_nothing_happens(tmp_path):
    write_kit(tmp_path / "media" / "stick")
    # Not the kernel's: whatever else runs here mounts things too.
    async with finding(tmp_path / "media", mounts=tmp_path / "no mounts") as finder:
        await finder.look()
        await asyncio.sleep(0.5)
        spent = time.process_time()
        turns = 0

        file = tmp_path / "media" / "of somebody else"
        file.write_text("")
        await finder.news()

        async def open_often() -> None:
            while True:
                await asyncio.to_thread(file.read_bytes)
                await asyncio.sleep(0.05)

        async def count() -> None:
            nonlocal turns
            while True:
                await finder.news()
                await finder.look()
                turns += 1

        reader = asyncio.create_task(open_often())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await count()
        await cancel(reader)
        assert turns <= 1  # the second look after the watch began
        assert time.process_time() - spent < 0.5


async def test_a_stick_that_cannot_be_read_is_named_and_keeps_no_other_back(tmp_path, monkeypatch):
    write_kit(tmp_path / "media" / "good")
    write_kit(tmp_path / "media" / "bad")
    real = os.scandir

    def scandir(fd):
        if isinstance(fd, int) and Path(f"/proc/self/fd/{fd}").readlink().name == "bad":
            raise OSError(5, "Input/output error")
        return real(fd)

    monkeypatch.setattr(os, "scandir", scandir)
    async with finding(tmp_path / "media") as finder:
        assert [one.stick.root.name for one in await finder.look()] == ["good"]
        assert "Input/output error" in finder.troubles[tmp_path / "media" / "bad"]


def test_mount_points_are_read_with_their_blanks(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_bytes(b"36 35 98:0 / /media/a\\040stick rw,nosuid,nodev - vfat /dev/sdb1 rw\nnonsense\n")
    assert {str(point): sorted(options) for point, options in mounts_in(table).items()} == {
        "/media/a stick": ["nodev", "nosuid", "rw"]
    }
