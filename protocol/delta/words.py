"""Streams that are made from the base, cut into blocks and these into words of four bytes that are aligned in it."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

BLOCK_BYTES: Final = 3 << 15
BLOCK_OPERATIONS: Final = 1 << 14  # each may leave two words that are shorter


class Block:
    """Some of a stream.

    Args:
        start: Where it begins in the stream.
        base: Offsets in the base of what its operations read.
        output: Offsets in the result of what they write.
        length: Bytes of each.
    """

    def __init__(self, start: int, base: Ints, output: Ints, length: Ints) -> None:
        self.start = start
        self.end = start + int(length.sum())
        head = np.minimum(-base & 3, length)
        heads = (head > 0).astype(np.int64)
        count = heads + (length - head >> 2) + ((length - head) & 3 > 0)
        number = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        skip = np.repeat(head - 4 * heads, count) + 4 * number
        skip[number == 0] = 0
        self._first = np.repeat(np.cumsum(length) - length, count) + skip
        self.base = np.repeat(base, count) + skip
        self.output = np.repeat(output, count) + skip
        self.sizes = np.diff(self._first, append=self.end - start)
        self._whole = bool((self.sizes == 4).all())

    def gather(self, data: Bytes) -> Ints:
        """The words of its bytes, little-endian; what is shorter than four bytes is filled up with zeros."""
        if self._whole:
            return data.view("<u4").astype(np.int64)
        padded = np.concatenate((data, np.zeros(3, np.uint8)))
        words = np.zeros(self.sizes.size, np.int64)
        for byte in range(4):
            words |= np.where(self.sizes > byte, padded[self._first + byte], 0).astype(np.int64) << (8 * byte)
        return words

    def scatter(self, data: Bytes, words: Ints, where: npt.NDArray[np.intp]) -> None:
        """Puts back those of the words that `where` numbers."""
        first, sizes, values = self._first[where], self.sizes[where], words[where]
        for byte in range(4):
            real = sizes > byte
            data[first[real] + byte] = values[real] >> (8 * byte) & 0xFF


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
