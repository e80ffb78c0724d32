"""Entropy coding in plain numpy: many interleaved rANS states ("lanes"), tables that learn as they go.

One numpy call codes one symbol in each lane, so the cost of Python is shared by hundreds of symbols. Each lane works
through a run of its own of neighbouring elements, so that the context of a symbol may use what its lane has just coded;
all lanes share the tables. Tables are not sent: both sides learn them from what was coded before, by the same integer
arithmetic, so a stream decodes to the same bytes on every processor.

A model is a function over a `Coder` that works in both directions: coding, it is given the symbols; decoding, it gets
them. What one side does the other cannot fail to do.

Figures: states of 32 bits, renormalised by 16-bit words; a table's frequencies add up to 2^12 (2^15 for `Bits`).
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from protocol.errors import Reason, Refused

Symbols = npt.NDArray[np.uint8]
Contexts = npt.NDArray[np.intp]
States = npt.NDArray[np.uint32]

STATE_START: Final = 1 << 16  # a state is never below it between two symbols
TABLE_BITS: Final = 12  # a context's slots, 4 KiB of look-up: a hundred contexts stay small
FLAG_BITS: Final = 15  # a flag that is nearly never set costs a few thousandths of a bit
COUNT_STEP: Final = 16  # what one symbol adds to its count: priors of less than one symbol can be said
LEARN_SHARE: Final = 8  # tables are made anew when they have seen one part in so many more
STALE_SHARE: Final = 8  # and a context's slots, when it has
MOST_WAITING: Final = 1 << 15  # symbols that are remembered until then
ENOUGH_LANES: Final = 512  # more of them are hardly faster
MOST_A_LANE: Final = 1 << 10  # symbols of a kind, as long as lanes are fewer
# Of the type of the states: numpy is several times faster when it need not convert.
_TABLE_BITS: Final = np.uint32(TABLE_BITS)
_SLOT_MASK: Final = np.uint32((1 << TABLE_BITS) - 1)
_WORD_BITS: Final = np.uint32(16)
_START: Final = np.uint32(STATE_START)
SLOTS_AT_ONCE: Final = 16  # contexts: what is in memory meanwhile
_READ_BYTES: Final = 8  # hold any 32 bits, wherever in a byte they begin


class Table:
    """Frequencies of `symbols` symbols in each of `contexts` contexts, learnt from what is coded.

    Args:
        contexts: How many.
        symbols: How many, at most 256.
        prior: uint32 [symbols] or [contexts, symbols]: counts to begin with, in units of 1/16 symbol.
        memory: A context's count is halved when it is over this many symbols: small forgets fast.
    """

    bits = TABLE_BITS

    def __init__(self, contexts: int, symbols: int, prior: npt.ArrayLike = 1, memory: int = 1024) -> None:
        self.contexts = contexts
        self.symbols = symbols
        self._counts = np.empty((contexts, symbols), np.int64)
        self._counts[:] = prior
        self._memory = memory * COUNT_STEP
        self._waiting: list[Contexts] = []
        self._waiting_symbols = 0
        self._seen_symbols = 0
        self._news = np.zeros(contexts, np.int64)  # what each context's slots do not know yet
        self._frequency = np.empty((contexts, symbols), np.uint32)
        self._first = np.empty((contexts, symbols), np.uint32)
        self._slots: Symbols | None = None  # of each slot its symbol; a writer needs none
        self._make(np.arange(contexts))

    def read(self, contexts: Contexts, states: States) -> tuple[Symbols, States]:
        """The symbols that states stand for and the states behind them, not yet renormalised; learns the symbols."""
        if self._slots is None:
            self._slots = np.empty((self.contexts, 1 << self.bits), np.uint8)
            self._make_slots(np.arange(self.contexts))
        slots = states & _SLOT_MASK
        place = contexts << self.bits
        place += slots
        symbols: Symbols = self._slots.ravel().take(place)
        cells = contexts * self.symbols
        cells += symbols
        states = states >> _TABLE_BITS
        states *= self._frequency.ravel().take(cells)
        slots -= self._first.ravel().take(cells)
        states += slots
        self._learn(cells)
        return symbols, states

    def ranges(self, contexts: Contexts, symbols: Symbols) -> tuple[States, States]:
        """Frequency and first slot of each symbol, and learns them."""
        cells = contexts * self.symbols + symbols
        ranges = self._frequency.ravel().take(cells), self._first.ravel().take(cells)
        self._learn(cells)
        return ranges

    def _learn(self, cells: Contexts) -> None:
        """Learns symbols in their contexts: `context * symbols + symbol` of each."""
        self._waiting.append(cells)
        self._waiting_symbols += cells.size
        if self._waiting_symbols < min(self._seen_symbols // LEARN_SHARE, MOST_WAITING):
            return
        cells = np.concatenate(self._waiting)
        seen = np.bincount(cells, minlength=self._counts.size).reshape(self._counts.shape)
        self._counts += seen * COUNT_STEP
        self._news += seen.sum(axis=1) * COUNT_STEP
        total = self._counts.sum(axis=1)
        full = total > self._memory
        self._counts[full] = (self._counts[full] + 1) >> 1
        self._seen_symbols += self._waiting_symbols
        self._waiting.clear()
        self._waiting_symbols = 0
        stale = (self._news * STALE_SHARE > total).nonzero()[0]
        self._news[stale] = 0
        self._make(stale)

    def _make(self, touched: Contexts) -> None:
        """Scales counts to frequencies: each symbol keeps at least one slot, the likeliest takes what is left over."""
        counts = self._counts[touched]
        slots = 1 << self.bits
        frequency = 1 + counts * (slots - self.symbols) // counts.sum(axis=1, keepdims=True)
        frequency[np.arange(touched.size), frequency.argmax(axis=1)] += slots - frequency.sum(axis=1)
        self._frequency[touched] = frequency
        self._first[touched] = frequency.cumsum(axis=1) - frequency
        if self._slots is not None:
            self._make_slots(touched)

    def _make_slots(self, touched: Contexts) -> None:
        assert self._slots is not None
        symbols = np.arange(self.symbols, dtype=np.uint8)
        for at in range(0, touched.size, SLOTS_AT_ONCE):
            some = touched[at : at + SLOTS_AT_ONCE]
            slots = np.tile(symbols, some.size).repeat(self._frequency[some].ravel())
            self._slots[some] = slots.reshape(some.size, -1)


class Bits(Table):
    """A table of two symbols. It needs no look-up, so its frequencies are finer and its contexts may be many.

    Args:
        contexts: How many.
        prior: Counts of 0 and 1 to begin with, in units of 1/16 symbol.
        memory: As `Table`.
    """

    bits = FLAG_BITS

    def __init__(self, contexts: int, prior: npt.ArrayLike = 1, memory: int = 1024) -> None:
        super().__init__(contexts, 2, prior, memory)

    def read(self, contexts: Contexts, states: States) -> tuple[Symbols, States]:
        """As `Table`."""
        symbols, states = read_flags(self._frequency[:, 0].take(contexts), states, self.bits)
        self._learn(2 * contexts + symbols)
        return symbols, states


def read_flags(zeros: States, states: States, bits: int) -> tuple[Symbols, States]:
    """The flags that states stand for, when `zeros` of 2^bits slots are those of a 0, and the states behind them."""
    slots = states & np.uint32((1 << bits) - 1)
    flags = slots >= zeros
    wide = flags.astype(np.uint32)
    below = wide * zeros
    # A 1 has the slots that a 0 has not: its frequency is what is left.
    wide <<= np.uint32(bits)
    wide += zeros
    wide -= below
    wide -= below
    states = states >> np.uint32(bits)
    states *= wide
    states += slots
    states -= below
    return flags.view(np.uint8), states


def hold_lanes(lanes: int, symbols: int) -> None:
    """Holds that so many symbols are coded in enough lanes: each step takes as long for one lane as for hundreds.

    Raises:
        Refused: `LIMIT`: they are too few, and decoding would take minutes.
    """
    if lanes < ENOUGH_LANES and symbols >= lanes * MOST_A_LANE:
        raise Refused(Reason.LIMIT, f"{symbols} symbols of entropy code in only {lanes} lanes")


class Coder(Protocol):
    """One direction: `LaneReader` here, the writer in `server.delta`."""

    lanes: int

    def code(
        self, table: Table, contexts: Contexts, symbols: Symbols | None, lanes: npt.NDArray[np.intp] | None = None
    ) -> Symbols:
        """Codes one symbol in each lane.

        Args:
            table: Shared by all lanes.
            contexts: intp [n], n at most `lanes`.
            symbols: uint8 [n] when writing; not looked at when reading.
            lanes: intp [n], ascending: which lanes; the first n by default.

        Returns:
            uint8 [n], the symbols.

        Raises:
            Refused: `LENGTH`: the stream ends too early.
        """
        ...


class PlainBits(Protocol):
    """One direction of numbers that are not worth a table: `BitReader` here, the writer in `server.delta`."""

    def code(
        self, widths: npt.NDArray[np.int64], values: npt.NDArray[np.uint32] | None = None
    ) -> npt.NDArray[np.uint32]:
        """Codes one number a width (int64 [n], in bits); `values` (uint32 [n]) are not looked at when reading."""
        ...


class LaneReader:
    """Decodes what `server.delta.lanes.LaneWriter` wrote.

    Args:
        data: The lanes' states (4 bytes each, little-endian), then the words.
        lanes: How many.
    """

    def __init__(self, data: bytes | memoryview, lanes: int) -> None:
        if len(data) < 4 * lanes or len(data) % 2:
            raise Refused(Reason.LENGTH, f"{len(data)} bytes of entropy code for {lanes} lanes")
        self.lanes = lanes
        self._states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
        self._words = np.frombuffer(data, "<u2", offset=4 * lanes)
        self._next = 0

    def code(
        self,
        table: Table,
        contexts: Contexts,
        symbols: Symbols | None = None,
        lanes: npt.NDArray[np.intp] | None = None,
    ) -> Symbols:
        """As `Coder`."""
        states = self._states[: contexts.size] if lanes is None else self._states[lanes]
        symbols, states = table.read(contexts, states)
        low = (states < _START).nonzero()[0]
        if low.size:
            words = self._words[self._next : self._next + low.size]
            if words.size < low.size:
                raise Refused(Reason.LENGTH, "a stream of entropy code that ends too early")
            self._next += low.size
            refilled = states.take(low)
            refilled <<= _WORD_BITS
            refilled |= words
            states[low] = refilled
        if lanes is None:
            self._states[: contexts.size] = states
        else:
            self._states[lanes] = states
        return symbols

    def finish(self) -> npt.NDArray[np.uint16]:
        """Checks that all was read.

        Returns:
            uint16 [lanes]: what the writer hid in the states that it began with.

        Raises:
            Refused: `LENGTH`.
        """
        hidden = self._states - _START
        if self._next != self._words.size or (hidden >= STATE_START).any():
            raise Refused(Reason.LENGTH, "a stream of entropy code that does not end where it should")
        return hidden.astype(np.uint16)


class BitReader:
    """Numbers of different widths, most significant bit first, that nothing is known about.

    Args:
        hidden: The first bits, 16 a number: what `LaneReader.finish` gave.
        data: The bits behind them.
    """

    def __init__(self, hidden: npt.NDArray[np.uint16], data: bytes | memoryview) -> None:
        self._hidden = hidden.astype(">u2").tobytes()
        self._data = memoryview(data)
        self._next_bit = 0

    def code(
        self, widths: npt.NDArray[np.int64], values: npt.NDArray[np.uint32] | None = None
    ) -> npt.NDArray[np.uint32]:
        """Reads one number a width, each of at most 32 bits.

        Raises:
            Refused: `LENGTH`: there are no more.
        """
        if not widths.size:
            return np.empty(0, np.uint32)
        ends = np.cumsum(widths)
        ends += self._next_bit & 7
        first_byte = self._next_bit >> 3
        data = self._bytes(first_byte, first_byte + (int(ends[-1]) + 7 >> 3))
        self._next_bit = 8 * first_byte + int(ends[-1])
        ends -= widths
        # Eight bytes from each number's first one on: it is at their top, behind what is before it in that byte.
        value = sliding_window_view(data, _READ_BYTES).take(ends >> 3, axis=0).view(">u8").ravel().astype(np.uint64)
        value <<= (ends & 7).view(np.uint64)
        value >>= np.uint64(32)
        value >>= (32 - widths).view(np.uint64)
        return value.astype(np.uint32)

    def _bytes(self, start: int, end: int) -> npt.NDArray[np.uint8]:
        """A range of the hidden bits and those behind them, with as much behind it as the last number may touch."""
        behind = len(self._hidden)
        if end > behind + len(self._data):
            raise Refused(Reason.LENGTH, "a stream with too few bits")
        parts = self._hidden[start:end], self._data[max(start - behind, 0) : max(end - behind, 0)], bytes(_READ_BYTES)
        return np.frombuffer(b"".join(parts), np.uint8)
