"""Sets the room for what a fetch will write aside before its first byte travels: nothing else takes it meanwhile.

The room is that of the very files that will be filled, so that it needs no account of its own: each byte that is
written takes one that was set aside. It is given back when the fetch ends, however it ends; what a cut left set aside
counts as ours in `holding.peak_bytes`, and goes with its file.
"""

import contextlib
import errno
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from device.store import NoSpaceError, Store
from device.transfer.elsewhere import brought_part
from device.transfer.holding import part_of
from protocol.ids import Digest
from protocol.limits import MIB
from protocol.objects import Step

SMALL_BYTES: Final = MIB  # what is smaller is covered by what is kept back: a plan may have a thousand of them


def reserve(store: Store, steps: Iterable[Step], brought: Mapping[Digest, int] = MappingProxyType({})) -> list[Path]:
    """Sets aside what the results of these steps will take, and bases that are brought. Blocking.

    Args:
        store: Where they go.
        steps: What is fetched.
        brought: Lengths of bases.

    Returns:
        Of which files: for `release`.

    Raises:
        NoSpaceError: The disk has not so much room after all; nothing stays set aside.
    """
    files = [(part_of(store, step), step.artifact, step.length_bytes) for step in steps]
    files += [(brought_part(store, base), base, length_bytes) for base, length_bytes in brought.items()]
    reserved: list[Path] = []
    for path, name, length_bytes in files:
        if path is None or length_bytes < SMALL_BYTES:
            continue
        reserved.append(path)
        try:
            with store.disk.open_part(path) as part:
                part.reserve(length_bytes)
        except OSError as error:
            release(store, reserved)
            if error.errno != errno.ENOSPC:
                raise
            raise NoSpaceError(
                f"the disk has no room for {length_bytes} bytes of {name[:12]}",
                hint="free space on the disk of the state folder",
                lacks_bytes=length_bytes,
            ) from error
    return reserved


def release(store: Store, reserved: Iterable[Path]) -> None:
    """Gives back what was set aside and not written. Blocking; safe to repeat, and in any state of the files."""
    for path in reserved:
        with contextlib.suppress(FileNotFoundError):
            if not path.stat().st_size:
                store.disk.unlink(path)
                continue
            with store.disk.open_part(path) as part:
                part.truncate(part.length_bytes)
