"""Reads numbers and names from a file that may lie about every offset: nothing is read outside of it."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import MADV_NORMAL, MADV_RANDOM, mmap

from server.delta.tensors.found import MAX_NAME_BYTES

MAX_STEPS = 3_000_000  # a few seconds of parsing; a graph of 100 thousand nodes takes about a third


class Damaged(Exception):  # noqa: N818 - it states what the file is; no user ever sees it
    """The file is not what its first bytes claim. The caller goes the generic way."""


class Budget:
    """Bounds the work that a file can ask for, whatever counts it states."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Takes steps.

        Raises:
            Damaged: None are left.
        """
        self._left -= steps
        if self._left < 0:
            raise Damaged("more parts than any real file has")


def check(data: memoryview, at: int, length: int) -> None:
    """Raises Damaged unless the span lies inside the data. Python itself would take a negative offset from the end."""
    if at < 0 or length < 0 or at + length > len(data):
        raise Damaged(f"{length} bytes at {at} lie outside")


@contextmanager
def sampling(data: memoryview) -> Iterator[None]:
    """While a mapped file is sampled here and there: without it, each sample reads megabytes ahead."""
    if not isinstance(data.obj, mmap):
        yield
        return
    data.obj.madvise(MADV_RANDOM)
    try:
        yield
    finally:
        data.obj.madvise(MADV_NORMAL)


def u16(data: memoryview, at: int) -> int:
    """Unsigned, little-endian."""
    check(data, at, 2)
    return int(struct.unpack_from("<H", data, at)[0])


def u32(data: memoryview, at: int) -> int:
    """Unsigned, little-endian."""
    check(data, at, 4)
    return int(struct.unpack_from("<I", data, at)[0])


def i32(data: memoryview, at: int) -> int:
    """Signed, little-endian."""
    check(data, at, 4)
    return int(struct.unpack_from("<i", data, at)[0])


def u64(data: memoryview, at: int) -> int:
    """Unsigned, little-endian."""
    check(data, at, 8)
    return int(struct.unpack_from("<Q", data, at)[0])


def text(data: memoryview, at: int, length: int) -> str:
    """A name, cut at a sensible length; bytes that are no UTF-8 are replaced."""
    check(data, at, length)
    return bytes(data[at : at + min(length, MAX_NAME_BYTES)]).decode("utf-8", "replace")
