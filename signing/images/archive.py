"""Archives of `docker save` and `podman save`: the older form, which lists files, and an OCI layout in a tar."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from protocol import limits
from protocol.container import Platform
from protocol.errors import Reason, Refused, SettingsError, StateError
from protocol.image_config import parse_image_config
from signing.images import bounds
from signing.images.content import Blob, Chunks, Found, Say
from signing.images.layout import choose
from signing.images.manifests import find_images, read_blob, read_index
from signing.images.tar_entries import read_entries

INDEX = "index.json"
LIST = "manifest.json"
SAVE = "an archive of an image is what `docker save NAME` or `podman save NAME` writes; `export` writes none"
SAVE_ONE = "save one: `docker save NAME:TAG`"


class _Listed(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: list[str]


class Archive:
    """The entries of an archive. A `Content`.

    Args:
        path: Of the file.

    Raises:
        SettingsError: It cannot be read.
        Refused: `IMAGE`, `LIMIT`: no archive, or too much of one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._places = read_entries(file)
        except OSError as error:
            hint = "an OCI layout is a folder: oci:FOLDER" if path.is_dir() else ""
            raise SettingsError(f"{path}: {error.strerror}", hint=hint) from error
        except Refused as error:
            raise Refused(error.reason, error.message, hint=error.hint or SAVE) from error

    def entry(self, name: str, limit: int) -> Blob | None:
        """An entry by name; None: there is none.

        Raises:
            Refused: `LIMIT`.
        """
        place = self._places.get(name)
        if place is not None and place.length_bytes > limit:
            raise Refused(Reason.LIMIT, f"{self._path.name}: {name!r:.80} has more than {limit} bytes")
        return None if place is None else Blob(None, place.length_bytes, name)

    def has(self, blob: Blob) -> bool:
        """See `Content`."""
        return self._name(blob) in self._places

    @contextmanager
    def open(self, blob: Blob, at: int = 0) -> Iterator[Chunks]:
        """See `Content`."""
        place = self._places.get(self._name(blob))
        if place is None:
            raise StateError(f"{self._path.name} has no {blob.place!r:.80}")
        with self._path.open("rb") as file:
            file.seek(place.offset + at)
            left = max(0, place.length_bytes - at)

            def chunks() -> Chunks:
                nonlocal left
                while left and (chunk := file.read(min(left, bounds.CHUNK_BYTES))):
                    left -= len(chunk)
                    yield chunk

            yield chunks()

    def _name(self, blob: Blob) -> str:
        return blob.place if blob.sha256 is None else f"blobs/sha256/{blob.sha256}"


def images_of_archive(path: Path, platforms: Collection[Platform], say: Say) -> tuple[Found, ...]:
    """The images of an archive that holds one, for one platform or several.

    Args:
        path: Of the file.
        platforms: As `find_images`.
        say: Likewise.

    Raises:
        SettingsError: It cannot be read, or holds several images.
        Refused: As `find_images`.
        StateError: Likewise.
    """
    archive = Archive(path)
    index = archive.entry(INDEX, bounds.MANIFEST_BYTES)
    if index is not None:
        top = choose(read_index(read_blob(archive, index)), "", hint=SAVE_ONE)
        return find_images(archive, top, platforms, say)
    listed = archive.entry(LIST, bounds.MANIFEST_BYTES)
    if listed is None:
        raise Refused(Reason.IMAGE, f"neither {INDEX} nor {LIST} is in it", hint=SAVE)
    try:
        images = msgspec.json.decode(read_blob(archive, listed), type=list[_Listed])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Refused(Reason.IMAGE, f"not a list of images: {error}") from error
    if len(images) != 1:
        raise SettingsError(f"it holds {len(images)} images", hint=SAVE_ONE)
    found = _image(archive, images[0])
    if missing := set(platforms) - {found.platform}:
        raise StateError(f"no image for {', '.join(sorted(missing))}, but one for {found.platform}")
    return (found,)


def _image(archive: Archive, listed: _Listed) -> Found:
    entry = archive.entry(listed.config, limits.IMAGE_CONFIG_BYTES)
    if entry is None:
        raise Refused(Reason.IMAGE, "its image config is not in it")
    data = read_blob(archive, entry)
    config = parse_image_config(data)
    if len(config.layers) != len(listed.layers):
        raise Refused(Reason.IMAGE, f"it lists {len(listed.layers)} layers, the config {len(config.layers)}")
    layers: list[Blob] = []
    known: dict[str, Blob] = {}
    for diff_id, name in zip(config.layers, listed.layers, strict=True):
        # A layer that stands twice in an image stands once in an archive; the second is a link, and links are not read.
        layer = archive.entry(name, bounds.LAYER_BYTES) or known.get(diff_id)
        if layer is None:
            raise Refused(Reason.IMAGE, f"layer {diff_id[:12]} is not in it")
        known[diff_id] = layer
        layers.append(layer)
    return Found(config.platform, data, tuple(layers), archive, "")
