"""Container images made of bytes: layouts and archives as builders and engines write them, for any platform.

image = make_image([layer({"app": b"program"})], architecture="arm64")
write_layout(folder, {"1.0": [image]})
write_archive(path, image)
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

OCI = "application/vnd.oci.image."
Fold = Callable[[bytes], bytes]
FOLDS: dict[str, Fold] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def layer(files: Mapping[str, bytes], mtime: int = 0) -> bytes:
    """An uncompressed layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(data), mtime, 0o755
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class BuiltImage:
    config: bytes
    layers: tuple[bytes, ...]
    platform: dict[str, str]

    @property
    def id(self) -> str:
        return sha256(self.config)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return tuple(sha256(each) for each in self.layers)


def make_image(
    layers: Sequence[bytes],
    *,
    architecture: str = "amd64",
    variant: str = "",
    steps: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> BuiltImage:
    platform = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
    content = {
        **platform,
        "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/app"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(each)}" for each in layers]},
        **({"history": [{"created_by": step} for step in steps]} if steps else {}),
        **changes,
    }
    return BuiltImage(json.dumps(content).encode(), tuple(layers), platform)


class Blobs(dict[str, bytes]):
    """Blobs by sha256, and descriptors of them."""

    def add(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        self[sha256(data)] = data
        return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data), **more}

    def add_image(self, image: BuiltImage, form: str = "+gzip", **more: Any) -> dict[str, Any]:
        """Its manifest's descriptor."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}manifest.v1+json",
            "config": self.add(image.config, f"{OCI}config.v1+json"),
            "layers": [self.add(FOLDS[form](each), f"{OCI}layer.v1.tar{form}") for each in image.layers],
        }
        return self.add(json.dumps(manifest).encode(), f"{OCI}manifest.v1+json", **more)

    def add_index(self, manifests: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The index's descriptor."""
        return self.add(index(manifests), f"{OCI}index.v1+json", **more)

    def add_images(self, images: Sequence[BuiltImage], form: str = "+gzip", **more: Any) -> dict[str, Any]:
        """The descriptor of one image, or of the index of several."""
        if len(images) == 1:
            return self.add_image(images[0], form, **more)
        return self.add_index([self.add_image(each, form, platform=each.platform) for each in images], **more)


def index(manifests: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(manifests)}).encode()


def write_layout(folder: Path, images: Mapping[str, Sequence[BuiltImage]], form: str = "+gzip") -> Blobs:
    """An OCI layout with images by name; an empty name is none."""
    blobs = Blobs()
    tops = [
        blobs.add_images(each, form, **({"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}))
        for name, each in images.items()
    ]
    write_blobs(folder, blobs, index(tops))
    return blobs


def write_blobs(folder: Path, blobs: Mapping[str, bytes], index: bytes) -> None:
    (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_bytes(index)
    for name, data in blobs.items():
        (folder / "blobs/sha256" / name).write_bytes(data)


def write_archive(path: Path, image: BuiltImage, *, listed: Sequence[str] | None = None, form: str = "") -> None:
    """An archive as `docker save` wrote them up to version 24: a layer that stands twice is a link the second time."""
    files: dict[str, bytes | str] = {f"{image.id}.json": image.config}
    names, seen = [], dict[str, str]()
    for number, data in enumerate(image.layers):
        name = f"{sha256(data + bytes([number]))}/layer.tar"
        files[name] = f"../{seen[sha256(data)]}" if sha256(data) in seen else FOLDS[form](data)
        seen.setdefault(sha256(data), name)
        names.append(name)
    tags = {"Config": f"{image.id}.json", "RepoTags": ["app:1"], "Layers": list(listed or names)}
    files["manifest.json"] = json.dumps([tags]).encode()
    write_tar(path, files)


def write_tar(path: Path, files: Mapping[str, bytes | str]) -> None:
    """Text is where a symlink leads."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
