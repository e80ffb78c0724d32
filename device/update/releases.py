"""Releases as they lie in the store: which are whole, which files they need, and what may be deleted."""

import logging
from collections.abc import Collection

import msgspec

from device.store import Store
from device.update.hardware import Hardware
from device.update.ports import ReleaseSet
from protocol import limits
from protocol.artifact import Artifact
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
    """

    def __init__(self, store: Store, hardware: Hardware) -> None:
        self._store = store
        self._hardware = hardware

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

    def has(self, artifact: Artifact) -> bool:
        """Whether the artifact is there with its length."""
        return self._store.has(artifact.sha256, artifact.length_bytes)

    def missing(self, artifacts: Collection[Artifact]) -> list[Digest]:
        """What of these is not here. Does not read them."""
        return [artifact.sha256 for artifact in artifacts if not self.has(artifact)]

    def load(self, name: Digest) -> ReleaseSet:
        """A release to start workers from, with the best variants that are here. Hashes the manifest only.

        Raises:
            StateError: A file is missing.
            Refused: The manifest is not what it was, or nothing of it runs on this machine.
        """
        manifest = self.manifest(name)
        here = msgspec.structs.replace(manifest, models=tuple(self._held(model) for model in manifest.models))
        variants = select_variants(here, self._hardware.inventory)
        images = select_images(manifest, self._hardware.inventory)
        needed = needed_artifacts(manifest, variants, images)
        for artifact in needed:
            if not self.has(artifact):
                raise StateError(f"release {manifest.version} lacks {artifact.sha256[:12]} in the store")
        files = {artifact.sha256: self._store.path(artifact.sha256) for artifact in needed}
        return ReleaseSet(digest=name, manifest=manifest, variants=variants, images=images, files=files)

    def drop_damaged(self, artifacts: Collection[Artifact]) -> list[Digest]:
        """Reads and hashes the artifacts that are here and deletes those that are not what they were.

        Returns:
            What is missing now.
        """
        missing = []
        for artifact in artifacts:
            if self.has(artifact) and self._store.is_whole(artifact.sha256):
                continue
            self._store.discard(artifact.sha256)
            missing.append(artifact.sha256)
        return missing

    def collect(self, named: Collection[Digest], parts: Collection[Digest], bases: Collection[Digest] = ()) -> bool:
        """Deletes the files of all releases but these. While a manifest cannot be read, nothing is deleted.

        Args:
            named: Releases that the record names.
            parts: Digests whose unfinished files a fetch goes on from.
            bases: Artifacts that a planned patch is applied to.

        Returns:
            Whether it was done.
        """
        keep = {*named, *bases}
        for name in named:
            try:
                keep |= {artifact.sha256 for artifact in self.manifest(name).artifacts()}
            except (Refused, StateError) as error:
                log.warning("nothing is deleted while the manifest %s cannot be read: %s", name[:12], error)
                return False
        self._store.collect(keep, parts)
        return True

    def _held(self, model: Model) -> Model:
        """A machine whose accelerator is unplugged runs the next best variant, if it holds it."""
        held = tuple(variant for variant in model.variants if self.has(variant.artifact))
        return msgspec.structs.replace(model, variants=held or model.variants)
