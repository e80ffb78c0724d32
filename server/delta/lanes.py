"""The writing side of `protocol.delta.lanes`."""

from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.lanes import STATE_START, Contexts, Symbols, Table

LANES_BITS: Final = 9  # fewer decode too slowly, more begin with too many unlearnt symbols
ELEMENTS_A_LANE: Final = 256
FEW_ELEMENTS: Final = 1 << 14  # decode in no time: here it is the lanes that cost, three bytes each
FEW_A_LANE: Final = 1024
BYTES_A_LANE: Final = 256
MORE_LANES: Final = ((11, 800_000), (10, 160_000))  # of streams that take so many bytes: beside them lanes are little
LEAST_A_LANE: Final = 600  # elements, there


def lanes_for(count: int, coded_bytes: int) -> int:
    """The binary logarithm of how many lanes elements are coded in.

    Args:
        count: Of the elements.
        coded_bytes: About what they take.
    """
    for bits, least in MORE_LANES:
        if coded_bytes >= least and count >> bits >= LEAST_A_LANE:
            return bits
    lanes = count // ELEMENTS_A_LANE
    if count < FEW_ELEMENTS:
        lanes = min(lanes, max(count // FEW_A_LANE, coded_bytes // BYTES_A_LANE))
    return min(LANES_BITS, lanes.bit_length())


def bytes_alone(symbols: Symbols) -> int:
    """About what symbols take when nothing is known of their neighbours."""
    counts = np.bincount(symbols, minlength=1).astype(np.float64)
    return int((counts * np.log2(max(symbols.size, 1) / np.maximum(counts, 1))).sum()) // 8


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

    def finish(self, hidden: npt.NDArray[np.uint16]) -> bytes:
        """The states and the words, as `LaneReader` takes them.

        Args:
            hidden: uint16 [lanes]: travels for nothing in the states to begin with; `LaneReader.finish` gives it.
        """
        states = hidden.astype(np.uint64) + np.uint64(STATE_START)
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


class BitWriter:
    """The writing side of `BitReader`."""

    def __init__(self) -> None:
        self._bits: list[npt.NDArray[np.uint8]] = []

    def code(
        self, widths: npt.NDArray[np.int64], values: npt.NDArray[np.uint32] | None = None
    ) -> npt.NDArray[np.uint32]:
        """As `PlainBits`."""
        assert values is not None
        starts = np.cumsum(widths) - widths
        bits = np.zeros(int(widths.sum()), np.uint8)
        for place in range(int(widths.max(initial=0))):
            wide = np.flatnonzero(widths > place)
            bits[starts[wide] + widths[wide] - 1 - place] = (values[wide] >> np.uint32(place)) & np.uint32(1)
        self._bits.append(bits)
        return values

    def finish(self, lanes: int) -> tuple[npt.NDArray[np.uint16], bytes]:
        """The first bits, to be hidden in the states of so many lanes, and the bytes of the others."""
        bits = np.concatenate(self._bits) if self._bits else np.empty(0, np.uint8)
        first = np.zeros(16 * lanes, np.uint8)
        first[: bits.size] = bits[: first.size]
        hidden = np.frombuffer(np.packbits(first).tobytes(), ">u2").astype(np.uint16)
        return hidden, np.packbits(bits[first.size :]).tobytes()
