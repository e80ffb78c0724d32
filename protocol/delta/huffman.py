"""Huffman codes as zlib and GNU gzip make them: which code lengths follow from how often each symbol occurs.

The format (RFC 1951) leaves the lengths to the encoder. Both have the same construction: a heap whose ties are broken
by depth, lengths over the limit pushed back in one way. It is followed step by step, so that codes need not be sent.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

LENGTH_ORDER: Final = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
MOST_BITS: Final = 15
MOST_LENGTH_BITS: Final = 7  # of the code that code lengths are written in
REPEAT, ZEROS, MANY_ZEROS = 16, 17, 18

Bits = list[tuple[int, int]]
"""Values and how many bits each has, least significant bit first."""


class _Heap:
    """zlib's `build_tree`. `frequency` and `depth` grow with the inner nodes."""

    def __init__(self, frequency: list[int]) -> None:
        self._symbols = len(frequency)
        self._frequency = frequency + [0] * self._symbols
        self._depth = [0] * (2 * self._symbols)
        self._heap = [0]
        for symbol, count in enumerate(frequency):
            if count:
                self._heap.append(symbol)
        self.last = self._heap[-1] if len(self._heap) > 1 else -1
        while len(self._heap) < 3:
            forced = 0
            if self.last < 2:
                self.last += 1
                forced = self.last
            self._heap.append(forced)
            self._frequency[forced] = 1

    def lengths(self, most: int) -> list[int]:
        heap, frequency, depth = self._heap, self._frequency, self._depth
        for place in range((len(heap) - 1) // 2, 0, -1):
            self._sift(place)
        parents = [0] * (2 * self._symbols)
        order: list[int] = []  # nodes as they leave the heap: the last one is the root
        node = self._symbols
        while True:
            one = heap[1]
            heap[1] = heap[-1]
            heap.pop()
            self._sift(1)
            other = heap[1]
            order += (one, other)
            frequency[node] = frequency[one] + frequency[other]
            depth[node] = max(depth[one], depth[other]) + 1
            parents[one] = parents[other] = node
            heap[1] = node
            self._sift(1)
            node += 1
            if len(heap) < 3:
                break
        order.append(heap[1])
        return self._limited(order, parents, most)

    def _limited(self, order: list[int], parents: list[int], most: int) -> list[int]:
        lengths = [0] * (2 * self._symbols)
        counts = [0] * (most + 1)
        over = 0
        for node in order[-2::-1]:
            bits = lengths[parents[node]] + 1
            if bits > most:
                bits = most
                over += 1
            lengths[node] = bits
            if node <= self.last:
                counts[bits] += 1
        if over:
            while over > 0:
                bits = most - 1
                while not counts[bits]:
                    bits -= 1
                counts[bits] -= 1
                counts[bits + 1] += 2
                counts[most] -= 1
                over -= 2
            leaves = (node for node in order if node <= self.last)
            for bits in range(most, 0, -1):
                for _ in range(counts[bits]):
                    lengths[next(leaves)] = bits
        return lengths[: self.last + 1]

    def _sift(self, place: int) -> None:
        heap, frequency, depth = self._heap, self._frequency, self._depth
        node = heap[place]
        own = frequency[node], depth[node]
        child = 2 * place
        while child < len(heap):
            lower = heap[child]
            key = frequency[lower], depth[lower]
            if child + 1 < len(heap):
                beside = heap[child + 1]
                other = frequency[beside], depth[beside]
                if other <= key:
                    child, lower, key = child + 1, beside, other
            if own <= key:
                break
            heap[place] = lower
            place = child
            child = 2 * place
        heap[place] = node


def code_lengths(frequency: Sequence[int], most: int = MOST_BITS) -> list[int]:
    """The length of each symbol's code, up to the last symbol that has one."""
    return _Heap(list(frequency)).lengths(most)


def codes_of(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """The codes that go with lengths, first bit lowest (RFC 1951 3.2.2)."""
    counts = [0] * (MOST_BITS + 2)
    for length in lengths:
        counts[length] += length > 0
    following = [0] * (MOST_BITS + 2)
    for bits in range(1, MOST_BITS + 1):
        following[bits + 1] = following[bits] + counts[bits] << 1
    codes = np.zeros(len(lengths), np.int64)
    for symbol, length in enumerate(lengths):
        if length:
            codes[symbol] = int(format(following[length], f"0{length}b")[::-1], 2)
            following[length] += 1
    return codes


def write_lengths(literals: Sequence[int], distances: Sequence[int]) -> Bits:
    """How the lengths of a block's two codes are written."""
    runs = [*_runs(literals), *_runs(distances)]
    frequency = [0] * 19
    for symbol, _, _ in runs:
        frequency[symbol] += 1
    own = code_lengths(frequency, MOST_LENGTH_BITS)
    own += [0] * (19 - len(own))
    sent = max((place for place, symbol in enumerate(LENGTH_ORDER) if own[symbol]), default=0)
    sent = max(sent, 3)
    codes = codes_of(own)
    bits = [(len(literals) - 257, 5), (len(distances) - 1, 5), (sent - 3, 4)]
    bits += [(own[symbol], 3) for symbol in LENGTH_ORDER[: sent + 1]]
    for symbol, extra, width in runs:
        bits.append((int(codes[symbol]), own[symbol]))
        if width:
            bits.append((extra, width))
    return bits


def _runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Symbols for lengths and their repetitions, with extra bits, as zlib's `send_tree` writes them."""
    out: list[tuple[int, int, int]] = []
    before = -1
    count = 0
    most, least = (138, 3) if lengths[0] == 0 else (7, 4)
    for place, length in enumerate(lengths):
        following = lengths[place + 1] if place + 1 < len(lengths) else -1
        count += 1
        if count < most and length == following:
            continue
        if count < least:
            out += [(length, 0, 0)] * count
        elif length:
            if length != before:
                out.append((length, 0, 0))
                count -= 1
            out.append((REPEAT, count - 3, 2))
        elif count <= 10:
            out.append((ZEROS, count - 3, 3))
        else:
            out.append((MANY_ZEROS, count - 11, 7))
        count = 0
        before = length
        if following == 0:
            most, least = 138, 3
        elif length == following:
            most, least = 6, 3
        else:
            most, least = 7, 4
    return out
