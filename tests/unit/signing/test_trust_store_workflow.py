"""What the trust store adds to ngclient, step by step: a newer python-tuf that moves a step fails here."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.errors import LinkError, Reason, Refused
from signing.durable import Disk
from signing.trust_store import MemoryFloors, Nowhere, Offered, TrustStore
from tests.fakes.plain_repository import PlainRepository
from tests.fakes.repository_server import Shelf

NOW = datetime(2026, 11, 1, tzinfo=UTC)


class PowerCutError(Exception):
    pass


class Store:
    """A trust store that is opened anew for each refresh, as after a restart."""

    def __init__(self, folder: Path, repository: PlainRepository) -> None:
        self.folder = folder
        self.repository = repository
        self.first = repository.files["1.root.json"]
        self.floors = MemoryFloors()
        self.effects: list[str] = []
        self.cut_at: int | None = None
        self.shelf = Shelf()

    def open(self) -> TrustStore:
        return TrustStore("image", self.folder, self.first, self.floors, disk=Disk(self._before))

    def refresh(self, now: datetime = NOW, *, offered: bool = True) -> int:
        self.shelf.files = self.repository.files
        self.shelf.asked.clear()
        self.effects.clear()
        source = Offered(self.shelf, self.repository.files["timestamp.json"]) if offered else self.shelf
        return self.open().refresh(source, now).versions["timestamp"]

    def _before(self, effect: str, path: Path) -> None:
        if self.cut_at is not None and len(self.effects) >= self.cut_at:
            raise PowerCutError(effect)
        self.effects.append(effect)


@pytest.fixture
def repository() -> PlainRepository:
    return PlainRepository(NOW, hashes=True)


@pytest.fixture
def store(tmp_path: Path, repository: PlainRepository) -> Store:
    return Store(tmp_path / "image", repository)


def refused(store: Store, now: datetime = NOW) -> Reason:
    with pytest.raises(Refused) as caught:
        store.refresh(now)
    return caught.value.reason


def test_an_offered_timestamp_that_is_stored_already_costs_no_request_and_no_write(store: Store) -> None:
    store.refresh()
    assert store.shelf.asked == ["2.root.json", "1.snapshot.json", "1.targets.json"]
    assert store.refresh() == 1
    assert store.shelf.asked == []
    assert store.effects == []


def test_an_offered_timestamp_is_never_fetched(store: Store) -> None:
    store.refresh()
    store.repository.publish()
    assert store.refresh() == 2
    assert store.shelf.asked == ["2.root.json", "2.snapshot.json", "2.targets.json"]


def test_after_a_refresh_that_stopped_half_way_the_same_timestamp_is_followed_again(store: Store) -> None:
    store.refresh()
    store.repository.publish()
    store.shelf.statuses["2.targets.json"] = 500
    with pytest.raises(LinkError):
        store.refresh()
    assert store.open().stored().versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 1}
    store.shelf.statuses.clear()
    assert store.refresh() == 2
    assert store.shelf.asked == ["2.root.json", "2.targets.json"]


def test_every_file_is_synced_before_it_is_named_and_its_folder_after(store: Store) -> None:
    store.refresh()
    writes = [effect for effect in store.effects if effect not in ("mkdir",)]
    files = 1 + 1 + 3  # the root twice (history and root.json), timestamp, snapshot, targets
    assert writes.count("rename") == files
    for index, effect in enumerate(writes):
        if effect == "rename":
            assert writes[index - 1] == "fsync"
            assert writes[index + 1] == "fsync-dir"


def test_a_cut_before_any_effect_neither_locks_out_nor_opens_a_way_back(
    store: Store, repository: PlainRepository
) -> None:
    store.refresh()
    old = dict(repository.files)
    repository.rotate("timestamp")
    repository.publish_root()
    repository.publish()
    new = dict(repository.files)
    before = store.folder.parent / "before"
    shutil.copytree(store.folder, before)
    cuts = 0
    while True:
        shutil.rmtree(store.folder)
        shutil.copytree(before, store.folder)
        store.floors = MemoryFloors()
        store.cut_at = cuts
        repository.files = new
        try:
            store.refresh()
        except PowerCutError:
            cuts += 1
        else:
            break
        finally:
            store.cut_at = None
        store.open().stored()
        assert store.refresh() == 2
        repository.files = old
        assert refused(store) in (Reason.ROLLBACK, Reason.SIGNATURE)
    assert cuts > 15


def test_a_metadata_folder_that_came_back_older_accepts_nothing_older_than_was_seen(
    store: Store, repository: PlainRepository
) -> None:
    store.refresh()
    old_files = dict(repository.files)
    shutil.copytree(store.folder, store.folder.parent / "old")
    repository.publish()
    store.refresh()
    shutil.rmtree(store.folder)
    shutil.copytree(store.folder.parent / "old", store.folder)
    new_files, repository.files = repository.files, old_files
    assert refused(store) is Reason.ROLLBACK
    shutil.rmtree(store.folder)
    assert refused(store) is Reason.ROLLBACK
    repository.files = new_files
    assert store.refresh() == 2


def test_a_root_that_was_seen_holds_even_when_its_file_is_lost(store: Store, repository: PlainRepository) -> None:
    repository.publish_root()
    store.refresh()
    shutil.rmtree(store.folder)
    root = repository.files.pop("2.root.json")
    assert refused(store) is Reason.ROLLBACK
    repository.files["2.root.json"] = root
    store.refresh()


@pytest.mark.parametrize(
    "name", ["root.json", "root_history/1.root.json", "timestamp.json", "snapshot.json", "targets.json"]
)
@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_mended_from_the_source(store: Store, name: str, damage: bytes) -> None:
    store.refresh()
    whole = (store.folder / name).read_bytes()
    (store.folder / name).write_bytes(damage)
    store.open().stored()
    store.refresh()
    assert (store.folder / name).read_bytes() == whole


def test_a_scratch_copy_judges_no_expiry_and_leaves_no_trace(store: Store, repository: PlainRepository) -> None:
    source = Offered(Shelf(repository.files), repository.files["timestamp.json"])
    assert store.open().peek(source).versions["targets"] == 1
    assert not store.folder.exists()
    assert store.floors.read("image/root") == 0
    store.refresh()
    assert refused(store, NOW + timedelta(days=365)) is Reason.EXPIRED
    assert store.open().peek(source).versions["targets"] == 1


def test_a_scratch_copy_holds_signatures_and_floors(store: Store, repository: PlainRepository) -> None:
    old = Offered(Shelf(dict(repository.files)), repository.files["timestamp.json"])
    repository.publish()
    store.refresh()
    with pytest.raises(Refused, match=r"2 was seen|must be >= 2") as caught:
        store.open().peek(old)
    assert caught.value.reason is Reason.ROLLBACK
    forged = repository.sign(repository.timestamp, repository.signers["snapshot"])
    with pytest.raises(Refused) as caught:
        store.open().peek(Offered(Shelf(repository.files), forged))
    assert caught.value.reason is Reason.SIGNATURE


def test_expiry_is_judged_by_the_callers_time_and_not_by_the_wall_clock(
    tmp_path: Path, store: Store, repository: PlainRepository
) -> None:
    then = datetime(1999, 1, 1, tzinfo=UTC)
    old = PlainRepository(then)
    assert Store(tmp_path / "old", old).refresh(then + timedelta(days=29)) == 1
    assert refused(Store(tmp_path / "older", old), then + timedelta(days=30)) is Reason.EXPIRED


def test_an_expired_machine_walks_the_root_chain_and_goes_on(store: Store, repository: PlainRepository) -> None:
    store.refresh()
    later = NOW + timedelta(days=240)
    for number in range(2, 9):
        old = repository.signers["root"]
        repository.rotate("root")
        if number == 8:
            for role in (repository.root, repository.timestamp, repository.snapshot, repository.targets):
                role.expires = later + timedelta(days=30)
        repository.publish_root(extra=old)
    repository.publish()
    assert store.refresh(later) == 2
    assert store.open().stored().root.version == 8


def test_a_walk_that_was_cut_goes_on_where_it_stopped(store: Store, repository: PlainRepository) -> None:
    for _ in range(300):
        repository.publish_root()
    store.shelf.statuses["120.root.json"] = 503
    with pytest.raises(LinkError):
        store.refresh()
    store.shelf.statuses.clear()
    assert store.refresh() == 1
    assert store.shelf.asked[:181] == [f"{number}.root.json" for number in range(120, 301)]
    assert store.open().stored().root.version == 301


def test_an_endless_chain_of_roots_ends_at_the_limit(
    store: Store, repository: PlainRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.limits.ROOT_ROTATIONS_A_REFRESH", 5)
    for _ in range(20):
        repository.publish_root()
    store.refresh()
    assert [name for name in store.shelf.asked if "root" in name] == [f"{n}.root.json" for n in range(2, 7)]


def test_a_next_root_that_the_server_may_not_show_ends_the_chain(store: Store) -> None:
    store.shelf.statuses["2.root.json"] = 403
    assert store.refresh() == 1


def test_a_file_that_is_named_and_missing_is_the_links_matter(store: Store, repository: PlainRepository) -> None:
    del repository.files["1.snapshot.json"]
    with pytest.raises(LinkError) as caught:
        store.refresh()
    assert caught.value.status == 404
    assert not caught.value.retryable


def test_without_any_root_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no root"):
        TrustStore("image", tmp_path, None, MemoryFloors()).refresh(Nowhere(), NOW)
    with pytest.raises(Refused) as caught:
        TrustStore("image", tmp_path, b"{}", MemoryFloors()).refresh(Nowhere(), NOW)
    assert caught.value.reason is Reason.METADATA


def test_a_full_disk_is_an_error_of_the_system_and_nothing_is_half_kept(
    store: Store, repository: PlainRepository
) -> None:
    store.refresh()
    repository.publish_root()
    repository.publish()
    disk_full = Disk(lambda effect, path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        TrustStore("image", store.folder, store.first, store.floors, disk=disk_full).refresh(
            Offered(Shelf(repository.files), repository.files["timestamp.json"]), NOW
        )
    assert store.open().stored().versions["timestamp"] == 1
    assert store.refresh() == 2


def test_a_role_of_another_version_than_the_snapshot_names_is_mixed_and_no_rollback(tmp_path: Path) -> None:
    repository = PlainRepository(NOW, hashes=False)
    store = Store(tmp_path / "image", repository)
    repository.targets.version = 7
    repository.files["1.targets.json"] = repository.sign(repository.targets, repository.signers["targets"])
    assert refused(store) is Reason.METADATA
