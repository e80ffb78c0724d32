"""The port through which a patch reads the old file."""

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
