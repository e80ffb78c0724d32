"""What a search for covers may take, and how it tells how far it is."""

from collections.abc import Callable
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MatchLimits:
    """Bounds of one search. When one is reached the covers found until then are returned: never wrong, only fewer.

    Attributes:
        seconds: Wall time. It is looked at between batches; what was found then still settles, which takes about a
            second for each 16 MiB of the window.
        index_bytes: Memory of the index over the old bytes (8 bytes for each indexed position). An old buffer of more
            than `index_bytes / 8` bytes is sampled: then only longer runs are found away from their neighbours.
        window_bytes: New bytes that are worked on at a time: about four bytes of memory each. Beside the index and the
            window a search keeps about 64 MiB of scratch and some 100 bytes for each cover.
    """

    seconds: float = 600.0
    index_bytes: int = 512 * MIB
    window_bytes: int = 16 * MIB


class Budget:
    """The time that is left, and the place that progress is told to.

    Args:
        seconds: How long the work may take.
        progress: Called with the share that is done, 0 to 1, never falling.
        clock: Seconds that only grow.
    """

    def __init__(self, seconds: float, progress: Callable[[float], None] | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._progress = progress
        self._told = 0.0

    def spent(self) -> bool:
        """Whether the time is over."""
        return self._clock() >= self._end

    def tell(self, share: float) -> None:
        """Tells the share of the work that is done."""
        if self._progress is not None and share > self._told:
            self._told = min(share, 1.0)
            self._progress(self._told)
