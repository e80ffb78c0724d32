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


def _reversed() -> npt.NDArray[np.int32]:
    codes = np.arange(1 << MOST_BITS, dtype=np.int32)
    turned = np.zeros_like(codes)
    for bit in range(MOST_BITS):
        turned |= (codes >> bit & 1) << (MOST_BITS - 1 - bit)
    return turned


REVERSED: Final = _reversed()
"""Numbers of 15 bits with their bits the other way round."""

Bits = list[tuple[int, int]]
"""Values and how many bits each has, least significant bit first."""


_NODE_BITS: Final = 10  # of an entry of the heap, below its node's depth and how often it occurs
_NODE: Final = (1 << _NODE_BITS) - 1
_DEPTH_BITS: Final = 10
_DEPTH: Final = (1 << _DEPTH_BITS) - 1
_KEY_BITS: Final = _NODE_BITS + _DEPTH_BITS


def code_lengths(frequency: Sequence[int], most: int = MOST_BITS) -> list[int]:
    """The length of each symbol's code, up to the last symbol that has one: zlib's `build_tree`.

    An entry of the heap is one number: how often, how deep, which node. Where two are alike but for the node, the order
    is that of zlib's heap, which says "not above" where this says `<= entry | _NODE`.
    """
    heap = [0]
    heap += [count << _KEY_BITS | symbol for symbol, count in enumerate(frequency) if count]
    last = heap[-1] & _NODE if len(heap) > 1 else -1
    while len(heap) < 3:
        forced = 0
        if last < 2:
            last += 1
            forced = last
        heap.append(1 << _KEY_BITS | forced)
    for place in range((len(heap) - 1) // 2, 0, -1):
        _sift(heap, place, heap[place])
    first = max(len(frequency), last + 1)
    parents = [0] * (first + len(heap))
    order: list[int] = []  # nodes as they leave the heap: the last one is the root
    node = first
    while True:
        one = heap[1]
        _sift(heap, 1, heap.pop())
        other = heap[1]
        order += (one & _NODE, other & _NODE)
        parents[one & _NODE] = parents[other & _NODE] = node
        depth = max(one >> _NODE_BITS & _DEPTH, other >> _NODE_BITS & _DEPTH) + 1
        often = (one >> _KEY_BITS) + (other >> _KEY_BITS)
        _sift(heap, 1, (often << _DEPTH_BITS | depth) << _NODE_BITS | node)
        if len(heap) < 3:
            break
        node += 1
    order.append(node)
    return _limited(order, parents, last, most)


def _sift(heap: list[int], place: int, entry: int) -> None:
    """Puts an entry where it belongs, from `place` on."""
    size = len(heap)
    if place >= size:  # it was the only one
        return
    above = entry
    child = 2 * place
    while child < size:
        lower = heap[child]
        if child + 1 < size:
            beside = heap[child + 1]
            if beside <= lower | _NODE:
                child += 1
                lower = beside
        if above <= lower | _NODE:
            break
        heap[place] = lower
        place = child
        child *= 2
    heap[place] = entry


def _limited(order: list[int], parents: list[int], last: int, most: int) -> list[int]:
    """How deep each leaf lies, none deeper than `most`: zlib's `gen_bitlen`."""
    lengths = [0] * len(parents)
    counts = [0] * (most + 1)
    over = 0
    for node in order[-2::-1]:
        bits = lengths[parents[node]] + 1
        if bits > most:
            bits = most
            over += 1
        lengths[node] = bits
        if node <= last:
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
        leaves = (node for node in order if node <= last)
        for bits in range(most, 0, -1):
            for _ in range(counts[bits]):
                lengths[next(leaves)] = bits
    return lengths[: last + 1]


def codes_of(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """The codes that go with lengths, first bit lowest (RFC 1951 3.2.2)."""
    widths = np.array(lengths, np.int64)
    order = np.argsort(widths, kind="stable")
    order = order[widths[order] > 0]
    spans = 1 << (MOST_BITS - widths[order])
    codes = np.zeros(widths.size, np.int64)
    codes[order] = REVERSED[(np.cumsum(spans) - spans) & (len(REVERSED) - 1)]
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
