"""The archives by which images go into an engine and come out of it: tars, streamed, never as a whole in memory.

In: the layout that `docker save` has always written and every engine loads: a config, layers, and `manifest.json`,
which names them. Out: whatever the engine writes (the layouts differ), of which only what has the digest of a wanted
layer is kept.
"""

import contextlib
import errno
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from device.store import NoSpaceError
from protocol.container import Image
from protocol.errors import StateError
from protocol.ids import Digest
from signing.durable import DISK

CHUNK_BYTES: Final = 1 << 20
MANIFEST_BYTES: Final = 1 << 20  # more than any manifest or index of an image has


class Sending:
    """The bytes of an archive to be loaded; iterate once.

    What fails on our side is kept in `failed`: a client of HTTP takes it for a failure of the line.

    Args:
        image: What it is.
        files: Config and layers; layers that are not here are left out.
        tag: By which the engine marks the image.
    """

    def __init__(self, image: Image, files: Mapping[Digest, Path], tag: str) -> None:
        self._image = image
        self._files = files
        self._tag = tag
        self.failed: StateError | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._bytes()
        except OSError as error:
            self.failed = StateError(f"a file of the image cannot be read: {error}")
            raise
        except StateError as error:
            self.failed = error
            raise

    def _bytes(self) -> Iterator[bytes]:
        image = self._image
        config = image.config.sha256
        manifest = json.dumps(
            [
                {
                    "Config": f"{config}.json",
                    "RepoTags": [self._tag],
                    "Layers": [f"{layer.artifact.sha256}.tar" for layer in image.layers],
                }
            ]
        ).encode()
        yield _head("manifest.json", len(manifest)) + manifest + _padding(len(manifest))
        yield from self._member(f"{config}.json", config, image.config.length_bytes)
        for name, length in {layer.artifact.sha256: layer.artifact.length_bytes for layer in image.layers}.items():
            if name in self._files:
                yield from self._member(f"{name}.tar", name, length)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _member(self, name: str, content: Digest, length_bytes: int) -> Iterator[bytes]:
        yield _head(name, length_bytes)
        left = length_bytes
        with self._files[content].open("rb") as file:
            while left and (piece := file.read(min(left, CHUNK_BYTES))):
                left -= len(piece)
                yield piece
            if left or file.read(1):
                raise StateError(f"the file of {content[:12]} has not its length")
        yield _padding(length_bytes)


def _head(name: str, length_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = length_bytes
    return member.tobuf(format=tarfile.GNU_FORMAT)


def _padding(length_bytes: int) -> bytes:
    return bytes(-length_bytes % tarfile.BLOCKSIZE)


def take_layers(
    archive: Iterator[bytes], layers: Mapping[Digest, Path], lengths: Mapping[Digest, int]
) -> frozenset[Digest]:
    """Writes wanted layers out of an archive as it comes; stops reading when it has all. Not durable on return.

    Args:
        archive: The engine's, in pieces; what it raises goes through.
        layers: Where each goes.
        lengths: Of each.

    Returns:
        What was found. Of the others nothing is left.

    Raises:
        NoSpaceError: The disk of the files is full.
        StateError: A file cannot be written.
        tarfile.TarError: It is no tar, or is cut.
    """
    left = dict(layers)
    with tarfile.open(fileobj=_Pieces(archive), mode="r|", bufsize=CHUNK_BYTES) as tar:
        for member in tar:
            candidates = {name: path for name, path in left.items() if lengths[name] == member.size}
            if not member.isreg() or not candidates:
                continue
            content = tar.extractfile(member)
            assert content is not None
            if (found := _take(content, candidates)) is not None:
                del left[found]
            if not left:
                break
    return frozenset(layers.keys() - left.keys())


def _take(content: IO[bytes], candidates: Mapping[Digest, Path]) -> Digest | None:
    """Writes to the place of one candidate; that is renamed, or gone, when the digest is known."""
    place = next(iter(candidates.values()))
    seen = hashlib.sha256()
    with contextlib.ExitStack() as undo:
        with _told(place):
            if not _is_empty(place):
                DISK.unlink(place)  # whatever lies there, a link included; room may be set aside in an empty file
            part = DISK.open_part(place)
        undo.callback(DISK.unlink, place)
        with part:
            while piece := content.read(CHUNK_BYTES):
                seen.update(piece)
                with _told(place):
                    part.append(piece)
        name = seen.hexdigest()
        if name not in candidates:
            return None
        with _told(place):
            if candidates[name] != place:
                DISK.rename(place, candidates[name])
        undo.pop_all()
        return name


def _is_empty(place: Path) -> bool:
    try:
        about = place.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(about.st_mode) and not about.st_size


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"no space for a layer of {place.parent}") from error
        raise StateError(f"a layer cannot be written: {error}") from error


def find_config(archive: Iterator[bytes], manifest: Digest) -> Digest | None:
    """The digest of the config that an image manifest names, out of an archive that has this manifest.

    The manifest is known by its own digest, so nobody needs to be believed. Reading stops when it was found.

    Args:
        archive: An OCI layout, in pieces.
        manifest: Of an image, or of an index with one image.

    Raises:
        tarfile.TarError: It is no tar, or is cut.
    """
    blobs: dict[Digest, bytes] = {}
    with tarfile.open(fileobj=_Pieces(archive), mode="r|", bufsize=CHUNK_BYTES) as tar:
        for member in tar:
            if not member.isreg() or member.size > MANIFEST_BYTES:
                continue
            content = tar.extractfile(member)
            assert content is not None
            data = content.read()
            if data.startswith(b"{"):
                blobs[hashlib.sha256(data).hexdigest()] = data
            if (config := _config_of(blobs, manifest)) is not None:
                return config
    return None


def _config_of(blobs: Mapping[Digest, bytes], manifest: Digest) -> Digest | None:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        tree = json.loads(blobs[manifest])
        if "config" in tree:
            return str(tree["config"]["digest"]).removeprefix("sha256:")
        images: Sequence[str] = [
            one["digest"].removeprefix("sha256:")
            for one in tree["manifests"]
            if one.get("platform", {}).get("os") != "unknown"  # attestations say so of themselves
        ]
        if len(images) == 1 and images[0] != manifest:
            return _config_of(blobs, images[0])
    return None


class _Pieces(io.RawIOBase):
    """Pieces as a file that `tarfile` reads forward."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = []
        while size > 0:
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
                if not self._rest:
                    break
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            parts.append(part)
        return b"".join(parts)
