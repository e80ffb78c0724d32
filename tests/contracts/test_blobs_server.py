"""The promises of `server.storage.blobs.BlobStore`, on every adapter."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest
from server.storage.blobs import BlobStore, FolderBlobs, ObjectBlobs


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return FolderBlobs(tmp_path / "blobs") if request.param == "folder" else ObjectBlobs(MemoryStore())


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read(blobs: BlobStore, name: str, first: int, count: int) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(name, first, count)])


async def test_what_was_put_is_read_back_whole_and_in_pieces(blobs: BlobStore) -> None:
    data = os.urandom(12_000_000)  # more than two parts of an upload
    name = digest(data)
    assert await blobs.length(name) is None
    assert await blobs.put(name, pieces(data), len(data)) == len(data)
    assert await blobs.length(name) == len(data)
    assert await read(blobs, name, 0, len(data)) == data
    for first, count in ((0, 1), (len(data) - 1, 1), (5_000_000, 1_000_001), (0, 0)):
        assert await read(blobs, name, first, count) == data[first : first + count]


async def test_putting_it_again_changes_nothing_and_another_content_is_refused(blobs: BlobStore) -> None:
    await blobs.put(digest(b"x"), pieces(b"x"), 10)
    assert await blobs.put(digest(b"x"), pieces(b"x"), 10) == 1
    with pytest.raises(Refused) as refused:
        await blobs.put(digest(b"x"), pieces(b"y"), 10)
    assert refused.value.reason is Reason.HASH
    assert await read(blobs, digest(b"x"), 0, 1) == b"x"


@pytest.mark.parametrize("size", [5, 6_000_000, 11_000_000])
async def test_bytes_that_are_not_what_they_are_called_leave_nothing(blobs: BlobStore, size: int) -> None:
    with pytest.raises(Refused) as refused:
        await blobs.put("0" * 64, pieces(os.urandom(size)), size)
    assert refused.value.reason is Reason.HASH
    assert await blobs.length("0" * 64) is None


async def test_one_byte_above_the_limit_stops_it(blobs: BlobStore) -> None:
    with pytest.raises(Refused) as refused:
        await blobs.put(digest(bytes(11)), pieces(bytes(11), 1), 10)
    assert refused.value.reason is Reason.LENGTH
    assert await blobs.length(digest(bytes(11))) is None


async def test_a_source_that_breaks_off_leaves_nothing(blobs: BlobStore) -> None:
    data = bytes(7_000_000)

    async def broken() -> AsyncIterator[bytes]:
        yield data[:6_000_000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put(digest(data), broken(), len(data))
    assert await blobs.length(digest(data)) is None


async def test_what_is_not_here_says_so(blobs: BlobStore) -> None:
    with pytest.raises(StateError):
        await read(blobs, "1" * 64, 0, 1)
    with pytest.raises(StateError):
        list(blobs.read_now("1" * 64, 10))


async def test_an_empty_blob_is_a_blob(blobs: BlobStore) -> None:
    assert await blobs.put(digest(b""), pieces(b""), 0) == 0
    assert await blobs.length(digest(b"")) == 0
    assert await read(blobs, digest(b""), 0, 0) == b""


def test_the_servers_own_blobs_keep_the_same_promises(blobs: BlobStore) -> None:
    data = os.urandom(3_000_001)

    def chunks(content: bytes) -> Iterator[bytes]:
        for at in range(0, len(content), 777_777):
            yield content[at : at + 777_777]

    assert blobs.put_now(digest(data), chunks(data)) == len(data)
    got = list(blobs.read_now(digest(data), 1_000_000))
    assert [len(chunk) for chunk in got] == [1_000_000, 1_000_000, 1_000_000, 1]
    assert b"".join(got) == data
    with pytest.raises(Refused):
        blobs.put_now("0" * 64, chunks(data))


def test_a_folder_forgets_what_a_cut_left_half(tmp_path: Path) -> None:
    FolderBlobs(tmp_path)
    (tmp_path / "incoming" / "half").write_bytes(b"x")
    FolderBlobs(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_folders_blob_was_synced_before_it_got_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from signing import durable

    effects: list[str] = []
    monkeypatch.setattr(durable.DISK, "before", lambda effect, path: effects.append(effect))
    FolderBlobs(tmp_path).put_now(digest(b"x"), [b"x"])
    tail = effects[effects.index("fsync") :]
    assert tail.index("fsync") < tail.index("rename") < tail.index("fsync-dir", tail.index("rename"))


async def test_a_blob_can_be_read_as_a_file_and_deleted(blobs: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(6_000_000)
    name = digest(data)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    blobs.put_now(name, [data])
    with blobs.as_file(name, scratch) as path:
        assert path.read_bytes() == data
    assert list(scratch.iterdir()) == []
    blobs.delete_now(name)
    assert await blobs.length(name) is None
    blobs.delete_now(name)
    with pytest.raises(StateError), blobs.as_file(name, scratch):
        pass
    blobs.put_now(name, [data])  # and it can come again
    assert await read(blobs, name, 0, 10) == data[:10]


async def test_a_file_that_lost_its_end_is_not_sent_as_if_it_were_whole(tmp_path: Path) -> None:
    blobs, data = FolderBlobs(tmp_path / "blobs"), os.urandom(600_000)
    name = digest(data)
    await blobs.put(name, pieces(data), len(data))
    (file,) = (path for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    os.truncate(file, 400_000)
    with pytest.raises(StateError):
        await read(blobs, name, 0, len(data))
