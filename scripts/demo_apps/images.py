"""Container images FROM scratch, in plain Python: no engine and no registry takes part, and the same content gives the
same bytes on each machine and day.

    base = layer(folder, {"bin/busybox": File(Path("/bin/busybox"), 0o755)}, "busybox")
    image = Image((base,), command=("/bin/busybox", "sh"))
    write_archive(image, folder / "shell.tar", "shell:1.0")   # docker load, podman load, `archive:FILE` of a release
    write_layout(image, folder / "shell", "1.0")              # skopeo, `oci:FOLDER:NAME` of a release
"""

import hashlib
import io
import json
import os
import platform
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MADE_S = 1_767_225_600  # the first second of 2026: all files, all images
MADE = "2026-01-01T00:00:00Z"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
PIECE_BYTES = 1 << 20
OCI = "application/vnd.oci.image."


@dataclass(frozen=True)
class File:
    """A file of root's. `content` is it, or where it lies now."""

    content: bytes | Path
    mode: int = 0o644


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Folder:
    """A folder that is more than what lies in it: empty, or with a mode of its own."""

    mode: int = 0o755


Tree = Mapping[str, File | Link | Folder]
"""By path without a leading slash. Folders in between are made."""


@dataclass(frozen=True)
class Layer:
    """An uncompressed tar on the disk. Its sha256 is its diff id."""

    path: Path
    sha256: str
    length_bytes: int
    made_by: str


@dataclass(frozen=True)
class Image:
    """Layers, lowest first, and what the image's config asks for."""

    layers: Sequence[Layer]
    command: Sequence[str] = ()
    environment: Sequence[str] = (f"PATH={PATH}",)
    architecture: str = field(default_factory=lambda: ARCHITECTURES[platform.machine()])

    @property
    def config(self) -> bytes:
        """Its sha256 is the image's identity."""
        return _json(
            {
                "architecture": self.architecture,
                "config": {"Cmd": list(self.command), "Env": list(self.environment), "WorkingDir": "/"},
                "created": MADE,
                "history": [{"created": MADE, "created_by": layer.made_by} for layer in self.layers],
                "os": "linux",
                "rootfs": {"diff_ids": [f"sha256:{layer.sha256}" for layer in self.layers], "type": "layers"},
            }
        )

    @property
    def id(self) -> str:
        return hashlib.sha256(self.config).hexdigest()


def layer(folder: Path, tree: Tree, made_by: str) -> Layer:
    """Writes a layer into a folder, under its diff id.

    Args:
        folder: For layers; made when absent.
        tree: What is in it.
        made_by: The build step; the same one in the next version of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{os.getpid()}.tar"
    with tarfile.open(fresh, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, node in sorted(_with_folders(tree).items()):
            _add(archive, name, node)
    with fresh.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    path = fresh.replace(folder / f"{sha256}.tar")
    return Layer(path, sha256, path.stat().st_size, made_by)


def tree_of(root: Path) -> dict[str, File | Link | Folder]:
    """What lies in a folder, such as one that debootstrap made: files, links and folders, all of root's."""
    found: dict[str, File | Link | Folder] = {}
    for folder, folders, files in os.walk(root):
        for name in sorted(folders + files):
            path = Path(folder, name)
            kind = path.lstat().st_mode
            inside = str(path.relative_to(root))
            if stat.S_ISLNK(kind):
                found[inside] = Link(str(path.readlink()))
            elif stat.S_ISDIR(kind):
                found[inside] = Folder(stat.S_IMODE(kind))
            elif stat.S_ISREG(kind):
                found[inside] = File(path, stat.S_IMODE(kind))
    return found


def write_archive(image: Image, path: Path, name: str) -> None:
    """As `docker save` writes from version 25 on: an OCI layout in a tar, with the `manifest.json` of old beside it."""
    blobs, index = _blobs(image, name)
    listed = {
        "Config": f"blobs/sha256/{image.id}",
        "Layers": [f"blobs/sha256/{each.sha256}" for each in image.layers],
        "RepoTags": [name],
    }
    files: dict[str, File] = {f"blobs/sha256/{sha256}": File(content) for sha256, content in blobs.items()}
    files["index.json"] = File(index)
    files["manifest.json"] = File(_json([listed]))
    files["oci-layout"] = File(_json({"imageLayoutVersion": "1.0.0"}))
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for inside, node in sorted(_with_folders(files).items()):
            _add(archive, inside, node)


def write_layout(image: Image, folder: Path, name: str) -> None:
    """An OCI layout, with this one image."""
    blobs, index = _blobs(image, name)
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_bytes(index)
    for sha256, content in blobs.items():
        at = folder / "blobs/sha256" / sha256
        if isinstance(content, bytes):
            at.write_bytes(content)
        else:
            shutil.copyfile(content, at)


def _blobs(image: Image, name: str) -> tuple[dict[str, bytes | Path], bytes]:
    """What an OCI layout holds by its hash, and the index."""
    blobs: dict[str, bytes | Path] = {each.sha256: each.path for each in image.layers}
    layers = [_descriptor("layer.v1.tar", each.sha256, each.length_bytes) for each in image.layers]
    config = _descriptor("config.v1+json", image.id, len(image.config))
    manifest = _json(
        {"config": config, "layers": layers, "mediaType": f"{OCI}manifest.v1+json", "schemaVersion": 2},
    )
    sha256 = hashlib.sha256(manifest).hexdigest()
    blobs |= {image.id: image.config, sha256: manifest}
    listed = _descriptor("manifest.v1+json", sha256, len(manifest)) | {
        "annotations": {"org.opencontainers.image.ref.name": name},
        "platform": {"architecture": image.architecture, "os": "linux"},
    }
    return blobs, _json({"manifests": [listed], "mediaType": f"{OCI}index.v1+json", "schemaVersion": 2})


def _descriptor(kind: str, sha256: str, length_bytes: int) -> dict[str, Any]:
    return {"digest": f"sha256:{sha256}", "mediaType": OCI + kind, "size": length_bytes}


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _with_folders(tree: Tree) -> dict[str, File | Link | Folder]:
    """With all folders that lead to something: an engine would make them, each as it likes."""
    whole: dict[str, File | Link | Folder] = {}
    for name in tree:
        for above in _above(name):
            whole[above] = Folder()
    return whole | dict(tree)


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


def _add(archive: tarfile.TarFile, name: str, node: File | Link | Folder) -> None:
    entry = tarfile.TarInfo(name)
    entry.mtime = MADE_S
    match node:
        case Folder():
            entry.type, entry.mode = tarfile.DIRTYPE, node.mode
            archive.addfile(entry)
        case Link():
            entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, node.target
            archive.addfile(entry)
        case File(content=bytes() as data):
            entry.size, entry.mode = len(data), node.mode
            archive.addfile(entry, io.BytesIO(data))
        case File(content=path):
            assert isinstance(path, Path)
            with path.open("rb") as file:
                entry.size, entry.mode = os.fstat(file.fileno()).st_size, node.mode
                archive.addfile(entry, file)
