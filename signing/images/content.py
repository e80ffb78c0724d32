"""What images are read from: blobs by digest, and the images that were found among them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from protocol.container import Platform
from protocol.ids import Digest

Say = Callable[[str], None]
"""Hears one line for each step that takes time."""

Chunks = Iterator[bytes]


@dataclass(frozen=True)
class Blob:
    """A blob that something names.

    Args:
        sha256: Of its bytes as they lie there; empty where only its place is known.
        length_bytes: Likewise.
        place: How its source finds it: a digest, or the name of an entry.
        is_manifest: Registries hold manifests apart from other blobs.
    """

    sha256: Digest | None
    length_bytes: int
    place: str
    is_manifest: bool = False


class Content(Protocol):
    """Blobs in one place. What comes out is not yet trusted: callers hash it."""

    def has(self, blob: Blob) -> bool:
        """Whether it is there; a registry answers True, and says later."""
        ...

    def open(self, blob: Blob, at: int = 0) -> AbstractContextManager[Chunks]:
        """Its bytes from offset `at` on, in chunks of at most 1 MiB.

        Raises:
            StateError: It is not there.
            LinkError: The link failed.
        """
        ...


@dataclass(frozen=True)
class Found:
    """An image of a source.

    Args:
        platform: From its config.
        config: Its bytes, whose digest held.
        layers: Lowest first, compressed or not.
        content: Where they lie.
        digest: Of what the reference meant, as its source says it: `sha256:...`; empty where it has none.
    """

    platform: Platform
    config: bytes
    layers: tuple[Blob, ...]
    content: Content
    digest: str
