"""Machine signals, such as `driving`: read from a folder in which the machine's own software keeps one file each.

A file that holds `0` says that its signal is off. Anything else, a missing file and a file that cannot be read leave
the signal unknown, and unknown is treated as on: a condition that asks for it waits.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

READ_BYTES: Final = 16

Signals = Callable[[], Collection[str]]
"""Names of the signals that are known to be off. Blocking."""


def folder_signals(folder: Path | None) -> Signals:
    """Signals of a folder.

    Args:
        folder: None when the machine gives none.
    """

    def read() -> Collection[str]:
        if folder is None:
            return ()
        try:
            return frozenset(path.name for path in folder.iterdir() if _is_off(path))
        except OSError:
            return ()

    return read


def _is_off(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(READ_BYTES).strip() == b"0"
    except OSError:
        return False
