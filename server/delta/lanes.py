"""The writing side of `protocol.delta.lanes`."""

import numpy as np
import numpy.typing as npt

from protocol.delta.lanes import STATE_START, Contexts, Symbols, Table


class LaneWriter:
    """Notes what a model codes, forward as the reader will read it; the states run backward in `finish`.

    Args:
        lanes: How many.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._calls: list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.intp] | None, int]] = []

    def code(
        self, table: Table, contexts: Contexts, symbols: Symbols | None, lanes: npt.NDArray[np.intp] | None = None
    ) -> Symbols:
        """As `Coder`."""
        assert symbols is not None
        frequency, first = table.ranges(contexts, symbols)
        self._calls.append((frequency.astype(np.uint16), first.astype(np.uint16), lanes, table.bits))
        return symbols

    def finish(self) -> bytes:
        """The states and the words, as `LaneReader` takes them."""
        states = np.full(self.lanes, STATE_START, np.uint64)
        words: list[npt.NDArray[np.uint16]] = []
        for frequency16, first, lanes, bits in reversed(self._calls):
            frequency = frequency16.astype(np.uint64)
            where = slice(frequency.size) if lanes is None else lanes
            now = states[where]
            full = now >= frequency << np.uint64(32 - bits)
            words.append((now[full] & np.uint64(0xFFFF)).astype("<u2"))
            now = np.where(full, now >> np.uint64(16), now)
            quotient = now // frequency
            states[where] = (quotient << np.uint64(bits)) + (now - quotient * frequency) + first
        tail = np.concatenate(words[::-1]) if words else np.empty(0, "<u2")
        return states.astype("<u4").tobytes() + tail.astype("<u2").tobytes()


def pack_bits(values: npt.NDArray[np.uint32], widths: npt.NDArray[np.int64]) -> bytes:
    """Writes numbers of different widths, most significant bit first, as `unpack_bits` reads them."""
    starts = np.cumsum(widths) - widths
    bits = np.zeros(int(widths.sum()), np.uint8)
    for place in range(int(widths.max(initial=0))):
        wide = np.flatnonzero(widths > place)
        bits[starts[wide] + widths[wide] - 1 - place] = (values[wide] >> np.uint32(place)) & np.uint32(1)
    return np.packbits(bits).tobytes()
