"""Blobs from sticks: in parts, from whichever stick has them, and gone at any byte."""

import os
import shutil
from contextlib import aclosing

import pytest

from device.kits import shelf as module
from device.kits.finding import Found
from device.kits.folder import GoneError, Stick
from device.kits.shelf import READ_BYTES, Shelf
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.kits import KITS_FOLDER
from tests.fakes.sticks import KIT, blob_path, write_kit

BLOB = os.urandom(3 * READ_BYTES + 12345)


def shelf_of(*roots):
    shelf = Shelf()
    shelf.show([Found(Stick(root), KIT, (0, 0, 0)) for root in roots])
    return shelf


async def read(shelf, blob=BLOB, first=0, length=None):
    pieces = []
    path = f"/v1/blobs/{digest(blob)}"
    async with aclosing(
        shelf.stream(path, first=first, length=len(blob) - first if length is None else length)
    ) as all_:
        async for piece in all_:
            assert len(piece) <= READ_BYTES
            pieces.append(piece)
    return b"".join(pieces)


async def test_a_blob_is_read_whole_and_from_any_byte(tmp_path):
    write_kit(tmp_path, blobs=[BLOB])
    shelf = shelf_of(tmp_path)
    assert await read(shelf) == BLOB
    assert await read(shelf, first=READ_BYTES + 7) == BLOB[READ_BYTES + 7 :]
    assert await read(shelf, first=5, length=10) == BLOB[5:15]


async def test_parts_are_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 1 << 20)
    write_kit(tmp_path)
    for number in range(0, len(BLOB), 1 << 20):
        part = BLOB[number : number + (1 << 20)]
        blob_path(tmp_path, BLOB).with_name(f"{digest(BLOB)}.{number >> 20}").write_bytes(part)
    assert await read(shelf_of(tmp_path)) == BLOB
    assert await read(shelf_of(tmp_path), first=(1 << 20) - 1) == BLOB[(1 << 20) - 1 :]


async def test_any_stick_that_has_it_will_do(tmp_path):
    write_kit(tmp_path / "a")
    write_kit(tmp_path / "b", blobs=[BLOB])
    assert await read(shelf_of(tmp_path / "a", tmp_path / "b")) == BLOB
    shutil.rmtree(tmp_path / "a")
    assert await read(shelf_of(tmp_path / "a", tmp_path / "b")) == BLOB


async def test_a_blob_that_no_stick_has_is_not_waited_for(tmp_path):
    write_kit(tmp_path)
    shelf = shelf_of(tmp_path)
    with pytest.raises(LinkError) as error:
        await read(shelf)
    assert not error.value.retryable
    assert shelf.lacking() == {digest(BLOB)}
    shelf.show([])
    assert shelf.lacking() == set()


async def test_a_stick_that_is_gone_is_waited_for(tmp_path):
    with pytest.raises(GoneError):
        await read(shelf_of())
    write_kit(tmp_path / "a", blobs=[BLOB])
    shelf = shelf_of(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / KITS_FOLDER)
    with pytest.raises(LinkError) as error:
        await read(shelf)
    assert error.value.retryable
    assert shelf.lacking() == set()


@pytest.mark.parametrize("after", range(4))
async def test_it_may_vanish_after_any_piece(tmp_path, after, monkeypatch):
    monkeypatch.setattr(module, "READ_BYTES", 256 << 10)
    write_kit(tmp_path / "a", blobs=[BLOB])
    shelf = shelf_of(tmp_path / "a")
    pieces = []
    with pytest.raises(LinkError) as error:
        async with aclosing(shelf.stream(f"/v1/blobs/{digest(BLOB)}", first=0, length=len(BLOB))) as all_:
            async for piece in all_:
                pieces.append(piece)
                if len(pieces) == 1 + after * 4:
                    (tmp_path / "a" / KITS_FOLDER).rename(tmp_path / "gone")  # as an unmounted stick leaves its folder
    assert error.value.retryable
    data = b"".join(pieces)
    assert data == BLOB[: len(data)] != BLOB
    (tmp_path / "gone").rename(tmp_path / "a" / KITS_FOLDER)
    assert await read(shelf, first=len(data)) == BLOB[len(data) :]


async def test_a_blob_that_is_cut_short_is_bad_there_and_sought_elsewhere(tmp_path):
    write_kit(tmp_path / "a", blobs=[BLOB])
    write_kit(tmp_path / "b", blobs=[BLOB])
    with blob_path(tmp_path / "a", BLOB).open("r+b") as file:
        file.truncate(100)
    shelf = shelf_of(tmp_path / "a", tmp_path / "b")
    with pytest.raises(Refused) as refused:
        await read(shelf)
    assert refused.value.reason is Reason.LENGTH
    assert shelf.doubt(digest(BLOB))
    assert await read(shelf) == BLOB
    assert not shelf.doubt(digest(BLOB))
    with pytest.raises(LinkError) as error:
        await read(shelf)
    assert "damaged" in error.value.message
    assert not error.value.retryable
    shelf.forget()
    assert len(await read(shelf, length=100)) == 100


async def test_a_blob_that_is_no_file_is_sought_elsewhere(tmp_path):
    write_kit(tmp_path / "a")
    os.mkfifo(blob_path(tmp_path / "a", BLOB))
    write_kit(tmp_path / "b", blobs=[BLOB])
    assert await read(shelf_of(tmp_path / "a", tmp_path / "b")) == BLOB
