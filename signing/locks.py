"""Locks between processes. The kernel lets go of them when the process ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import StateError


@contextlib.contextmanager
def held(path: Path, taken: StateError) -> Iterator[None]:
    """Holds a file that is there to be locked, or says at once that another process does.

    Args:
        path: Made when absent, and left there.
        taken: What is raised then.

    Raises:
        StateError: `taken`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_by_one(folder: Path) -> Iterator[None]:
    """Waits until no other process, and no other thread, is inside this block for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
