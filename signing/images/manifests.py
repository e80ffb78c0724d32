"""OCI and Docker manifests: from what a reference names to the images of the platforms that are wanted.

Each is hashed before it is read. What is both an index and a manifest is refused: two readers would see two images.
"""

from collections.abc import Collection, Iterator
from typing import Any, Final

import msgspec

from protocol import limits
from protocol.container import Platform
from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest, is_digest
from protocol.image_config import parse_image_config, platform_of
from signing.images import bounds
from signing.images.content import Blob, Content, Found, Say

INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONFIG_TYPES: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER_TYPES: Final = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
)
_NOT_TAKEN: Final = {
    "encrypted": "nobody here can read",
    "nondistributable": "its owner lets nobody pass on, as a release would",
    "foreign": "its owner lets nobody pass on, as a release would",
}
_ATTESTATION: Final = "vnd.docker.reference.type"  # builders put what they say of an image beside it
REFERENCE_NAME: Final = "org.opencontainers.image.ref.name"


class _Platform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        text = "/".join(part for part in (self.os, self.architecture, self.variant) if part)
        return text if text.isprintable() else repr(text)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A blob as a manifest names it."""

    media_type: str
    digest: str
    size: int
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None

    def blob(self, limit: int) -> Blob:
        """Where it lies.

        Raises:
            Refused: `HASH`: it is not named by its sha256. `LIMIT`.
        """
        sha256 = self.digest.removeprefix("sha256:")
        if self.digest == sha256 or not is_digest(sha256):
            raise Refused(Reason.HASH, f"a blob that is named {self.digest!r:.80} and not by its sha256")
        if not 0 <= self.size <= limit:
            raise Refused(Reason.LIMIT, f"blob {sha256[:12]} is said to have {self.size} bytes; the limit is {limit}")
        return Blob(sha256, self.size, sha256, is_manifest=self.media_type in INDEX_TYPES + MANIFEST_TYPES)


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    manifests: list[Descriptor] | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None


def read_index(data: bytes) -> list[Descriptor]:
    """The entries of a layout's `index.json`.

    Raises:
        Refused: `IMAGE`, `LIMIT`.
    """
    read = _read(data)
    if read.manifests is None:
        raise Refused(Reason.IMAGE, "no image index")
    return _entries(read)


def find_images(content: Content, top: Descriptor, platforms: Collection[Platform], say: Say) -> tuple[Found, ...]:
    """The images behind a descriptor, the best of each platform.

    Args:
        content: Where blobs lie.
        top: What a reference means: an index or a manifest.
        platforms: Only these; empty: all that releases are for.
        say: Hears what is left out.

    Raises:
        Refused: `HASH`, `IMAGE`, `LIMIT`: something of it is not what it is said to be.
        StateError: There is no image for a wanted platform.
    """
    found: dict[Platform, tuple[int, Found]] = {}
    others: set[str] = set()
    for manifest in _manifests(content, top, platforms, others, bounds.INDEX_DEPTH):
        image, rank = _image(content, manifest, top.digest)
        if platforms and image.platform not in platforms:
            others.add(image.platform)
        elif image.platform not in found or rank < found[image.platform][0]:
            found[image.platform] = (rank, image)
    missing = sorted(set(platforms) - set(found))
    if missing or not found:
        there = f"; there are images for {', '.join(sorted({*others, *found}))}" if found or others else ""
        hint = "`platforms` in the description names those that are wanted" if missing and found else ""
        raise StateError(f"no image for {', '.join(missing) or 'any machine that releases are for'}{there}", hint=hint)
    if others:
        say(f"  left out {', '.join(sorted(others))}")
    return tuple(image for _, image in found.values())


def read_blob(content: Content, blob: Blob) -> bytes:
    """A small blob, hashed.

    Raises:
        Refused: `HASH`, `LENGTH`: other bytes than were named.
    """
    data = bytearray()
    with content.open(blob) as chunks:
        for chunk in chunks:
            data += chunk
            if len(data) > blob.length_bytes:
                break
    if len(data) != blob.length_bytes:
        raise Refused(Reason.LENGTH, f"blob {blob.place[:12]!r} has another length than the {blob.length_bytes} named")
    if blob.sha256 is not None and digest(bytes(data)) != blob.sha256:
        raise Refused(Reason.HASH, f"blob {blob.place[:12]!r} has other bytes than its name says")
    return bytes(data)


def _manifests(
    content: Content,
    descriptor: Descriptor,
    platforms: Collection[Platform],
    others: set[str],
    depth: int,
) -> Iterator[tuple[Descriptor, _Index]]:
    blob = descriptor.blob(bounds.MANIFEST_BYTES)
    read = _read(read_blob(content, blob))
    if read.manifests is None:
        yield descriptor, read
        return
    if not depth:
        raise Refused(Reason.LIMIT, f"indexes within indexes, more than {bounds.INDEX_DEPTH} deep")
    for entry in _entries(read):
        if entry.media_type not in INDEX_TYPES + MANIFEST_TYPES or _ATTESTATION in (entry.annotations or {}):
            continue
        if entry.platform is not None:
            known = platform_of(entry.platform.os, entry.platform.architecture, entry.platform.variant)
            if known is None or (platforms and known[0] not in platforms):
                others.add(str(entry.platform))
                continue
        # An engine keeps the whole index of what it has a part of.
        if not content.has(entry.blob(bounds.MANIFEST_BYTES)):
            others.add(f"{entry.platform or entry.digest[:19]} (named, but not there)")
            continue
        yield from _manifests(content, entry, platforms, others, depth - 1)


def _image(content: Content, manifest: tuple[Descriptor, _Index], digest: str) -> tuple[Found, int]:
    descriptor, read = manifest
    if read.config is None or read.layers is None:
        raise Refused(Reason.IMAGE, f"{descriptor.digest[:19]} is no image manifest")
    if read.config.media_type not in _CONFIG_TYPES:
        raise Refused(Reason.IMAGE, f"a {read.config.media_type!r:.80} is no container image")
    data = read_blob(content, read.config.blob(limits.IMAGE_CONFIG_BYTES))
    config = parse_image_config(data)
    if len(config.layers) != len(read.layers):
        raise Refused(Reason.IMAGE, f"the manifest has {len(read.layers)} layers, the config {len(config.layers)}")
    for layer in read.layers:
        if not layer.media_type.startswith(_LAYER_TYPES):
            raise Refused(Reason.IMAGE, f"a layer of the type {layer.media_type!r:.80}")
        for word, why in _NOT_TAKEN.items():
            if word in layer.media_type:
                raise Refused(Reason.IMAGE, f"a layer of the type {layer.media_type!r:.80}, which {why}")
    layers = tuple(layer.blob(bounds.LAYER_BYTES) for layer in read.layers)
    said = descriptor.platform or _Platform()
    rank = platform_of(said.os, said.architecture, said.variant)
    return Found(config.platform, data, layers, content, digest), rank[1] if rank is not None else 0


def _read(data: bytes) -> _Index:
    try:
        read = msgspec.json.decode(data, type=_Index)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused(Reason.IMAGE, f"not an image manifest: {error}") from error
    if read.schema_version != 2:
        raise Refused(
            Reason.IMAGE,
            f"an image manifest of version {read.schema_version}",
            hint="push the image again with a builder of this decade",
        )
    if read.manifests is not None and (read.config is not None or read.layers is not None):
        raise Refused(Reason.IMAGE, "what is both an index and a manifest says two things")
    return read


def _entries(read: _Index) -> list[Descriptor]:
    entries: list[Any] = read.manifests or []
    if len(entries) > bounds.INDEX_ENTRIES:
        raise Refused(Reason.LIMIT, f"an index of more than {bounds.INDEX_ENTRIES} images")
    return entries
