"""The two buffers, as bytes and as words, and what their bytes cost."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.delta.matching.ranges import Bytes, Flags, Ints
from server.delta.matching.weights import Weights, first_weights

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Buffers:
    """Old and new bytes. Words are the eight bytes from every place as one number: an unaligned view, not a copy."""

    old: Bytes
    new: Bytes
    old_words: Words
    new_words: Words
    weights: Weights

    def same(self, source: Ints, place: Ints, k: int) -> Flags:
        """Whether k bytes (8 or more) of the old and the new are equal. An old place outside of them is not."""
        inside = (source >= 0) & (source <= len(self.old) - k)
        safe = np.where(inside, source, 0)
        for offset in offsets(k):
            inside &= self.old_words[offset:][safe] == self.new_words[offset:][place]
        return inside


def buffers(
    old: bytes | bytearray | memoryview, new: bytes | bytearray | memoryview, literal_share: float = 1.0
) -> Buffers:
    """Views of two contiguous buffers, without copying. `literal_share` is that of `find_covers`."""
    old_bytes, new_bytes = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    return Buffers(old_bytes, new_bytes, words(old_bytes), words(new_bytes), first_weights(new_bytes, literal_share))


def offsets(k: int) -> list[int]:
    """Where the 8-byte words lie that together cover k bytes."""
    return sorted({*range(0, k - 7, 8), k - 8})


def words(data: Bytes) -> Words:
    """The words of the bytes."""
    return np.ndarray((max(0, len(data) - 7),), np.dtype("<u8"), data, 0, (1,))
