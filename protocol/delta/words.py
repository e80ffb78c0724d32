"""Streams that are made from the base, cut into blocks and these into words of four bytes that are aligned in it."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int32] | Ints
Sizes = npt.NDArray[np.uint8] | Ints

BLOCK_BYTES: Final = 1 << 16
BLOCK_OPERATIONS: Final = 1 << 13  # each may leave two words that are shorter


class Block:
    """Some of a stream.

    Args:
        start: Where it begins in the stream.
        base: Offsets in the base of what its operations read.
        output: Offsets in the result of what they write.
        length: Bytes of each.

    Attributes:
        first: Where each word begins in the block, in bytes.
        sizes: Bytes of each.
    """

    def __init__(self, start: int, base: Ints, output: Ints, length: Ints) -> None:
        self.start = start
        self.end = start + int(length.sum())
        self._base = base
        self._output = output
        head = np.minimum(-base & 3, length)
        heads = (head > 0).astype(np.int64)
        self._count = heads + (length - head >> 2) + ((length - head) & 3 > 0)
        number = np.arange(int(self._count.sum())) - np.repeat(np.cumsum(self._count) - self._count, self._count)
        skip = np.repeat(head - 4 * heads, self._count) + 4 * number
        skip[number == 0] = 0
        self._skip = skip.astype(np.int32)
        self.first = np.repeat((np.cumsum(length) - length).astype(np.int32), self._count) + self._skip
        self.sizes = np.diff(self.first, append=np.int32(self.end - start)).astype(np.uint8)
        self._whole = bool((self.sizes == 4).all())

    def offsets(self) -> tuple[Ints, Ints]:
        """Where the words stand in the base and in the result."""
        return np.repeat(self._base, self._count) + self._skip, np.repeat(self._output, self._count) + self._skip

    def gather(self, data: Bytes) -> Ints:
        """The words of its bytes, little-endian; what is shorter than four bytes is filled up with zeros."""
        return data.view("<u4").astype(np.int64) if self._whole else gather_at(data, self.first, self.sizes)

    def scatter(self, data: Bytes, words: Ints, where: npt.NDArray[np.intp]) -> None:
        """Puts back those of the words that `where` numbers."""
        scatter_at(data, self.first[where], self.sizes[where], words[where])


def gather_at(data: Bytes, first: Offsets, sizes: Sizes) -> Ints:
    """Words that begin at these places, little-endian, filled up with zeros."""
    words = np.zeros(sizes.size, np.int64)
    last = data.size - 1
    for byte in range(4):
        words |= np.where(sizes > byte, data[np.minimum(first + byte, last)], 0).astype(np.int64) << (8 * byte)
    return words


def scatter_at(data: Bytes, first: Offsets, sizes: Sizes, words: Ints) -> None:
    """Puts words to these places."""
    for byte in range(4):
        real = sizes > byte
        data[first[real] + byte] = words[real] >> (8 * byte) & 0xFF


def cut_blocks(base: Ints, output: Ints, length: Ints) -> Iterator[Block]:
    """Cuts a stream into blocks. The arguments are those of all of its operations, as for `Block`."""
    end = np.cumsum(length)
    start = first = 0
    while first < end.size:
        last = min(int(np.searchsorted(end, start + BLOCK_BYTES)), first + BLOCK_OPERATIONS, end.size - 1)
        stop = min(int(end[last]), start + BLOCK_BYTES)
        some = slice(first, last + 1)
        skip = np.zeros(last + 1 - first, np.int64)
        skip[0] = start - (end[first] - length[first])
        rest = length[some] - skip
        rest[-1] -= end[last] - stop
        yield Block(start, base[some] + skip, output[some] + skip, rest)
        start = stop
        first = int(np.searchsorted(end, start, "right"))
