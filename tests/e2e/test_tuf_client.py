"""`scripts/tuf_client` as a foreign suite runs it: a process for each command, a plain repository over HTTP."""

import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations

from signing.trust import conformance
from signing.trust_store import TrustStore
from tests.fakes.plain_repository import PlainRepository
from tests.fakes.repository_server import Shelf, http_server

CLIENT = Path(__file__).parents[2] / "scripts" / "tuf_client"


class Client:
    """A client under test with its folders, and the server that it talks to."""

    def __init__(self, folder: Path, repository: PlainRepository, url: str, metadata: Shelf, blobs: Shelf) -> None:
        self.repository = repository
        self.metadata = metadata
        self.blobs = blobs
        self.kept = folder / "metadata"
        self.downloads = folder / "downloads"
        self.kept.mkdir()
        self.downloads.mkdir()
        self._first = folder / "first.json"
        self._first.write_bytes(repository.files["1.root.json"])
        self._url = url

    def init(self) -> int:
        return self.run("--metadata-dir", str(self.kept), "init", str(self._first))

    def refresh(self) -> int:
        self._sync()
        return self.run("--metadata-url", f"{self._url}/metadata", "--metadata-dir", str(self.kept), "refresh")

    def download(self, *paths: str) -> int:
        self._sync()
        names = [part for path in paths for part in ("--target-name", path)]
        url = f"{self._url}/metadata/"
        return self.run(
            *("--metadata-url", url, "--metadata-dir", str(self.kept)),
            *names,
            *("--target-dir", str(self.downloads), "--target-base-url", f"{self._url}/files", "download"),
        )

    def run(self, *arguments: str) -> int:
        done = subprocess.run([str(CLIENT), *arguments], capture_output=True, timeout=60, check=False)
        assert done.stdout == b""
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode

    def roles(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.kept.glob("*.json"))}

    def _sync(self) -> None:
        self.metadata.files = self.repository.files
        self.metadata.asked.clear()
        self.blobs.files = self.repository.blobs
        self.blobs.asked.clear()


@pytest.fixture
def repository() -> PlainRepository:
    return PlainRepository(datetime.now(UTC))


@pytest.fixture
def client(tmp_path: Path, repository: PlainRepository) -> Iterator[Client]:
    metadata, blobs = Shelf(), Shelf()
    with http_server({"/metadata/": metadata, "/files/": blobs}) as url:
        yield Client(tmp_path, repository, url, metadata, blobs)


def test_the_client_drives_the_production_class(tmp_path: Path) -> None:
    assert type(conformance.trust_store(tmp_path)) is TrustStore


def test_refresh_asks_for_each_file_once_and_keeps_exactly_the_trusted_bytes(client: Client) -> None:
    client.repository.files["timestamp.json"] += b" \n"
    assert client.init() == 0
    assert client.metadata.asked == []
    assert client.refresh() == 0
    assert client.metadata.asked == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert client.roles() == {
        "root.json": client.repository.files["1.root.json"],
        "timestamp.json": client.repository.files["timestamp.json"],
        "snapshot.json": client.repository.files["1.snapshot.json"],
        "targets.json": client.repository.files["1.targets.json"],
    }
    assert client.refresh() == 0
    assert client.metadata.asked == ["2.root.json", "timestamp.json"]


def test_download_walks_delegations_and_skips_what_is_there(client: Client) -> None:
    repository = client.repository
    role = repository.delegate("../a role?", ["deep/*/*"])
    repository.add_file("plain.txt", b"plain")
    repository.add_file("deep/er/file.bin", b"deep", role)
    repository.publish()
    assert client.init() == 0
    assert client.download("plain.txt", "deep/er/file.bin") == 0
    assert client.metadata.asked[-1] == "1...%2Fa%20role%3F.json"
    assert (client.kept / "..%2Fa%20role%3F.json").exists()
    assert sorted(path.name for path in client.downloads.iterdir()) == ["deep%2Fer%2Ffile.bin", "plain.txt"]
    assert len(client.blobs.asked) == 2
    assert client.download("plain.txt", "deep/er/file.bin") == 0
    assert client.blobs.asked == []
    assert client.download("absent", "plain.txt") == 1


def test_a_role_with_two_parents_must_hold_for_each_of_them(client: Client) -> None:
    repository = client.repository
    parents = {name: repository.delegate(name, [f"{name}/*"]) for name in ("north", "south")}
    shared = repository.delegate("shared", ["nothing"])
    # Only the key that "north" names signs "shared".
    keys = {"north": repository.signers["shared"][0].public_key, "south": CryptoSigner.generate_ed25519().public_key}
    for name, parent in parents.items():
        role = DelegatedRole("shared", [], 1, terminating=False, paths=["*/*"])
        parent.delegations = Delegations({}, {"shared": role})
        parent.add_key(keys[name], "shared")
        repository.add_file(f"{name}/file", name.encode(), shared)
    repository.publish()
    assert client.init() == 0
    assert client.download("south/file") == 1
    # In one process too, where "shared" is known from its other parent by then.
    assert client.download("north/file", "south/file") == 1
    assert [path.name for path in client.downloads.iterdir()] == ["north%2Ffile"]


def test_a_changed_file_is_refused_and_the_old_one_stays(client: Client) -> None:
    client.repository.add_file("file", b"genuine")
    client.repository.publish()
    assert client.init() == 0
    assert client.download("file") == 0
    client.repository.add_file("other", b"12345")
    client.repository.publish()
    client.repository.blobs = {name: b"evil!!!"[: len(data)] for name, data in client.repository.blobs.items()}
    assert client.download("other") == 1
    assert [path.read_bytes() for path in client.downloads.iterdir()] == [b"genuine"]


def test_a_root_that_nobody_signed_starts_nothing(client: Client) -> None:
    client._first.write_bytes(client._first.read_bytes().replace(b'"sig":"', b'"sig":"00'))
    client.init()
    assert client.refresh() == 1
    assert client.metadata.asked == []


@pytest.mark.parametrize("status", [403, 404])
def test_no_next_root_ends_the_chain(client: Client, status: int) -> None:
    assert client.init() == 0
    client.metadata.statuses["2.root.json"] = status
    assert client.refresh() == 0
    client.metadata.statuses["2.root.json"] = 500
    assert client.refresh() == 1


@pytest.mark.slow
def test_three_hundred_roots_are_walked_and_none_twice(client: Client) -> None:
    repository = client.repository
    repository.root.expires = datetime.now(UTC) - timedelta(days=1)  # expired ones on the way are no harm
    for _ in range(300):
        old = repository.signers["root"]
        repository.rotate("root")
        if repository.root.version == 300:
            repository.root.expires = repository.expires
        repository.publish_root(extra=old)
    assert client.init() == 0
    client.metadata.statuses["151.root.json"] = 500
    assert client.refresh() == 1
    assert (client.kept / "root.json").read_bytes() == repository.files["150.root.json"]
    client.metadata.statuses.clear()
    began = time.monotonic()
    assert client.refresh() == 0
    assert time.monotonic() - began < 30
    roots = [name for name in client.metadata.asked if name.endswith(".root.json")]
    assert roots == [f"{number}.root.json" for number in range(151, 303)]
    assert (client.kept / "root.json").read_bytes() == repository.files["301.root.json"]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("consistent", [True, False])
def test_every_key_type_and_both_layouts_are_read(tmp_path: Path, kind: str, consistent: bool) -> None:
    make = getattr(CryptoSigner, f"generate_{kind}")
    repository = PlainRepository(datetime.now(UTC), consistent=consistent, hashes=True, make_signer=make)
    repository.add_file("a/b", b"content")
    repository.publish()
    metadata, blobs = Shelf(), Shelf()
    with http_server({"/metadata/": metadata, "/files/": blobs}) as url:
        client = Client(tmp_path, repository, url, metadata, blobs)
        assert client.init() == 0
        assert client.download("a/b") == 0
        assert metadata.asked[2] == ("2.snapshot.json" if consistent else "snapshot.json")


def test_a_new_timestamp_stays_even_if_its_snapshot_is_missing(client: Client) -> None:
    assert client.init() == 0
    assert client.refresh() == 0
    client.repository.publish()
    missing = client.repository.files.pop("2.snapshot.json")
    assert client.refresh() == 1
    assert client.roles()["timestamp.json"] == client.repository.files["timestamp.json"]
    assert client.roles()["snapshot.json"] == client.repository.files["1.snapshot.json"]
    client.repository.files["2.snapshot.json"] = missing
    assert client.refresh() == 0


def test_the_client_may_be_called_from_a_folder_with_packages_of_our_names(client: Client, tmp_path: Path) -> None:
    for name in ("signing", "protocol", "tuf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(3)\n")
    done = subprocess.run(
        [str(CLIENT), "--metadata-dir", "metadata", "init", "first.json"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
