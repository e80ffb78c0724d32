"""The store: whole files by their hash, nothing half, nothing deleted that is kept."""

import pytest

from device.store import NoSpaceError, Store
from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest
from signing.durable import Disk

CONTENT = b"a model" * 1000
NAME = digest(CONTENT)


class PowerCut(BaseException):
    """Ends everything; no cleanup runs for real, so the test looks only at files that were renamed."""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def part_with(store, content, name=NAME):
    path = store.part(name)
    path.write_bytes(content)
    return path


def test_a_fetched_file_enters_by_its_hash(store):
    store.adopt(part_with(store, CONTENT), NAME, len(CONTENT))
    assert store.has(NAME)
    assert store.has(NAME, len(CONTENT))
    assert not store.has(NAME, len(CONTENT) + 1)
    assert store.is_whole(NAME)
    assert store.digests() == (NAME,)
    assert store.path(NAME).stat().st_mode & 0o777 == 0o444
    assert not store.part(NAME).exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(CONTENT[:-1] + b"x", Reason.HASH), (CONTENT[:-1], Reason.LENGTH), (CONTENT + b"x", Reason.LENGTH)],
)
def test_anything_else_is_refused_and_deleted(store, content, reason):
    path = part_with(store, content)
    with pytest.raises(Refused) as refused:
        store.adopt(path, NAME, len(CONTENT))
    assert refused.value.reason is reason
    assert not path.exists()
    assert not store.has(NAME)


def test_what_its_writer_hashed_is_not_read_again_and_held_by_that_hash(store, monkeypatch):
    monkeypatch.setattr("device.store._hash_file", lambda path: pytest.fail(f"{path} was read"))
    store.adopt(part_with(store, CONTENT), NAME, len(CONTENT), NAME)
    assert store.has(NAME)
    store.discard(NAME)
    for content, hashed in ((CONTENT, digest(b"other")), (CONTENT[:-1], NAME)):
        path = part_with(store, content)
        with pytest.raises(Refused):
            store.adopt(path, NAME, len(CONTENT), hashed)
        assert not path.exists()
        assert not store.has(NAME)


def test_a_file_enters_durably(tmp_path):
    effects = []
    store = Store(tmp_path / "store", disk=Disk(lambda effect, path: effects.append((effect, path.name))))
    part_with(store, CONTENT)
    effects.clear()
    store.adopt(store.part(NAME), NAME, len(CONTENT))
    assert effects == [("fsync", NAME), ("rename", NAME), ("fsync-dir", "sha256"), ("fsync-dir", "parts")]


def test_at_every_cut_a_file_is_whole_or_not_there(tmp_path):
    for cut in range(20):
        count = iter(range(1000))

        def before(effect, path, cut=cut, count=count):
            if next(count) == cut:
                raise PowerCut

        folder = tmp_path / str(cut)
        try:
            store = Store(folder, disk=Disk(before))
            part_with(store, CONTENT)
            store.adopt(store.part(NAME), NAME, len(CONTENT))
            store.put(b"manifest")
        except PowerCut:
            again = Store(folder)
            assert all(again.is_whole(name) for name in again.digests())
            assert not any(path.name.startswith(".") for path in (folder / "sha256").iterdir())
        else:
            assert cut > 5
            return
    pytest.fail("never came to an end")


def test_a_changed_file_is_noticed_and_may_be_replaced(store):
    store.put(CONTENT)
    assert store.put(CONTENT) == NAME
    store.path(NAME).chmod(0o600)
    store.path(NAME).write_bytes(CONTENT[:-1] + b"x")
    assert not store.is_whole(NAME)
    with pytest.raises(Refused) as refused:
        store.read(NAME, 1 << 20)
    assert refused.value.reason is Reason.HASH
    store.put(CONTENT)
    assert store.read(NAME, 1 << 20) == CONTENT


def test_reading_is_bounded_and_says_what_is_missing(store):
    store.put(CONTENT)
    with pytest.raises(Refused):
        store.read(NAME, len(CONTENT) - 1)
    with pytest.raises(StateError):
        store.read(digest(b"other"), 10)
    assert not store.is_whole(digest(b"other"))


def test_only_what_is_not_kept_is_deleted(store):
    other = store.put(b"other")
    store.put(CONTENT)
    store.part("open").write_bytes(b"123")
    store.part("old").write_bytes(b"12345")
    assert store.collect({NAME}, {"open"}) == len(b"other") + 5
    assert store.digests() == (NAME,)
    assert not store.has(other)
    assert store.part("open").exists()
    assert store.collect({NAME}, {"open"}) == 0


def test_a_folder_among_the_files_ends_no_cleaning(store):
    for folder in (store.path(NAME), store.part("lost+found")):
        (folder / "inside").mkdir(parents=True)
    store.collect(())
    assert not store.path(NAME).exists()
    assert not store.part("lost+found").exists()


def test_a_fetch_that_does_not_fit_is_known_before_it_begins(tmp_path):
    store = Store(tmp_path / "store", keep_free_bytes=100, free=lambda _: 1000)
    store.check_space(900)
    with pytest.raises(NoSpaceError, match="901 bytes are needed, 900 are free"):
        store.check_space(901)
    small = Store(tmp_path / "store", keep_free_bytes=0, budget_bytes=len(CONTENT) + 10, free=lambda _: 1 << 40)
    small.put(CONTENT)
    small.check_space(10)
    with pytest.raises(NoSpaceError, match="budget"):
        small.check_space(11)
    assert small.has(NAME), "nothing is deleted to make room"
