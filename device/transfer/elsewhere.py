"""Bases of patches that lie elsewhere than in the store: an engine holds the layers of its images."""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from device.store import Store
from protocol.ids import Digest


def brought_part(store: Store, name: Digest) -> Path:
    """Where an artifact grows while it is got from elsewhere, and room is set aside for it."""
    return store.part(f"{name}.brought")


class Elsewhere(Protocol):
    """What else on this machine holds artifacts that a patch may be applied to."""

    def length_bytes(self, name: Digest) -> int | None:
        """What the artifact will take in the store; None: it is not held, or its length is not known. Never blocks."""
        ...

    async def get(self, names: Collection[Digest]) -> None:
        """Has artifacts lie in the store until `give_up`, if they are held; durable on return, and may be repeated.

        Several at once may cost no more than one: an engine gives an image as a whole.

        Raises:
            StateError: Whoever holds one does not give it now.
            NoSpaceError: The disk of the store is full.
        """
        ...

    async def give_up(self, name: Digest) -> None:
        """The artifact is not needed in the store any more: it may go from there where it is held elsewhere as well."""
        ...


class Nowhere:
    """All that there is lies in the store."""

    def length_bytes(self, name: Digest) -> int | None:
        """As `Elsewhere`."""

    async def get(self, names: Collection[Digest]) -> None:
        """As `Elsewhere`."""

    async def give_up(self, name: Digest) -> None:
        """As `Elsewhere`."""
