"""Frames from a folder: whole ones, in the order of their names, each until its results are durable."""

import asyncio
import os
import time

import pytest

from device.inference.folder_source import FolderSource
from device.inference.frames import Frame
from protocol.errors import StateError
from signing import durable
from tests.fakes.release_sets import grey_png

PNG = grey_png(7)


class Marks:
    """The outbox's, without its disk."""

    def __init__(self) -> None:
        self.done_frames: dict[str, str] = {}
        self.full = False

    def done(self, frame: Frame) -> None:
        assert frame.mark is not None
        self.done_frames[frame.mark[0]] = frame.mark[1]

    def is_done(self, frame):
        return self.done_frames.get(frame[0]) == frame[1]

    async def forget_frames(self, frames):
        if self.full:
            raise StateError("the disk is full")
        for name, content in frames:
            if self.done_frames.get(name) == content:
                del self.done_frames[name]


@pytest.fixture
def marks():
    return Marks()


@pytest.fixture
async def opened(tmp_path, marks):
    made = []

    async def make(**options) -> FolderSource:
        source = FolderSource(tmp_path / "frames", marks, clock=time.monotonic, rescan_s=0.2, **options)
        made.append(source)
        await source.start()
        return source

    (tmp_path / "frames").mkdir()
    yield make
    for source in made:
        await source.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "frames"


def film(folder, name, data=PNG):
    (folder / f".{name}").write_bytes(data)
    (folder / f".{name}").rename(folder / name)


async def take(source):
    return await asyncio.wait_for(source.take(), 10)


async def test_a_renamed_frame_is_seen_at_once(opened, folder):
    source = await opened()
    began = time.monotonic()
    film(folder, "a.png")
    frame = await take(source)
    assert (frame.name, frame.media_type, frame.data) == ("a.png", "image/png", PNG)
    assert began <= frame.arrived_s <= time.monotonic()
    assert frame.arrived_s - began < 0.15


async def test_a_frame_that_is_written_in_place_counts_when_it_is_closed(opened, folder):
    source = await opened()
    with (folder / "a.npz").open("wb") as file:
        file.write(b"PK-first")
        file.flush()
        await asyncio.sleep(0.5)
        assert source.waiting == 0
        file.write(b"-second")
    frame = await take(source)
    assert (frame.media_type, frame.data) == ("application/x-npz", b"PK-first-second")


async def test_a_frame_moved_in_from_elsewhere_is_seen(opened, folder, tmp_path):
    source = await opened()
    (tmp_path / "b.png").write_bytes(PNG)
    (tmp_path / "b.png").rename(folder / "b.png")
    assert (await take(source)).name == "b.png"


async def test_what_lies_there_is_taken_up_in_the_order_of_names(opened, folder):
    for name in ("c.jpg", "a.png", "b.JPEG"):
        (folder / name).write_bytes(b"\xff\xd8...\xff\xd9" if "j" in name.lower() else PNG)
    (folder / "half.jpg").write_bytes(b"\xff\xd8...")
    os.utime(folder / "half.jpg", (1, 1))  # cut off by a power cut, long ago
    for name in ("notes.txt", ".hidden.png", "x.png.part"):
        (folder / name).write_bytes(PNG)
    source = await opened()
    assert [(await take(source)).name for _ in range(4)] == ["a.png", "b.JPEG", "c.jpg", "half.jpg"]
    assert source.waiting == 0


async def test_a_file_stays_until_its_results_are_durable(opened, folder):
    source = await opened()
    film(folder, "a.png")
    frame = await take(source)
    await asyncio.sleep(0.5)  # a rescan must not give it again
    assert source.waiting == 0
    assert (folder / "a.png").exists()
    await source.finish(frame)
    assert not (folder / "a.png").exists()
    film(folder, "a.png")  # the name is free again
    assert (await take(source)).name == "a.png"


async def test_a_restart_gives_again_what_was_not_finished(opened, folder):
    first = await opened()
    film(folder, "a.png")
    await take(first)
    await first.close()
    assert (await take(await opened())).name == "a.png"


async def test_what_is_given_back_is_given_again(opened, folder):
    source = await opened()
    film(folder, "a.png")
    frame = await take(source)
    source.give_back(frame)
    assert (await take(source)).name == "a.png"


async def test_frames_are_kept_when_a_person_wants_them(opened, folder):
    source = await opened(keep=True)
    film(folder, "a.png")
    await source.finish(await take(source))
    assert [path.name for path in (folder / "done").iterdir()] == ["a.png"]
    await asyncio.sleep(0.4)
    assert source.waiting == 0


async def test_a_frame_that_is_done_is_not_given_again_when_the_folder_of_kept_ones_was_taken_away(
    opened, folder, marks
):
    source = await opened(keep=True, forget_at=1)
    film(folder, "a.png")
    frame = await take(source)
    marks.done(frame)
    (folder / "done").rmdir()
    await source.finish(frame)
    assert [path.name for path in (folder / "done").iterdir()] == ["a.png"]
    assert not marks.done_frames
    await source._rescan()
    assert source.waiting == 0


async def test_of_too_many_the_oldest_are_dropped_and_counted(opened, folder):
    for number in range(8):
        (folder / f"{number}.png").write_bytes(PNG)
    source = await opened(waiting=3)
    assert source.dropped == 5
    assert [(await take(source)).name for _ in range(3)] == ["5.png", "6.png", "7.png"]
    async with asyncio.timeout(5):
        while len(list(folder.iterdir())) > 3:  # noqa: ASYNC110  (the files go in threads)
            await asyncio.sleep(0.01)


async def test_what_is_no_plain_file_never_holds_it_up(opened, folder, tmp_path):
    (tmp_path / "secret").write_bytes(PNG)
    source = await opened()
    (folder / "a-link.png").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "b-pipe.png")
    (folder / "c-folder.png").mkdir()
    film(folder, "d.png")
    assert (await take(source)).name == "d.png"
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "link").rename(folder / "e.png")
    film(folder, "f.png")
    assert (await take(source)).name == "f.png"
    assert (tmp_path / "secret").exists()
    for _ in range(500):
        if source.dropped:  # counted by a thread
            break
        await asyncio.sleep(0.01)
    assert source.dropped == 1


async def test_the_folder_is_made_and_its_loss_is_survived(tmp_path):
    source = FolderSource(tmp_path / "later", Marks(), rescan_s=0.1)
    await source.start()
    try:
        (tmp_path / "later").rmdir()
        await asyncio.sleep(0.3)
        (tmp_path / "later").mkdir()
        film(tmp_path / "later", "a.png")
        assert (await take(source)).name == "a.png"
    finally:
        await source.close()


async def test_what_was_done_before_a_cut_is_removed_and_not_given_again(opened, folder, marks):
    first = await opened()
    film(folder, "a.png")
    marks.done(await take(first))
    await first.close()  # and the file lies there still
    second = await opened(keep=True)
    film(folder, "b.png")
    assert (await take(second)).name == "b.png"
    assert [path.name for path in (folder / "done").iterdir()] == ["a.png"]


async def test_a_mark_hides_no_other_frame_of_the_same_name(opened, folder, marks):
    first = await opened()
    film(folder, "a.png")
    marks.done(await take(first))
    await first.close()
    film(folder, "a.png", grey_png(8))
    assert (await take(await opened())).data == grey_png(8)


@pytest.mark.parametrize("full", [False, True])
async def test_the_same_frame_once_more_is_a_new_one_when_its_file_was_gone(opened, folder, marks, full):
    marks.full = full
    source = await opened()
    film(folder, "a.png")
    marks.done(frame := await take(source))
    await source.finish(frame)
    film(folder, "a.png")
    assert (await take(source)).name == "a.png"
    assert full or not marks.is_done(frame.mark), "a cut must not take the new one for the old"
    await source.close()
    (folder / "a.png").unlink()
    again = await opened()
    film(folder, "a.png")
    assert (await take(again)).name == "a.png"


async def test_a_mark_goes_after_the_folder_was_synced_without_its_file(opened, folder, marks, monkeypatch):
    steps = []
    monkeypatch.setattr(durable, "sync_dir", lambda path: steps.append((path.name, len(list(folder.glob("*.png"))))))
    source = await opened(keep=True, forget_at=3)
    names = [os.fsdecode(b"\xff%d.png" % number) for number in range(4)]
    for left, name in zip((1, 2, 0, 1), names, strict=True):
        film(folder, name)
        marks.done(frame := await take(source))
        await source.finish(frame)
        assert len(marks.done_frames) == left
    assert steps == [("done", 0), ("frames", 0)]
    await source.close()
    await opened(keep=True)
    assert marks.done_frames == {}, "what is gone at the start is let go of"
