"""The socket file: anew at each start of the agent, in a folder that stays, so that a mount of it goes on showing it.

Every user of the machine who gets as far as the folder may connect, none may put anything else in its place.
"""

import contextlib
import os
import socket
from pathlib import Path
from typing import Final

from signing.durable import DISK, TEMPORARY_PREFIX, Disk

SOCKET: Final = "headland.sock"
FOLDER_MODE: Final = 0o755
SOCKET_MODE: Final = 0o666  # to connect is to write
BACKLOG: Final = 64


def make_folder(folder: Path, disk: Disk = DISK) -> None:
    """Makes what is mounted. Blocking; may be repeated.

    Raises:
        OSError: The disk takes no new file.
    """
    disk.make_dir(folder, FOLDER_MODE)
    if folder.stat().st_mode & 0o777 != FOLDER_MODE:
        folder.chmod(FOLDER_MODE)


def listen(folder: Path, disk: Disk = DISK) -> socket.socket:
    """Listens at `folder/headland.sock`, in the place of what lay there. Blocking.

    Raises:
        OSError: The disk takes no new file.
    """
    make_folder(folder, disk)
    disk.sweep(folder)
    fresh = folder / f"{TEMPORARY_PREFIX}{SOCKET}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # An address may have 107 bytes, a path far more: by its open folder every path is short.
        at = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{at}/{fresh.name}")
        finally:
            os.close(at)
        fresh.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
        disk.rename(fresh, folder / SOCKET)
    except BaseException:
        listener.close()
        raise
    return listener


def remove(folder: Path, disk: Disk = DISK) -> None:
    """Takes the socket away at an end in order; one that stays tells nobody anything. Blocking."""
    with contextlib.suppress(OSError):
        disk.unlink(folder / SOCKET)
