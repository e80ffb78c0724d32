"""What the conformance client leaves in its metadata folder after each kind of failure, and what it asks for."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from signing.trust import conformance
from tests.fakes.plain_repository import TOP, PlainRepository
from tests.fakes.repository_server import Shelf, http_server


class Client:
    """The client's commands, called in this process; its memory ends with each command."""

    def __init__(self, folder: Path, repository: PlainRepository, url: str, shelf: Shelf) -> None:
        self.folder = folder / "metadata"
        self.repository = repository
        self.shelf = shelf
        self._url = url
        first = folder / "first.json"
        first.write_bytes(repository.files[f"{repository.root.version}.root.json"])
        assert conformance.main(["--metadata-dir", str(self.folder), "init", str(first)]) == 0

    def refresh(self) -> int:
        self.shelf.files = self.repository.files
        self.shelf.asked.clear()
        return conformance.main(["--metadata-url", self._url, "--metadata-dir", str(self.folder), "refresh"])

    def versions(self) -> dict[str, int]:
        found = {}
        for path in self.folder.glob("*.json"):
            metadata: Metadata = Metadata.from_file(str(path))  # type: ignore[type-arg]  # of any role
            found[path.stem] = metadata.signed.version
        return found


@pytest.fixture
def repository() -> PlainRepository:
    return PlainRepository(datetime.now(UTC))


@pytest.fixture
def client(tmp_path: Path, repository: PlainRepository) -> Iterator[Client]:
    shelf = Shelf()
    with http_server({"/m/": shelf}) as url:
        yield Client(tmp_path, repository, f"{url}/m/", shelf)


ALL = {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


@pytest.mark.parametrize(
    ("role", "kept"),
    [
        ("root", {"root": 2, "timestamp": 1, "snapshot": 1, "targets": 1}),
        ("timestamp", ALL),
        ("snapshot", ALL | {"timestamp": 2}),
        ("targets", ALL | {"timestamp": 2, "snapshot": 2}),
    ],
)
def test_what_an_expired_role_leaves(client: Client, role: str, kept: dict[str, int]) -> None:
    repository = client.repository
    assert client.refresh() == 0
    assert client.versions() == ALL
    getattr(repository, role).expires = datetime.now(UTC) - timedelta(days=1)
    if role == "root":
        repository.publish_root()
    repository.publish()
    assert client.refresh() == 1
    assert client.versions() == kept


@pytest.mark.parametrize(
    ("role", "kept"),
    [
        ("root", {"root": 1}),
        ("timestamp", {"root": 2}),
        ("snapshot", {"root": 2, "timestamp": 2}),
        ("targets", {"root": 2, "timestamp": 2, "snapshot": 2}),
    ],
)
def test_what_a_role_without_a_good_signature_leaves(client: Client, role: str, kept: dict[str, int]) -> None:
    client.repository.signers[role] = [CryptoSigner.generate_ed25519()]
    client.repository.publish_root()
    client.repository.publish()
    assert client.refresh() == 1
    assert client.versions() == kept


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_role_whose_keys_were_rotated_is_read_with_the_new_ones(client: Client, role: str) -> None:
    assert client.refresh() == 0
    client.repository.rotate(role, [CryptoSigner.generate_ed25519() for _ in range(3)], threshold=2)
    client.repository.publish_root()
    client.repository.publish()
    assert client.refresh() == 0
    assert client.versions()[role] == 2


@pytest.mark.parametrize("hashes", [False, True])
def test_older_metadata_is_refused_and_the_newer_stays(
    tmp_path: Path, client: Client, repository: PlainRepository, hashes: bool
) -> None:
    repository.hashes = hashes
    repository.publish()
    assert client.refresh() == 0
    repository.timestamp.version = 0
    repository.publish_timestamp()
    assert client.refresh() == 1
    assert client.versions()["timestamp"] == 2
    repository.timestamp.version = 2
    repository.snapshot.version = 0
    repository.publish_snapshot()
    assert client.refresh() == 1
    assert client.versions()["timestamp"] == 2
    assert client.shelf.asked[-1] == "timestamp.json"
    repository.snapshot.version = 2
    repository.targets.version = 1
    repository.publish_snapshot()
    assert client.refresh() == 1
    assert client.versions() == {"root": 1, "timestamp": 4, "snapshot": 2, "targets": 2}


def ahead_timestamp(repository: PlainRepository) -> None:
    repository.timestamp.version = 99_999
    repository.publish_timestamp()


def ahead_snapshot(repository: PlainRepository) -> None:
    repository.snapshot.version = 99_999
    repository.publish_snapshot()


def ahead_targets(repository: PlainRepository) -> None:
    repository.targets.version = 99_999
    repository.publish_snapshot()


@pytest.mark.parametrize(
    ("push", "rotated", "role"),
    [
        (ahead_timestamp, ("timestamp",), "timestamp"),
        (ahead_snapshot, ("timestamp", "snapshot"), "snapshot"),
        (ahead_targets, ("snapshot",), "targets"),
    ],
)
def test_a_version_pushed_ahead_is_recovered_from_as_tuf_says(
    client: Client, push: Callable[[PlainRepository], None], rotated: tuple[str, ...], role: str
) -> None:
    repository = client.repository
    push(repository)
    assert client.refresh() == 0
    assert client.versions()[role] >= 99_999
    getattr(repository, role).version = 1
    for name in rotated:
        repository.rotate(name)
    repository.publish_root()
    repository.publish()
    assert client.refresh() == 0
    assert client.versions()[role] < 10


def test_a_timestamp_of_the_same_version_and_other_content_is_not_taken(client: Client) -> None:
    assert client.refresh() == 0
    client.repository.timestamp.version = 0
    client.repository.timestamp.snapshot_meta.version = 100
    client.repository.publish_timestamp()
    assert client.refresh() == 0
    assert client.shelf.asked == ["2.root.json", "timestamp.json"]
    assert client.versions() == ALL


def test_a_snapshot_that_drops_a_role_is_refused(client: Client) -> None:
    repository = client.repository
    repository.delegate("deep", ["*"])
    repository.publish()
    assert client.refresh() == 0
    del repository.delegated["deep"]
    del repository.snapshot.meta["deep.json"]
    repository.publish()
    assert client.refresh() == 1


@pytest.mark.parametrize("wrong", ["hash", "length"])
@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_metadata_that_is_not_what_was_named_is_refused(client: Client, role: str, wrong: str) -> None:
    repository = client.repository
    repository.hashes = True
    assert client.refresh() == 0
    repository.publish()
    meta = repository.timestamp.snapshot_meta if role == "snapshot" else repository.snapshot.meta["targets.json"]
    if wrong == "hash":
        assert meta.hashes is not None
        meta.hashes["sha256"] = "0" * 64
    else:
        assert meta.length is not None
        meta.length += 1
    if role == "targets":
        repository.snapshot.version += 1
        data = repository.sign(repository.snapshot, repository.signers["snapshot"])
        repository.files["3.snapshot.json"] = data
        repository.timestamp.snapshot_meta = repository._meta(3, data)
    repository.publish_timestamp()
    assert client.refresh() == 1
    assert client.versions()[role] == 1


def test_thresholds_count_keys_of_the_role_only(client: Client) -> None:
    repository = client.repository
    signers = [CryptoSigner.generate_ed25519() for _ in range(5)]
    repository.rotate("root", signers, threshold=3)
    repository.signers["root"] = signers[:2]
    repository.publish_root(extra=[CryptoSigner.generate_ed25519()])
    assert client.refresh() == 1
    assert client.versions() == {"root": 1}


def test_a_root_signed_by_the_new_keys_only_or_the_old_only_is_refused(client: Client) -> None:
    repository = client.repository
    old = repository.signers["root"]
    repository.rotate("root")
    repository.publish_root()
    assert client.refresh() == 1
    new = repository.signers["root"]
    repository.signers["root"] = old
    repository.root.version = 1
    repository.publish_root()
    assert client.refresh() == 1
    repository.root.version = 1
    repository.publish_root(extra=new)
    assert client.refresh() == 0
    assert client.versions()["root"] == 2


@pytest.mark.parametrize("role", [role for role in TOP if role != "timestamp"])
def test_a_file_under_another_versions_name_is_refused(client: Client, role: str) -> None:
    repository = client.repository
    assert client.refresh() == 0
    repository.publish_root()
    repository.publish()
    name = f"2.{role}.json"
    signed = getattr(repository, role)
    signed.version = 3
    repository.files[name] = repository.sign(signed, repository.signers[role])
    assert client.refresh() == 1
    assert client.versions()[role] == 1


def test_metadata_of_another_type_is_refused_even_under_the_right_keys(client: Client) -> None:
    repository = client.repository
    repository.files["timestamp.json"] = repository.sign(repository.snapshot, repository.signers["timestamp"])
    assert client.refresh() == 1
    assert client.versions() == {"root": 1}


@pytest.mark.parametrize("command", ["refresh", "download"])
def test_missing_arguments_are_a_usage_error(tmp_path: Path, command: str) -> None:
    with pytest.raises(SystemExit):
        conformance.main(["--metadata-dir", str(tmp_path), command])
