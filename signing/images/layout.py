"""An OCI image layout: a folder with `index.json` and `blobs/sha256/`. No symlink in it is followed."""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from protocol.container import Platform
from protocol.errors import Reason, Refused, SettingsError, StateError
from signing.images import bounds
from signing.images.content import Blob, Chunks, Found, Say
from signing.images.manifests import REFERENCE_NAME, Descriptor, find_images, read_index

LAYOUT: Final = "an OCI layout is a folder as `skopeo copy SOURCE oci:FOLDER` or a builder's OCI output writes it"
_PLAIN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not keep us waiting


class Layout:
    """The blobs of a layout. A `Content`.

    Args:
        folder: With an `index.json`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def index(self) -> bytes:
        """`index.json`.

        Raises:
            SettingsError: There is none.
            Refused: `LIMIT`.
        """
        try:
            with self._file("index.json") as file:
                data = os.read(file, bounds.MANIFEST_BYTES + 1)
        except OSError as error:
            hint = "a file is archive:FILE" if self._folder.is_file() else LAYOUT
            raise SettingsError(
                f"{self._folder}: no OCI layout: its index.json: {error.strerror}", hint=hint
            ) from error
        if len(data) > bounds.MANIFEST_BYTES:
            raise Refused(Reason.LIMIT, f"{self._folder}: an index.json of more than {bounds.MANIFEST_BYTES} bytes")
        return data

    def has(self, blob: Blob) -> bool:
        """See `Content`."""
        try:
            with self._file("blobs", "sha256", blob.place):
                return True
        except OSError:
            return False

    @contextmanager
    def open(self, blob: Blob, at: int = 0) -> Iterator[Chunks]:
        """See `Content`."""
        with ExitStack() as opened:
            try:
                file = opened.enter_context(self._file("blobs", "sha256", blob.place))
            except OSError as error:
                raise StateError(f"{self._folder}: blob {blob.place[:12]}: {error.strerror}") from error
            os.lseek(file, at, os.SEEK_SET)
            yield iter(lambda: os.read(file, bounds.CHUNK_BYTES), b"")

    @contextmanager
    def _file(self, *names: str) -> Iterator[int]:
        """A regular file below the folder; each name is one step, and none is a symlink."""
        at = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for number, name in enumerate(names):
                folder = os.O_DIRECTORY if number < len(names) - 1 else 0
                inner = os.open(name, _PLAIN | folder, dir_fd=at)
                os.close(at)
                at = inner
            if not stat.S_ISREG(os.fstat(at).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            yield at
        finally:
            os.close(at)


def images_of_layout(folder: Path, name: str, platforms: Collection[Platform], say: Say) -> tuple[Found, ...]:
    """The images of a layout.

    Args:
        folder: Of the layout.
        name: Of the image in it; empty when it holds one.
        platforms: As `find_images`.
        say: Likewise.

    Raises:
        SettingsError: No layout; no such name, or several and none named.
        Refused: As `find_images`.
        StateError: Likewise.
    """
    layout = Layout(folder)
    top = choose(read_index(layout.index()), name, hint="say which: oci:FOLDER:NAME")
    return find_images(layout, top, platforms, say)


def choose(entries: list[Descriptor], name: str, *, hint: str) -> Descriptor:
    """The one entry of an index that is meant.

    Args:
        entries: Of the index.
        name: Of the image; empty when there is one.
        hint: What to do when there are several.

    Raises:
        SettingsError: None, or several.
    """
    named = [((entry.annotations or {}).get(REFERENCE_NAME, ""), entry) for entry in entries]
    meant = {entry.digest: entry for text, entry in named if not name or text == name}
    if len(meant) != 1:
        known = ", ".join(sorted({f"{text!r:.80}" for text, _ in named if text})) or "none has a name"
        raise SettingsError(
            f"it holds {len({entry.digest for entry in entries})} images ({known})"
            + (f"; {len(meant)} are called {name!r:.80}" if name else ""),
            hint=hint,
        )
    return next(iter(meant.values()))
