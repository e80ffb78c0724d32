"""Latencies: the last so many, and their percentiles."""

import math
from collections import deque
from collections.abc import Iterable

_KEPT = 512  # of the last inferences: minutes of a camera, so that a verdict looks at now


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that `percent` of all values do not exceed (nearest rank); 0 when there is none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100.0) - 1)]


class Latencies:
    """The last values, in milliseconds."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._values: deque[float] = deque(maxlen=kept)

    def add(self, value_ms: float) -> None:
        """Keeps one more, and forgets the oldest when there are too many."""
        self._values.append(value_ms)

    def percentile(self, percent: float) -> float:
        """Of the kept values, nearest rank; 0 when there is none."""
        return percentile(self._values, percent)

    @property
    def last(self) -> float:
        """The newest; 0 when there is none."""
        return self._values[-1] if self._values else 0.0

    def __len__(self) -> int:
        return len(self._values)
