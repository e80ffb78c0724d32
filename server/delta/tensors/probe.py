"""Compares samples of two files, a bounded number of times."""

from server.delta.tensors import cost
from server.delta.tensors.found import Element
from server.delta.tensors.shift import find_shift

MAX_PROBES = 20_000  # sampled comparisons: some five seconds
MAX_SEARCHES = 64  # for weights that moved: some three seconds


class Probes:
    """What is left of the time for one pair of files.

    Args:
        old: The base.
        new: The result.
    """

    def __init__(self, old: memoryview, new: memoryview) -> None:
        self._old, self._new = old, new
        self._probes = MAX_PROBES
        self._searches = MAX_SEARCHES

    @property
    def spent(self) -> bool:
        """True when no comparison is left."""
        return self._probes <= 0

    def alone(self, at: int, length_bytes: int, element: Element) -> tuple[cost.Words, float]:
        """The sampled elements of a span of the new file, and the bits for each of them alone."""
        sampled = cost.words(self._new, at, length_bytes, element)
        return sampled, cost.solo_bits(sampled, element)

    def against(self, sampled: cost.Words, old_at: int, length_bytes: int, element: Element) -> float:
        """The bits for each sampled element as a difference from a span of the old file."""
        self._probes -= 1
        return cost.delta_bits(cost.words(self._old, old_at, length_bytes, element), sampled, element)

    def search(self, at: int, around: int, element: Element) -> int | None:
        """See `find_shift`. A search that finds nothing counts; None also when too many did."""
        if self._searches <= 0:
            return None
        found = find_shift(self._old, around, self._new, at, element)
        self._searches -= found is None
        return found
