"""Locks between processes. The kernel lets go of them when the process ends, however it ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.errors import StateError

_TRIES: Final = 10
_PAUSE_S: Final = 0.02


@contextlib.contextmanager
def held(path: Path, taken: StateError) -> Iterator[None]:
    """Holds a file that is there to be locked, or says at once that another process does.

    Args:
        path: Made when absent, and left there. Once it is there, its disk need take no writes.
        taken: What is raised then.

    Raises:
        StateError: `taken`.
        OSError: There is none, and none can be made.
    """
    descriptor = _opened(path)
    try:
        for tries_left in reversed(range(_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not tries_left:
                    raise taken from error
            time.sleep(_PAUSE_S)  # it may be one who only looks: `is_held`
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process is in `held` with this file. No two who look meet each other."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
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


def _opened(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
