"""Container images for tests, made from nothing: layers as tars, a config, and what the manifest says of them.

No engine and no registry takes part, so that a test may also make what no builder would.
"""

import io
import json
import os
import platform
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protocol.artifact import Artifact
from protocol.container import CONFIG_MEDIA_TYPE, LAYER_MEDIA_TYPE, PLATFORMS, Image, Layer
from protocol.ids import Digest, digest

BUSYBOX = Path("/bin/busybox")
PLATFORM = PLATFORMS.get(f"linux-{platform.machine()}", "linux/amd64")
SHELL = ("/bin/busybox", "sh", "-c")
STAYS = (*SHELL, "trap 'exit 0' TERM; while :; do sleep 0.1; done")
"""A command that lives until it is told to end, and then ends at once."""


@dataclass(frozen=True)
class BuiltImage:
    """An image as the manifest names it, and where its bytes are.

    Args:
        image: For a manifest.
        files: The config and the layers, by digest.
    """

    image: Image
    files: Mapping[Digest, Path]

    @property
    def digest(self) -> Digest:
        """That of the config: the image's identity."""
        return self.image.config.sha256

    @property
    def layers(self) -> tuple[Digest, ...]:
        return tuple(layer.artifact.sha256 for layer in self.image.layers)


def tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A layer of exactly these entries, hostile ones included."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    """An ordinary file of root's."""
    info = tarfile.TarInfo(name)
    info.mode = mode
    return info, data


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = mode
    return info, b""


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    info.linkname = target
    return info, b""


def base_layer() -> bytes:
    """A static busybox, and the folders that one expects."""
    static = BUSYBOX.exists() and subprocess.run(["ldd", str(BUSYBOX)], capture_output=True, check=False).returncode
    if not static:
        message = "no static busybox here (apt-get install busybox-static)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return tar(
        [
            folder("bin"),
            file("bin/busybox", BUSYBOX.read_bytes(), 0o755),
            link("bin/sh", "busybox"),
            folder("tmp", 0o1777),
        ]
    )


class Images:
    """Makes images into a folder.

    Args:
        folder: Where their bytes lie; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def app(self, text: str = "", **config: Any) -> BuiltImage:
        """A busybox with one file `/app` above it: two of them differ by that file."""
        return self.build([base_layer(), tar([file("app", text.encode(), 0o755)])], config)

    def build(self, layers: Sequence[bytes], config: Mapping[str, Any] | None = None) -> BuiltImage:
        """Of these layers, lowest first; `config` is what the image's own config asks for (`Env`, `User`...)."""
        parts = [self._keep(layer, LAYER_MEDIA_TYPE) for layer in layers]
        name, _, variant = PLATFORM.removeprefix("linux/").partition("/")
        content = {
            "architecture": name,
            **({"variant": variant} if variant else {}),
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{part.sha256}" for part in parts]},
            "history": [{"created": "2026-01-01T00:00:00Z", "created_by": f"step {n}"} for n in range(len(parts))],
        }
        own = self._keep(json.dumps(content).encode(), CONFIG_MEDIA_TYPE)
        image = Image(platform=PLATFORM, config=own, layers=tuple(Layer(artifact=part) for part in parts))
        return BuiltImage(image, {part.sha256: self._folder / part.sha256 for part in (own, *parts)})

    def _keep(self, data: bytes, media_type: Any) -> Artifact:
        name = digest(data)
        (self._folder / name).write_bytes(data)
        return Artifact(sha256=name, length_bytes=len(data), media_type=media_type)
