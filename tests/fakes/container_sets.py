"""Small containers and releases of them, with the files that they are loaded from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from device.update.ports import ReleaseSet
from protocol.artifact import Artifact
from protocol.container import CONFIG_MEDIA_TYPE, LAYER_MEDIA_TYPE, Container, Image, Layer, RunSpec
from protocol.ids import Digest, digest
from protocol.release import ReleaseManifest, TrialRules
from protocol.wire import encode


@dataclass(frozen=True)
class Packed:
    """A container of one image, with the bytes of its artifacts."""

    container: Container
    contents: Mapping[Digest, bytes] = field(default_factory=dict)

    @property
    def image(self) -> Image:
        return self.container.images[0]


def image_config(layers: Sequence[bytes], environment: Sequence[str] = ()) -> bytes:
    """As engines write it."""
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": list(environment), "Entrypoint": ["/evil"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}" for layer in layers]},
        }
    ).encode()


def pack_container(
    name: str, run: RunSpec, layers: Sequence[bytes] = (b"base",), environment: Sequence[str] = ()
) -> Packed:
    """A container of one image for this kind of machine."""
    config = image_config(layers, environment)
    image = Image(
        platform="linux/amd64",
        config=_artifact(config, CONFIG_MEDIA_TYPE),
        layers=tuple(Layer(artifact=_artifact(layer, LAYER_MEDIA_TYPE)) for layer in layers),
    )
    contents = {digest(data): data for data in (config, *layers)}
    return Packed(Container(name=name, images=(image,), run=run), contents)


def with_containers(release: ReleaseSet, folder: Path, *packed: Packed) -> ReleaseSet:
    """The release with these containers as well; their artifacts are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = dict(release.files)
    for one in packed:
        for name, data in one.contents.items():
            files[name] = folder / name
            files[name].write_bytes(data)
    manifest = msgspec.structs.replace(release.manifest, containers=tuple(one.container for one in packed))
    images = {one.container.name: one.image for one in packed}
    return replace(release, digest=digest(encode(manifest)), manifest=manifest, images=images, files=files)


def make_container_release(
    folder: Path, *packed: Packed, version: str = "1.0.0", trial: TrialRules | None = None
) -> ReleaseSet:
    """A release of nothing but containers."""
    manifest = ReleaseManifest(
        format=1,
        product="lights",
        version=version,
        release_counter=1,
        created_ms=0,
        models=(),
        trial=trial or TrialRules(),
    )
    bare = ReleaseSet(digest=digest(encode(manifest)), manifest=manifest, variants={}, files={})
    return with_containers(bare, folder, *packed)


def _artifact(content: bytes, media_type: str) -> Artifact:
    return Artifact(sha256=digest(content), length_bytes=len(content), media_type=media_type)
