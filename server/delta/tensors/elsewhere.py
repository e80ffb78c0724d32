"""Finds parts of tensors that stand unchanged in an old file, but not as a whole: an exporter cut or joined them."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from server.delta.tensors.pairs import Match, Pair

PROBE_BYTES: Final = 32
LEAST_BYTES: Final = 1 << 10  # a shorter copy is not looked for
FIRST_PROBES: Final = 4  # of a tensor, before more of it is looked at
STEPS: Final = 256  # places of a tensor that are looked at then
MOST_OLD_BYTES: Final = 64 << 20  # held in memory
MOST_SEARCHED_BYTES: Final = 2 << 30  # about a second
COMPARED_BYTES: Final = 64 << 10


class Elsewhere:
    """Looks for equal bytes anywhere in the old file.

    Args:
        old: The base.
        new: The result.
    """

    def __init__(self, old: memoryview, new: memoryview) -> None:
        self._old = bytes(old) if len(old) <= MOST_OLD_BYTES else b""
        self._new = new
        self._left = MOST_SEARCHED_BYTES

    def copies(self, pair: Pair) -> Iterator[Pair]:
        """The same span, with what stands unchanged in the old file as copies."""
        start, end = pair.new_offset, pair.new_offset + pair.new_length_bytes
        # Equal elements where a difference is taken anyway cost next to nothing, and cut no matrix.
        taken = pair.old_offset - start if pair.match in (Match.DELTA, Match.WEAK) else None
        found = list(self._runs(start, end, taken)) if self._hopeful(start, end, taken) else []
        width = pair.new.element.width_bytes
        at = start
        for first, last, shift in found:
            # What is left over is still coded by whole elements.
            low, high = first + (start - first) % width, last - (last - start) % width
            if high - low < LEAST_BYTES:
                continue
            if low > at:
                yield _part(pair, at, low)
            yield Pair(pair.new, Match.COPY, low, high - low, None, low + shift, high - low)
            at = high
        if at == start:
            yield pair
        elif at < end:
            yield _part(pair, at, end)

    def _hopeful(self, start: int, end: int, taken: int | None) -> bool:
        step = (end - start) // FIRST_PROBES
        places = [start + step * n + step // 2 for n in range(FIRST_PROBES)]
        return step >= LEAST_BYTES and any(self._find(place, taken) >= 0 for place in places)

    def _find(self, at: int, taken: int | None) -> int:
        probe = bytes(self._new[at : at + PROBE_BYTES])
        if self._left < 0 or len(set(probe)) < PROBE_BYTES // 4:
            return -1
        self._left -= len(self._old)
        found = self._old.find(probe)
        return -1 if taken is not None and found == at + taken else found

    def _runs(self, start: int, end: int, delta: int | None) -> Iterator[tuple[int, int, int]]:
        """Equal runs, in order: from, to, and how much further they stand in the old file."""
        step = max(LEAST_BYTES, (end - start) // STEPS)
        at = taken = start
        while at + PROBE_BYTES <= end:
            found = self._find(at, delta)
            if found < 0:
                at += step
                continue
            shift = found - at
            last = at + self._equal(at, min(end, len(self._old) - shift), shift)
            first = at - self._equal_before(at, max(taken, -shift), shift)
            yield first, last, shift
            at = taken = last

    def _equal(self, at: int, end: int, shift: int) -> int:
        """How many bytes from here on are equal."""
        done = 0
        while at + done < end:
            size = min(COMPARED_BYTES, end - at - done)
            differ = np.flatnonzero(self._both(at + done, size, shift))
            if len(differ):
                return done + int(differ[0])
            done += size
        return done

    def _equal_before(self, at: int, floor: int, shift: int) -> int:
        size = max(0, at - floor)
        differ = np.flatnonzero(self._both(floor, size, shift))
        return size - 1 - int(differ[-1]) if len(differ) else size

    def _both(self, at: int, size: int, shift: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Where the two differ."""
        old = np.frombuffer(self._old, np.uint8, size, at + shift)
        return np.not_equal(np.frombuffer(self._new, np.uint8, size, at), old)


def _part(pair: Pair, start: int, end: int) -> Pair:
    """What is left of a span, explained as before; a cast is not cut."""
    if pair.match in (Match.NONE, Match.CAST) or pair.old_length_bytes != pair.new_length_bytes:
        return Pair(pair.new, Match.NONE, start, end - start, None, 0, 0)
    moved = pair.old_offset + start - pair.new_offset
    return Pair(pair.new, pair.match, start, end - start, pair.old, moved, end - start)
