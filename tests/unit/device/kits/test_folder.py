"""What a stick can do to the one who reads it: nothing but be read, or be of no use."""

import asyncio
import errno
import os
import shutil
import threading
import time

import pytest

from device.kits import folder as module
from device.kits.folder import GoneError, MissingError, Stick, folders_in, names_in, read_file, read_part
from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.kits import KIT_FILE, KITS_FOLDER
from tests.fakes.sticks import KIT, write_kit


@pytest.fixture
def root(tmp_path):
    stick = tmp_path / "stick"
    stick.mkdir()
    return stick


async def test_a_kit_is_found_once_its_last_file_is_there(root):
    stick = Stick(root)
    assert await stick.kits() == {}
    folder = write_kit(root)
    (folder / KIT_FILE).rename(folder / "kit.draft.json")
    assert await stick.kits() == {}
    (folder / "kit.draft.json").rename(folder / KIT_FILE)
    found = await stick.kits()
    assert list(found) == [KIT]
    assert found == await stick.kits()
    (folder / KIT_FILE).write_text("{}")
    assert await stick.kits() != found


async def test_names_that_are_no_kits_are_passed_over(root):
    for name in ("kit-", "KIT-A", "spring", "kit-..", "kit-a b", "kit-ok"):
        write_kit(root, name)
    assert list(await Stick(root).kits()) == ["kit-ok"]


async def test_links_pipes_and_folders_are_no_files(root, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    folder = write_kit(root)
    (folder / KIT_FILE).unlink()
    for make in (
        lambda path: path.symlink_to(secret),
        os.mkfifo,
        lambda path: path.mkdir(),
    ):
        make(folder / KIT_FILE)
        assert await Stick(root).kits() == {}
        with pytest.raises(Refused) as refused:
            await Stick(root).read_kit(KIT)
        assert refused.value.reason is Reason.METADATA
        path = folder / KIT_FILE
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("part", ["headland-kits", "kit", "image"])
async def test_no_folder_is_entered_through_a_link(root, tmp_path, part):
    elsewhere = tmp_path / "elsewhere"
    write_kit(elsewhere)
    real = write_kit(root)
    link = {"headland-kits": root / KITS_FOLDER, "kit": real, "image": real / "image"}[part]
    shutil.rmtree(link)
    link.symlink_to(
        {
            "headland-kits": elsewhere / KITS_FOLDER,
            "kit": elsewhere / KITS_FOLDER / KIT,
            "image": elsewhere / KITS_FOLDER / KIT / "image",
        }[part]
    )
    stick = Stick(root)
    if part == "image":
        content = (real / KIT_FILE).read_bytes()
        with pytest.raises(LinkError):
            await stick.copy_metadata(KIT, tmp_path / "copy", digest(content))
    else:
        assert await stick.kits() == {}
        with pytest.raises(LinkError):
            await stick.read_kit(KIT)


async def test_a_root_that_is_a_link_is_no_stick(root, tmp_path):
    write_kit(root)
    link = tmp_path / "link"
    link.symlink_to(root)
    with pytest.raises(GoneError):
        await Stick(link).kits()


async def test_metadata_is_copied_and_nothing_else(root, tmp_path):
    folder = write_kit(root, blobs=[b"blob"])
    (folder / "image" / "deep").mkdir()
    (folder / "image" / "deep" / "1.root.json").write_text("{}")
    (folder / "image" / "program.exe").write_text("MZ")
    (folder / "image" / ".hidden.json").write_text("{}")
    copy = tmp_path / "copy" / KIT
    copy.mkdir(parents=True)
    await Stick(root).copy_metadata(KIT, copy, digest((folder / KIT_FILE).read_bytes()))
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()) == [
        "director/1.root.json",
        "director/timestamp.json",
        "image/1.root.json",
        "image/timestamp.json",
        "kit.json",
    ]


async def test_a_kit_written_anew_while_it_is_copied_is_copied_later(root, tmp_path):
    folder = write_kit(root)
    known = digest((folder / KIT_FILE).read_bytes())
    write_kit(root, word="two")
    with pytest.raises(LinkError) as error:
        await Stick(root).copy_metadata(KIT, tmp_path, known)
    assert error.value.retryable


async def test_bytes_and_files_are_bounded(root, tmp_path, monkeypatch):
    folder = write_kit(root)
    known = digest((folder / KIT_FILE).read_bytes())
    with (folder / KIT_FILE).open("ab") as file:
        file.truncate(limits.KIT_BYTES + 1)
    with pytest.raises(Refused) as refused:
        await Stick(root).read_kit(KIT)
    assert refused.value.reason is Reason.LENGTH
    write_kit(root)
    monkeypatch.setattr(limits, "KIT_METADATA_FILES", 3)
    with pytest.raises(Refused) as refused:
        await Stick(root).copy_metadata(KIT, tmp_path / "many", known)
    assert refused.value.reason is Reason.LIMIT
    monkeypatch.undo()
    monkeypatch.setattr(limits, "KIT_METADATA_BYTES", len((folder / KIT_FILE).read_bytes()) + 3)
    with pytest.raises(Refused) as refused:
        await Stick(root).copy_metadata(KIT, tmp_path / "much", known)
    assert refused.value.reason is Reason.LIMIT


async def test_of_a_huge_folder_only_so_much_is_read(root):
    for number in range(limits.KITS_LOOKED_AT + 20):
        write_kit(root, f"kit-{number:03d}")
    assert len(await Stick(root).kits()) == limits.KITS_LOOKED_AT
    many = root / "many"
    many.mkdir()
    for number in range(500):
        (many / str(number)).mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert len(names_in(fd, ("many",), 100)) == 100
    finally:
        os.close(fd)
    fd = os.open(many, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert len(folders_in(fd, 64)) == 64
    finally:
        os.close(fd)


async def test_a_stick_that_is_gone_and_one_without_the_file_are_told_apart(root):
    write_kit(root)
    stick = Stick(root)
    with pytest.raises(MissingError) as missing:
        await stick.read_kit("kit-other")
    assert not missing.value.retryable
    shutil.rmtree(root)
    with pytest.raises(GoneError) as gone:
        await stick.read_kit(KIT)
    assert gone.value.retryable


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.EUCLEAN])
async def test_what_a_device_does_is_a_broken_link(root, monkeypatch, code):
    write_kit(root)

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.os, "pread", fail)
    with pytest.raises(LinkError) as error:
        await Stick(root).read_kit(KIT)
    assert error.value.retryable
    assert str(root) in error.value.message


async def test_a_read_that_never_returns_holds_up_nobody(root):
    write_kit(root)
    stick = Stick(root, answer_s=0.2)
    free = threading.Event()

    def hang(_: int) -> None:
        free.wait(30)

    began = time.monotonic()
    with pytest.raises(LinkError) as error:
        await stick.do(hang)
    assert error.value.retryable
    with pytest.raises(LinkError):  # at once, and no second thread hangs
        await stick.do(hang)
    assert time.monotonic() - began < 5
    assert sum(thread.name == f"stick {root.name}" for thread in threading.enumerate()) == 1
    free.set()
    for thread in threading.enumerate():
        if thread.name == f"stick {root.name}":
            await asyncio.to_thread(thread.join, 10)
    await asyncio.sleep(0)
    assert list(await stick.kits()) == [KIT]


def test_parts_of_files_are_read_as_they_are(root):
    (root / "file").write_bytes(b"0123456789")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert read_part(fd, ("file",), 3, 4) == b"3456"
        assert read_part(fd, ("file",), 8, 4) == b"89"
        assert read_file(fd, ("file",), 10) == b"0123456789"
    finally:
        os.close(fd)
