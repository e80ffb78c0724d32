"""An index over the short strings (k-mers) of the old bytes: where did these k bytes stand before?

Hash chains as compressors keep them, but filled and walked by whole arrays. Runs of one byte are left out: they match
everywhere, tell nothing, and would fill a chain.
"""

import numpy as np
import numpy.typing as npt

from server.delta.matching.buffers import Words, offsets
from server.delta.matching.ranges import Flags, Ints, batches, cut_long, positions

# Odd constants with well mixed bits (those of xxHash64).
_PRIMES = [
    np.uint64(prime)
    for prime in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
]
# Within a batch only the last place of a repeated string enters its chain, so a chain has one place for each 32 KiB:
# periodic data cannot make it long, and what it skips lies close to what it has.
_CHAIN_BATCH = 1 << 15
_FEW = 16  # of so many old places one new string is looked for: then most old ones need not be kept
_WANTED_BITS = 22


def hashes(data: Words, place: Ints | slice, k: int) -> Words:
    """A 64-bit hash, its high bits the best mixed, of the k bytes (8 or more) from each place."""
    mixed = data[place] * _PRIMES[0]
    for number, offset in enumerate(offsets(k)[1:]):
        mixed ^= mixed >> np.uint64(29)
        mixed *= _PRIMES[3]
        mixed += data[offset:][place] * _PRIMES[1 + number % 2]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _PRIMES[4]
    return mixed


def dull(data: Words, place: Ints | slice) -> Flags:
    """Whether nine equal bytes stand at each place."""
    return np.asarray(data[place] == data[1:][place])


class KmerIndex:
    """Finds old places of k bytes, the latest first.

    Args:
        old: Words of the old bytes.
        k: Length of the strings, from 9.
        most: Places to index at the most; a longer buffer is sampled evenly.
    """

    def __init__(self, old: Words, k: int, most: int) -> None:
        self.k = k
        self._old = old
        count = max(0, len(old) + 8 - k)
        self.stride = max(1, -(-count // max(1, most)))
        entries = -(-count // self.stride)
        # A chain's head holds an entry, counted from one, and above it a few more bits of the hash: most strings that
        # are not there are known by them, without a look at the old bytes, which is a cache miss.
        self._entry_bits = max(10, (entries + 1).bit_length())
        if self._entry_bits > 31:
            raise ValueError("an index has at most 2^31 entries")
        self._tag_bits = 32 - self._entry_bits
        self._slot_bits = self._entry_bits - 1
        self._head = np.zeros(1 << self._slot_bits, np.uint32)
        self._before = np.zeros(entries + 1, np.uint32)
        self._wanted: npt.NDArray[np.bool_] | None = None
        self._filled = 0
        self._count = count

    def want(self, new: Words, start: Ints, end: Ints) -> None:
        """Leaves out what no string from these ranges of the new bytes can be, where they are few.

        Args:
            new: Words of the new bytes.
            start: Where ranges begin.
            end: Where they end, at most the last place of k bytes.
        """
        count = int((end - start).sum())
        if count * _FEW > self._count:
            return
        self._wanted = np.zeros(1 << _WANTED_BITS, bool)
        cut_start, cut_end, _ = cut_long(start, end)
        for i, j in batches(cut_end - cut_start):
            place = positions(cut_start[i:j], cut_end[i:j] - cut_start[i:j])
            self._wanted[hashes(new, place, self.k) >> np.uint64(64 - _WANTED_BITS)] = True

    def fill(self) -> bool:
        """Indexes some more places. Returns False when all are."""
        step = self.stride
        if self._filled >= self._count:
            return False
        stop = min(self._filled + _CHAIN_BATCH * step, self._count)
        span = slice(self._filled, stop, step)
        entry = np.arange(self._filled // step, -(-stop // step), dtype=np.uint32) + np.uint32(1)
        telling = ~dull(self._old, span)
        mixed = hashes(self._old, span, self.k)
        if self._wanted is not None:
            telling &= self._wanted.take((mixed >> np.uint64(64 - _WANTED_BITS)).view(np.int64))
        entry = entry[telling]
        slot, tag = self._slots(mixed[telling])
        self._before[entry] = self._head[slot]
        self._head[slot] = entry | tag << np.uint32(self._entry_bits)
        self._filled += _CHAIN_BATCH * step
        return True

    def latest(self, new: Words, place: Ints) -> Ints:
        """The latest entry that may hold the k bytes at each place; 0 where there is surely none."""
        slot, tag = self._slots(hashes(new, place, self.k))
        head = self._head[slot]
        head[head >> np.uint32(self._entry_bits) != tag] = 0
        return self._entries(head)

    def newest(self, new: Words, place: Ints) -> Ints:
        """The end of the chain in which the k bytes at each place would be; 0 where it is empty."""
        return self._entries(self._head[self._slots(hashes(new, place, self.k))[0]])

    def earlier(self, entry: Ints) -> Ints:
        """The entry before each in its chain; 0 at a chain's end."""
        return self._entries(self._before[entry])

    def place(self, entry: Ints) -> Ints:
        """Old place of an entry; negative for 0."""
        return (entry - 1) * self.stride

    def _entries(self, packed: npt.NDArray[np.uint32]) -> Ints:
        return (packed & np.uint32((1 << self._entry_bits) - 1)).astype(np.int64)

    def _slots(self, mixed: Words) -> tuple[Ints, npt.NDArray[np.uint32]]:
        high = mixed >> np.uint64(64 - self._slot_bits - self._tag_bits)
        tag = high.astype(np.uint32) & np.uint32((1 << self._tag_bits) - 1)
        return (high >> np.uint64(self._tag_bits)).astype(np.int64), tag
