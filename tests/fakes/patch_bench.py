"""A patchmaker on the bench: catalog, blobs, an encoder that only pretends, and machines that report."""

from pathlib import Path

from protocol.errors import Reason, StateError
from protocol.ids import digest
from protocol.messages import FailedPatch
from protocol.objects import Conditions
from server.failed_patches import take_failures
from server.patching import Patchmaker
from server.settings import Patches
from server.storage.blobs import FolderBlobs
from server.storage.catalog import Catalog
from server.storage.records import Compressed, Device, Pair, Patch, Release, Rollout
from tests.fakes.encoder import FakeEncoder

PRODUCT = "pest-detector"
START_MS = 1_790_000_000_000
FULL_BYTES = 50_000


class PatchBench:
    """A catalog, a blob store and a patchmaker under the test's clock, without a server around them."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = START_MS
        self.folder = folder
        self.catalog = Catalog(f"sqlite:///{folder / 'catalog.db'}")
        self.blobs = FolderBlobs(folder / "blobs")
        self.encoder = FakeEncoder()
        self.settings = Patches()
        self.maker = self.another()
        with self.catalog.write() as session:
            session.facts.put("fleet_changes", 0)

    def another(self) -> Patchmaker:
        """As a server that starts makes one."""
        return Patchmaker(
            self.catalog, self.blobs, self.folder, lambda: self.now_ms, settings=self.settings, encoder=self.encoder
        )

    def release(self, counter: int, parts: dict[str, bytes], *, product: str = PRODUCT, full: int = FULL_BYTES) -> None:
        """Publishes a release whose payloads are made."""
        manifest = digest(f"{product} {counter}".encode())
        entry = Release(product, f"1.{counter}.0", manifest, 10, counter, 0, len(parts), 100, True)
        with self.catalog.write() as session:
            listed = [release for release in session.repositories.releases(product) if release.listed]
            session.repositories.put_releases(product, [entry, *listed])
            session.fleet.note_release(product, manifest, {part: digest(data) for part, data in parts.items()})
            for data in parts.values():
                made = Compressed(digest(data), len(data), digest(b"full" + data), full, None, 0)
                session.payloads.put(made)
                session.payloads.add_blob(digest(data), len(data), self.now_ms)
        for data in parts.values():
            self.blobs.put_now(digest(data), [data])

    def two_releases(self) -> None:
        """The newer one is what machines will want."""
        self.release(1, {"model/m/cpu": b"old"})
        self.release(2, {"model/m/cpu": b"new"})

    def rollout(self, counter: int, state: str) -> None:
        with self.catalog.write() as session:
            session.rollouts.add(
                Rollout(
                    name=f"r{counter}",
                    sequence=0,
                    product=PRODUCT,
                    release=f"1.{counter}.0",
                    manifest=digest(f"{PRODUCT} {counter}".encode()),
                    manifest_bytes=1,
                    release_counter=counter,
                    era=0,
                    group="all",
                    phases=(),
                    conditions=Conditions(),
                    created_ms=1,
                    state=state,
                )
            )

    def delist(self, counter: int) -> None:
        with self.catalog.write() as session:
            listed = [release for release in session.repositories.releases() if release.release_counter != counter]
            session.repositories.put_releases(PRODUCT, listed)

    def holds(self, name: str, *held: bytes, product: str = PRODUCT) -> None:
        with self.catalog.write() as session:
            if session.devices.get(name) is None:
                session.devices.enrol(Device(name, product, (), b"key", "pem", self.now_ms))
            session.fleet.hold(name, [digest(data) for data in held])

    def work(self) -> int:
        """Works until there is nothing to do. Returns how many jobs there were."""
        count = 0
        while self.maker.work():
            count += 1
        return count

    def ready(self, result: bytes) -> dict[str, Patch]:
        with self.catalog.read() as session:
            return {patch.pair.base: patch for patch in session.patches.ready([digest(result)])}

    def kept(self, base: bytes, result: bytes) -> Patch | None:
        with self.catalog.read() as session:
            return session.patches.get(Pair(digest(base), digest(result), 1).id)

    def has_blob(self, data: bytes) -> bool:
        try:
            return b"".join(self.blobs.read_now(digest(data), 1 << 20)) == data
        except StateError:
            return False

    def failed(self, device: str, payload: bytes, base: bytes = b"old", result: bytes = b"new") -> int:
        told = FailedPatch(artifact=digest(result), base=digest(base), payload=digest(payload), reason=Reason.HASH)
        with self.catalog.write() as session:
            return take_failures(session, device, [told], self.now_ms, self.settings.withdraw_after)

    def events(self, kind: str) -> list[str]:
        with self.catalog.read() as session:
            return [event.detail for event in session.events.after(0, 1000) if event.kind == kind]
