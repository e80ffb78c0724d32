"""What a cut hits: one piece of the product's real work, what the next start makes of it, and what must hold then.

The layers share these workloads: the crash states (every state that a power cut can leave), and the fail points (the
process killed, or the disk full, at the n-th effect).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from signing.durable import TEMPORARY_PREFIX

REFUSED = "the disk refused"
"""Among the promises: from here on what may be dropped for want of room may be gone, if it is counted."""


class Promises:
    """What somebody was told, in order. It lies outside the folder that is cut: a promise cannot be taken back.

    Each is one line, written with one call of `write`, so that a recording sees it as a mark at its exact place.

    Args:
        path: Made when absent, appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __call__(self, what: str) -> None:
        """Somebody was told `what` just now."""
        assert "\n" not in what
        os.write(self._fd, what.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


class Workload(Protocol):
    """Real work on `home/state`. What other computers hold lies in `home/world`, and is not hurt by the cut.

    A workload is the same each time: what it draws by chance it draws in `prepare`, or from a seed. `world` stays as
    `prepare` made it: what other computers have learnt since is in the promises, which a cut cannot hurt either.
    """

    name: str

    def prepare(self, home: Path) -> None:
        """Makes `home/state` and `home/world` as they stand before the work; all of it is durable."""

    def act(self, home: Path, promise: Promises) -> None:
        """Does the work, and says at each point what it promised from there on."""

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        """What the next start does, until nothing is to do. It may be cut as well, and is then done again.

        Args:
            home: As the cut left it.
            promised: For a world that must know how far it got; the product may not be told.
        """

    def check(self, home: Path, promised: Sequence[str]) -> None:
        """Looks at what is there after `recover`.

        Raises:
            AssertionError: A promise was broken, or an invariant; its text says which.
        """


def leftovers(folder: Path) -> list[Path]:
    """What a write that was cut left behind: temporary files and folders of `signing.durable`, anywhere in `folder`."""
    return sorted(folder.rglob(f"{TEMPORARY_PREFIX}*"))
