"""Whose the containers and images are: the name by which an engine keeps what is ours apart.

It is made of what makes this machine the one that it is, so that it is the same again when `state.db` was lost. And
while an engine may hold something of ours it is kept there, so that it stays the same when the first root had to be
replaced: under another name what runs would not be known for ours. That it is kept says that there may be something.

Beside it stands the boot in which an engine was last given something. No engine starts anything of ours by itself, so
in a later boot nothing of ours runs before the agent has it started, whether or not the engine is there to be asked.

So does where that engine listens: another that is started first at some boot must not take its place.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from device.containers.settings import find_socket
from device.identity import STRANGER
from device.state_db import StateDb
from protocol.errors import StateError
from protocol.ids import DeviceId

KEY: Final = "containers/owner"
BOOT: Final = "containers/boot"
SOCKET: Final = "containers/socket"
DIGITS: Final = 16


class Owner:
    """The name of one machine. Blocking.

    Args:
        name: Empty while it cannot be told; then no engine is to be spoken to.
        state: Keeps it.
        boot: Names the present boot of the machine; empty: it cannot be told.
        named: The engine's socket, by the settings; empty: it is looked for.
        find: As `find_socket`.
    """

    def __init__(
        self,
        name: str,
        state: StateDb,
        boot: str = "",
        *,
        named: str = "",
        find: Callable[[str, Path | None], Path] = find_socket,
    ) -> None:
        self.name = name
        self._state = state
        self._boot = boot
        self._named = named
        self._find = find

    @property
    def socket(self) -> Path:
        """Where the engine listens that is to be spoken to, as of now. One that holds something of ours stays the one,
        until a person names another."""
        kept = self._state.get(SOCKET)
        return self._find(self._named, Path(os.fsdecode(kept)) if kept and self.has_used else None)

    @property
    def has_used(self) -> bool:
        """Whether an engine may hold something of ours."""
        return bool(self._state.get(KEY))

    @property
    def may_run(self) -> bool:
        """Whether something of ours may run that an engine does not show: it was given something in this boot."""
        return self.has_used and (not self._boot or self._state.get(BOOT) in (None, self._boot.encode()))

    def uses(self) -> None:
        """An engine is about to get something. That is durable on return; may be repeated.

        Raises:
            StateError: `state.db` does not take it, and did not know of any before.
        """
        with contextlib.suppress(StateError):  # a full disk keeps nothing that ran from its start
            if self._boot and self._state.get(BOOT) != self._boot.encode():
                self._state.put(BOOT, self._boot.encode())
            if self._state.get(SOCKET) != (socket := os.fsencode(self.socket)):
                self._state.put(SOCKET, socket)
        if not self.has_used:
            self._state.put(KEY, self.name.encode())

    def is_done(self) -> None:
        """No engine holds anything of ours any more.

        Raises:
            StateError: `state.db` does not take it.
        """
        if self.has_used:
            self._state.put(KEY, b"")


def find_owner(identity: Path, state: StateDb, device: DeviceId, boot: str = "", *, named: str = "") -> Owner:
    """The owner of this machine's containers. Blocking.

    Args:
        identity: The folder with the first roots.
        state: See there.
        device: Of the enrolment.
        boot: As `Owner`.
        named: Likewise.
    """
    known = state.get(KEY)
    if known:
        return Owner(known.decode("ascii", errors="replace"), state, boot, named=named)
    try:
        root = (identity / "image.root.json").read_bytes()
    except OSError:
        root = b""
    return Owner(owner_name(root, device) if root and device != STRANGER else "", state, boot, named=named)


def owner_name(first_root: bytes, device: DeviceId) -> str:
    """The name of a machine that began to trust by this root of the image repository."""
    return hashlib.sha256(first_root + b"\n" + device.encode()).hexdigest()[:DIGITS]
