"""What applies the groups of a patch: in this process, or in a child that is thrown away afterwards.

The agent uses a child (`python -m device.transfer.patch_child`): numpy never enters the agent, which stays small; the
loop that inference shares never waits for arithmetic; and bytes that take a decoder down take only the child.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from protocol.errors import StateError

Write = Callable[[bytes], None]


class ApplierEndedError(OSError):
    """What applies patches was ended from outside, again and again, or does not start. It says nothing of the patch."""


class Base(Protocol):
    """As the codec's own, whose module brings numpy along."""

    @property
    def length_bytes(self) -> int:
        """Of the whole file."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes."""
        ...


ApplyGroup = Callable[[bytes, Base, int, Write], int]
"""As `protocol.delta.apply.apply_group`."""


class Applier(Protocol):
    """Applies groups against one base."""

    def apply(self, group: bytearray, output_offset: int, write: Write) -> None:
        """Applies one group whose hash was checked. Blocking. What `write` raises comes through.

        Raises:
            Refused: The group cannot be applied to this base.
            OSError: The machine is in the way, not the patch: its disk, its memory, or whoever ended the applier.
        """
        ...

    def cancel(self) -> None:
        """Has an `apply` that runs in another thread end soon, if it can; nothing is applied afterwards."""
        ...

    def close(self) -> None:
        """Lets go of the base, when nothing is being applied. Safe to repeat."""
        ...


Appliers = Callable[[Path], Applier]
"""Makes the applier for a base."""


class FileBase:
    """The old file, read by position.

    Args:
        path: Of a file that nobody changes.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.length_bytes = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """As `protocol.delta.apply.Base`."""
        found = os.pread(self._fd, length, offset)
        while len(found) < length:
            more = os.pread(self._fd, length - len(found), offset + len(found))
            if not more:
                raise StateError(f"the base ends before byte {offset + length}")
            found += more
        return found

    def close(self) -> None:
        """Lets go of the file. Safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InProcess:
    """Applies in the thread that calls.

    Args:
        base: Path of the base.
        apply_group: Does it.
    """

    def __init__(self, base: Path, apply_group: ApplyGroup) -> None:
        self._base = FileBase(base)
        self._apply_group = apply_group

    def apply(self, group: bytearray, output_offset: int, write: Write) -> None:
        """As `Applier`."""
        self._apply_group(bytes(group), self._base, output_offset, write)

    def cancel(self) -> None:
        """As `Applier`: what is written to says no soon enough."""

    def close(self) -> None:
        """As `Applier`."""
        self._base.close()


def in_process(apply_group: ApplyGroup | None = None) -> Appliers:
    """Appliers in this process.

    Args:
        apply_group: Instead of the codec's.
    """

    def make(base: Path) -> Applier:
        if apply_group is not None:
            return InProcess(base, apply_group)
        from protocol.delta import apply  # numpy: never before a patch is there

        return InProcess(base, apply.apply_group)

    return make
