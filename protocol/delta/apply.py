"""Applies one group of a patch: the base by position, the output forward only."""

from collections.abc import Callable
from typing import Protocol


class Base(Protocol):
    """The old file. Its hash was checked before the first group is applied."""

    @property
    def length_bytes(self) -> int:
        """Of the whole file."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; offset and length were held against `length_bytes` before."""
        ...


def apply_group(group: bytes, base: Base, output_offset: int, write: Callable[[bytes], None]) -> int:
    """Applies a group whose hash was checked.

    Args:
        group: All of its bytes.
        base: What the patch was made against.
        output_offset: Where the group's output begins in the result.
        write: Takes the output in order, at most 1 MiB at a time.

    Returns:
        How many bytes were written: what the group's header says.

    Raises:
        Refused: `LIMIT`, `LENGTH` or `METADATA`: the group says something that cannot be done.
    """
    raise NotImplementedError
