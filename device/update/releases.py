"""Releases as they lie in the store: which are whole, which files they need, and what may be deleted."""

import contextlib
import logging
from collections.abc import Collection

import msgspec

from device.containers.stock import Stock
from device.store import Store
from device.update.hardware import Hardware
from device.update.ports import ReleaseSet
from protocol import limits
from protocol.artifact import Artifact
from protocol.container import Image
from protocol.errors import Refused, StateError
from protocol.ids import Digest
from protocol.release import Model, ReleaseManifest, parse_manifest
from protocol.selection import needed_artifacts, select_images, select_variants

log = logging.getLogger(__name__)


class Library:
    """Releases of one machine. Blocking.

    Args:
        store: Holds their files.
        hardware: Decides which variants are taken.
        stock: Knows which layers the engine holds.
    """

    def __init__(self, store: Store, hardware: Hardware, stock: Stock) -> None:
        self._store = store
        self._hardware = hardware
        self._stock = stock

    def manifest(self, name: Digest) -> ReleaseManifest:
        """The manifest, hashed again.

        Raises:
            StateError: It is not there.
            Refused: It is not what it was.
        """
        return parse_manifest(self._store.read(name, limits.MANIFEST_BYTES))

    def is_here(self, name: Digest) -> bool:
        """Whether the manifest is there. Does not read it."""
        return self._store.has(name)

    def needed(self, manifest: ReleaseManifest) -> tuple[Artifact, ...]:
        """What this machine needs of a release, here or not.

        Raises:
            Refused: `WRONG_HARDWARE`.
        """
        inventory = self._hardware.inventory
        return needed_artifacts(manifest, select_variants(manifest, inventory), select_images(manifest, inventory))

    def images(self, manifest: ReleaseManifest) -> tuple[Image, ...]:
        """The images that this machine takes of a release.

        Raises:
            Refused: `WRONG_HARDWARE`.
        """
        return tuple(select_images(manifest, self._hardware.inventory).values())

    def all_images(self, named: Collection[Digest]) -> list[Image]:
        """Of these releases, for whatever machine, as far as their manifests can be read."""
        found = []
        for name in named:
            with contextlib.suppress(Refused, StateError):
                found += [image for container in self.manifest(name).containers for image in container.images]
        return found

    def has(self, artifact: Artifact) -> bool:
        """Whether the artifact is there with its length: in the store, or as a layer in the engine."""
        return self._stock.holds(artifact.sha256) or self._store.has(artifact.sha256, artifact.length_bytes)

    def missing(self, artifacts: Collection[Artifact]) -> list[Digest]:
        """What of these is not here. Does not read them."""
        return [artifact.sha256 for artifact in artifacts if not self.has(artifact)]

    def load(self, name: Digest) -> ReleaseSet:
        """A release to start workers from, with the best variants that are here. Hashes the manifest only.

        Layers may be missing: whether the engine has them may not be known now, and no model waits for that.

        Raises:
            StateError: Another file is missing.
            Refused: The manifest is not what it was, or nothing of it runs on this machine.
        """
        manifest = self.manifest(name)
        here = msgspec.structs.replace(manifest, models=tuple(self._held(model) for model in manifest.models))
        variants = select_variants(here, self._hardware.inventory)
        images = select_images(manifest, self._hardware.inventory)
        self._stock.learn(images.values())
        layers = {layer.artifact.sha256 for image in images.values() for layer in image.layers}
        files = {}
        for artifact in needed_artifacts(manifest, variants, images):
            if self._store.has(artifact.sha256, artifact.length_bytes):
                files[artifact.sha256] = self._store.path(artifact.sha256)
            elif artifact.sha256 not in layers:
                raise StateError(f"release {manifest.version} lacks {artifact.sha256[:12]} in the store")
        return ReleaseSet(digest=name, manifest=manifest, variants=variants, images=images, files=files)

    def drop_damaged(self, artifacts: Collection[Artifact]) -> list[Digest]:
        """Reads and hashes the artifacts that are here and deletes those that are not what they were.

        Layers that the engine holds are not read: what runs is its copy, and nothing is made from ours unread.

        Returns:
            What is missing now.
        """
        missing = []
        for artifact in artifacts:
            if self._stock.holds(artifact.sha256):
                continue
            if self.has(artifact) and self._store.is_whole(artifact.sha256):
                continue
            self._store.discard(artifact.sha256)
            missing.append(artifact.sha256)
        return missing

    def collect(
        self,
        named: Collection[Digest],
        parts: Collection[Digest],
        bases: Collection[Digest] = (),
        redundant: Collection[Digest] = (),
    ) -> bool:
        """Deletes the files of all releases but these. While a manifest cannot be read, nothing is deleted.

        Args:
            named: Releases that the record names.
            parts: Digests whose unfinished files a fetch goes on from.
            bases: Artifacts that a planned patch is applied to.
            redundant: Layers that are not kept for their release's sake.

        Returns:
            Whether it was done.
        """
        underway = self._stock.underway()
        keep = {*named, *bases, *underway}
        for name in named:
            try:
                keep |= {artifact.sha256 for artifact in self.manifest(name).artifacts()}.difference(redundant)
            except (Refused, StateError) as error:
                log.warning("nothing is deleted while the manifest %s cannot be read: %s", name[:12], error)
                return False
        self._store.collect(keep, {*parts, *underway})
        return True

    def _held(self, model: Model) -> Model:
        """A machine whose accelerator is unplugged runs the next best variant, if it holds it."""
        held = tuple(variant for variant in model.variants if self.has(variant.artifact))
        return msgspec.structs.replace(model, variants=held or model.variants)
