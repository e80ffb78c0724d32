"""Half-open ranges as pairs of arrays, and how to visit all their positions in batches that fit a processor's cache."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BATCH = 1 << 17  # positions: some MiB of temporary arrays, which stay in the second-level cache for the most part


def positions(starts: Ints, lengths: Ints) -> Ints:
    """Every position of the ranges, one after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    every: Ints = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return every


def batches(lengths: Ints, limit: int = BATCH) -> Iterator[tuple[int, int]]:
    """Slices of consecutive ranges with about `limit` positions each, and at least one range."""
    sums = np.cumsum(lengths)
    first, base = 0, 0
    while first < len(lengths):
        last = max(int(np.searchsorted(sums, base + limit, "right")), first + 1)
        yield first, last
        first, base = last, int(sums[last - 1])


def cut_long(starts: Ints, ends: Ints, limit: int = BATCH) -> tuple[Ints, Ints, Ints]:
    """Cuts ranges so that none is longer than `limit`. Returns starts, ends and the range each comes from."""
    parts = -(-(ends - starts) // limit)
    owner = np.repeat(np.arange(len(starts)), parts)
    first = np.repeat(np.cumsum(parts) - parts, parts)
    cut = starts[owner] + (np.arange(len(owner)) - first) * limit
    return cut, np.minimum(cut + limit, ends[owner]), owner


def join_near(starts: Ints, ends: Ints, near: int) -> tuple[Ints, Ints]:
    """Joins sorted ranges that overlap or lie at most `near` apart."""
    if not len(starts):
        return starts, ends
    ends = np.maximum.accumulate(ends)
    apart = np.flatnonzero(starts[1:] > ends[:-1] + near) + 1
    return np.concatenate([starts[:1], starts[apart]]), np.concatenate([ends[apart - 1], ends[-1:]])
