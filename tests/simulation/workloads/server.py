"""The server's folder: managers' pushes that machines refresh from, and results that are ingested.

It starts by what `headland-server run` starts by. The managers' pushes are made in `prepare`, each a folder of `world`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.errors import LinkError, Refused
from protocol.ids import digest
from protocol.results import SIGNING_CONTEXT, BatchBody, LaneRows, SignedBatch, compress_body
from protocol.wire import encode, pack
from server import app
from server.clock import NowMs
from server.founding import FirstAnswers, found
from server.publish import PublishRequest, SignedFile
from server.storage.records import Device
from signing.trust_store import MemoryFloors, TrustStore
from tests.fakes.managers import Managers
from tests.fakes.server_house import make_manifest, no_secret
from tests.fakes.updates import noise
from tests.simulation.workload import REFUSED, Promises, leftovers

START_MS = 1_790_000_000_000
START = datetime.fromtimestamp(START_MS // 1000, UTC)
PRODUCT = "pest-detector"
ANSWERS = FirstAnswers("127.0.0.1", 0, ("localhost",), "127.0.0.1", 0)
DEVICE, EPOCH = "tractor-1", "e" * 32
KEY = ec.derive_private_key(4712, ec.SECP256R1())


def now_ms() -> int:
    """The server's clock stands: what must rise rises without it."""
    return START_MS


def later_ms() -> int:
    """After a cut, when nobody waits any more for work that was begun before it."""
    return START_MS + 3_600_000


class Publishing:
    """Three pushes: a release, a newer one, a delisting under new keys."""

    name = "publish"

    def prepare(self, home: Path) -> None:
        managers = Managers(START)
        make_server(home / "state", managers)
        for number, blobs in enumerate(_pushes(managers)):
            folder = home / "world" / str(number)
            for repository, held in (("image", managers.image), ("director", managers.director)):
                (folder / repository).mkdir(parents=True)
                for name, data in held.files().items():
                    (folder / repository / name).write_bytes(data)
            (folder / "blobs").mkdir()
            for data in blobs:
                (folder / "blobs" / digest(data)).write_bytes(data)
        with opened(home) as parts:
            push(parts, home / "world/0")

    def act(self, home: Path, promise: Promises) -> None:
        with opened(home) as parts:
            for folder in pushes(home)[1:]:
                push(parts, folder)
                promise(f"published {folder.name}")
                for role, version in refresh(parts, home).items():
                    promise(f"seen {role} {version}")
                while parts.compressor.work():
                    pass
                parts.publisher.resign(force=True)

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        with opened(home, later_ms) as parts:
            self.look(parts, home, promised)
            for folder in pushes(home)[1:]:
                if f"published {folder.name}" not in promised:
                    try:
                        push(parts, folder)
                    except Refused as refused:  # it is published, and what came after it too
                        assert "is published" in refused.message
                    self.look(parts, home, promised)
            while parts.compressor.work():
                pass

    def look(self, parts: app.Parts, home: Path, promised: Sequence[str]) -> None:
        """A machine refreshes."""
        found = refresh(parts, home)
        for line in promised:
            if line.startswith("seen "):
                _, role, version = line.split()
                assert found[role] >= int(version), f"{role} went back from {version} to {found[role]}"

    def check(self, home: Path, promised: Sequence[str]) -> None:
        with opened(home) as parts:
            self.look(parts, home, promised)
            with parts.catalog.read() as session:
                releases = {release.version: release.listed for release in session.repositories.releases(PRODUCT)}
                blobs = {path.name for folder in pushes(home) for path in (folder / "blobs").iterdir()}
                made = session.payloads.get(blobs)
            assert releases == {"1.0.0": False, "1.1.0": True}, releases
            assert len(made) == 3, "every artifact has its payload, whoever died over it"
            for name in blobs | {each.payload for each in made.values()}:
                assert digest(b"".join(parts.blobs.read_now(name, 1 << 20))) == name, f"blob {name} is not whole"
        check_tidy(home / "state")


class Ingesting:
    """A machine's batches: new ones, old ones again, rows with holes."""

    name = "ingest"

    def prepare(self, home: Path) -> None:
        make_server(home / "state", Managers(START))
        with opened(home) as parts, parts.catalog.write() as session:
            key = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            session.devices.enrol(Device(DEVICE, PRODUCT, (), key, "pem", START_MS))

    def act(self, home: Path, promise: Promises) -> None:
        with opened(home) as parts:
            for rows in batches():
                parts.ingest.take(signed(rows), DEVICE)
                promise("receipted " + " ".join(map(str, rows)))

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        """The machine has deleted what was receipted; it sends what was not."""
        receipted = receipts(promised)
        with opened(home) as parts:
            for rows in batches():
                left = [number for number in rows if number not in receipted]
                if left:
                    parts.ingest.take(signed(left), DEVICE)

    def check(self, home: Path, promised: Sequence[str]) -> None:
        with opened(home) as parts, parts.catalog.read() as session:
            produced = sorted({number for rows in batches() for number in rows})
            rows = session.results.rows(DEVICE, "results", 0, 1000)
            assert sorted(row.seq for row in rows) == produced, "each row is there once"
            assert all(row.body == body(row.seq) for row in rows)
            assert session.results.conflict_counts() == {}
        check_tidy(home / "state")


def workloads() -> list[Publishing | Ingesting]:
    return [Publishing(), Ingesting()]


def make_server(state: Path, managers: Managers) -> None:
    """As `headland-server init`, with the online keys that the managers know."""
    (state / "keys").mkdir(parents=True)
    for repository, roles in managers.online.items():
        for role, signer in roles.items():
            (state / "keys" / f"{repository}.{role}.pem").write_bytes(signer.private_bytes)
    found(state, ANSWERS, now_ms, no_secret)


@contextlib.contextmanager
def opened(home: Path, clock: NowMs = now_ms, *, folder: str = "state") -> Iterator[app.Parts]:
    """As a start of the server."""
    parts = app.open_parts(home / folder, clock, no_secret)
    try:
        yield parts
    finally:
        parts.catalog.close()


def push(parts: app.Parts, folder: Path) -> None:
    """As `headland release push`: blobs, then metadata. Doing it again changes nothing."""
    for path in sorted((folder / "blobs").iterdir()):
        data = path.read_bytes()
        asyncio.run(parts.blobs.put(path.name, _chunks(data), len(data)))
        with parts.catalog.write() as session:
            session.payloads.add_blob(path.name, len(data), START_MS)
    files = [
        SignedFile(repository=repository, name=path.name, content=path.read_text())
        for repository in ("image", "director")
        for path in sorted((folder / repository).iterdir())
    ]
    parts.publisher.publish(PublishRequest(files=tuple(files)), "operator")


def pushes(home: Path) -> list[Path]:
    """All of them, the oldest first."""
    return sorted((home / "world").iterdir())


def refresh(parts: app.Parts, home: Path) -> dict[str, int]:
    """What a new machine comes to trust through what is served. It writes nothing."""
    found: dict[str, int] = {}
    for name, roles in (("image", (PRODUCT,)), ("director", ())):
        first = (home / "world/0" / name / "1.root.json").read_bytes()
        trusted = TrustStore(name, home / "nowhere", first, MemoryFloors()).peek(_Served(parts, name), roles)
        found |= {f"{name}/{role}": version for role, version in trusted.versions.items()}
    return found


def check_tidy(state: Path) -> None:
    """Nothing of a write or an upload stays."""
    assert leftovers(state) == []
    assert list((state / "blobs/incoming").iterdir()) == []
    assert list((state / "scratch").iterdir()) == []


def batches() -> list[list[int]]:
    """Rows by their numbers, as they come: some come twice, some fill a hole."""
    return [[0, 1, 2], [3], [2, 3, 4], [8, 9], [5, 6, 7, 8], [10]]


def body(number: int) -> bytes:
    return f"row {number} ".encode() + noise(300, number)


def signed(numbers: Sequence[int]) -> bytes:
    """A signed batch of these rows."""
    lanes = tuple(LaneRows(lane="results", first=number, rows=(body(number),)) for number in numbers)
    payload, length = compress_body(BatchBody(device=DEVICE, epoch=EPOCH, lanes=lanes))
    signature = KEY.sign(SIGNING_CONTEXT + payload, ec.ECDSA(hashes.SHA256()))
    return pack(SignedBatch(device=DEVICE, body_bytes=length, payload=payload, signature=signature))


def receipts(promised: Sequence[str]) -> set[int]:
    return {int(number) for line in promised if line != REFUSED for number in line.split()[1:]}


class _Served:
    """What a server serves, as a `Source`."""

    def __init__(self, parts: app.Parts, repository: str) -> None:
        self.parts = parts
        self.repository = repository

    def read(self, name: str, limit_bytes: int) -> bytes:
        with self.parts.catalog.read() as session:
            data = session.repositories.served(self.repository, name)
        if data is None:
            raise LinkError(f"404: {name}", retryable=False, status=404)
        return data


def _pushes(managers: Managers) -> Iterator[list[bytes]]:
    """The blobs of each push; the metadata are what the managers hold then."""
    yield []
    for counter in (1, 2):
        manifest = encode(make_manifest(f"1.{counter - 1}.0", counter, [noise(3000, counter)]))
        managers.release(f"1.{counter - 1}.0", counter, manifest)
        yield [noise(3000, counter), b"golden", manifest]
    managers.delist("1.0.0", floor=2)
    yield []


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data
