"""Codes what is left of a prediction: signed numbers whose magnitudes are alike among neighbours.

A number is its size (bit length), its sign, the bits below the highest one. Size, sign and the three highest bits are
coded in the context of what their lane has just seen; the bits below are noise and travel plain.

Each number has an offset: what has to be added to its size to make sizes comparable. For the difference of two floats
that is the exponent: neighbours in a tensor change by similar amounts, which are as many units of the last place as
their exponents say. Then a size is expected to be the lane's running mean minus the offset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.lanes import Bits, Coder, Contexts, PlainBits, Table
from protocol.delta.runs import Runs

Offsets = npt.NDArray[np.uint8]
Means = npt.NDArray[np.int16]

UNIT: Final = 64  # running means are in so many parts of a bit
UNIT_BITS: Final = 6
SLOW: Final = 4  # a mean moves by 1/2^this of the way
FAST: Final = 2
EXPECTED_ZERO: Final = 16  # contexts for the expected size are in half bits; the first is 8 bits below nothing
EXPECTED_SPARE: Final = 8  # and the last is 4 bits above the largest size
TREND: Final = 3  # the fast mean is below, near or above the slow one
TRENDS: Final = np.arange(TREND)
RATES: Final = [np.array([[min(step, SLOW)], [min(step, FAST)]], np.int16) for step in range(SLOW + 1)]
"""Of both means, by the bit length of the step: a lane that begins elsewhere learns from what it first sees."""
TOP_BITS: Final = 3
TILTS: Final = 17  # how far a size is from the expected one, in half bits: the slope within an octave
SIGNS: Final = 8  # the running mean of the signs, in eighths
SIGN_PRIOR: Final = 32
SIGN_VALUES: Final = np.array([127, -128], np.int16)
SIZE_UNITS: Final = np.arange(64, dtype=np.int16) << UNIT_BITS
MOST_PULLS: Final = np.minimum(np.arange(64) << UNIT_BITS + 3, (1 << 15) - 1).astype(np.int16)
"""By how much a size may pull a mean up: eight bits a size."""
BODY_WINDOW: Final = 1 << 13  # elements: what the temporary arrays of the low bits hold
TOP_WINDOW: Final = 1 << 14  # elements whose highest bits are coded together
STRIP: Final = 64  # steps whose numbers are laid out together
BLOCK: Final = 1 << 18  # elements: what the arrays of the sizes hold


@dataclass(frozen=True)
class Sizes:
    """What the tables have to say about each number; the plain bits are missing.

    Args:
        size: uint8 [n]: bit length.
        negative: uint8 [n]: 0 or 1.
        top: uint8 [n]: up to three bits below the highest one, as many as there are.
    """

    size: npt.NDArray[np.uint8]
    negative: npt.NDArray[np.uint8]
    top: npt.NDArray[np.uint8]

    def part(self, block: slice) -> "Sizes":
        """Those of a run of numbers."""
        return Sizes(self.size[block], self.negative[block], self.top[block])


def split(numbers: npt.NDArray[np.int64]) -> Sizes:
    """Takes signed numbers apart."""
    magnitude = np.abs(numbers)
    size = bit_length(magnitude)
    below = np.maximum(size - 1, 0)
    top = (magnitude & ((np.int64(1) << below) - 1)) >> np.maximum(below - TOP_BITS, 0)
    return Sizes(size.astype(np.uint8), (numbers < 0).astype(np.uint8), top.astype(np.uint8))


def bit_length(magnitude: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bit length of numbers below 2^48: exact, for a double holds them."""
    return np.frexp(magnitude.astype(np.float64))[1].astype(np.int64)


def code_sizes(
    coder: Coder, offsets: Offsets, widest: int, first_mean: int, *, learn_signs: bool, given: Sizes | None = None
) -> Sizes:
    """Codes sizes, top bits and, when they are learnt, signs.

    Args:
        coder: One direction. Lane j works through the j-th run of equally many neighbours.
        offsets: uint8 [n]; the sizes overwrite them.
        widest: The largest size there is, at most 33.
        first_mean: What sizes and offsets together are about, in bits, before anything is known; at most 511.
        learn_signs: Whether neighbours tend to have the same sign; else signs travel plain.
        given: When writing.

    Returns:
        All of it; `negative` is zero where signs are not learnt.
    """
    model = SizeModel(coder, widest, first_mean * UNIT)
    none = np.broadcast_to(np.uint8(0), offsets.size)
    # Megabytes are saved by putting the sizes where the offsets were.
    columns = [offsets, *(np.empty(offsets.size, np.uint8) for _ in range(2 if learn_signs else 1))]
    sizes = Sizes(columns[0], columns[2] if learn_signs else none, columns[1])
    for first in range(0, offsets.size, BLOCK):
        block = slice(first, first + BLOCK)
        coded = model.code(offsets[block], learn_signs, given.part(block) if given else None)
        for column, numbers in zip(columns, coded, strict=True):
            column[block] = numbers
    return sizes


class SizeModel:
    """What is learnt over a stream, and where its lanes stand.

    Args:
        coder: One direction.
        widest: The largest size there is.
        first_mean: Of sizes and offsets together, in units, before anything is known.
    """

    def __init__(self, coder: Coder, widest: int, first_mean: int) -> None:
        self._coder = coder
        expected = expected_sizes(widest)
        self._contexts = np.arange(0, expected * TREND, TREND)  # of an expected size; those beyond are as the last ones
        self._size_table = Table(expected * TREND, widest + 1, _size_prior(widest))
        self._sign_table = Bits(SIGNS, SIGN_PRIOR)
        self._top_table = Table(TILTS * TOP_BITS, 1 << TOP_BITS, _top_prior())
        self._means = np.full((2, coder.lanes), first_mean, np.int16)
        self._sign = np.zeros(coder.lanes, np.int16)

    def code(self, offsets: Offsets, learn_signs: bool, given: Sizes | None) -> list[npt.NDArray[np.uint8]]:
        """Codes one block: size, top and, when it is learnt, sign of each number."""
        sizes, contexts = self._code_sizes(offsets, given.size if given else None)
        tops = _code_tops(self._coder, self._top_table, sizes, contexts, given.top if given else None)
        if not learn_signs:
            return [sizes, tops]
        return [sizes, tops, self._code_signs(sizes, given.negative if given else None)]

    def _code_sizes(self, offsets: Offsets, given: Offsets | None) -> tuple[Offsets, Means]:
        """The sizes and their contexts: those that were expected, in half bits, times `TREND`, and the trends."""
        runs = Runs(offsets.size, self._coder.lanes)
        offset_rows = runs.rows(offsets)
        wanted = runs.rows(given) if given is not None else None
        sizes = runs.empty(np.uint8)
        contexts = runs.empty(np.int16)
        for step, active in runs:
            # What numpy takes for a call is what decoding takes: what can be is done for many steps at once.
            row = step % STRIP
            if row == 0:
                strip = offset_rows[step : step + STRIP].astype(np.int16)
                zeros = EXPECTED_ZERO - 2 * strip
                strip <<= UNIT_BITS
            means = self._means[:, :active]
            expected = means[0] >> (UNIT_BITS - 1)
            expected += zeros[row, :active]
            context = self._contexts.take(expected, mode="clip")
            context += trend_of(means[0], means[1])
            contexts[step, :active] = context
            size = self._coder.code(self._size_table, context, wanted[step, :active] if wanted is not None else None)
            sizes[step, :active] = size
            # A zero says that a change was too small to be seen here, not how small: it never pulls a mean up.
            pulls = SIZE_UNITS.take(size) + strip[row, :active] - means
            np.minimum(pulls, MOST_PULLS.take(size), out=pulls)
            pulls >>= RATES[min(step.bit_length(), SLOW)]
            means += pulls
        return runs.column(sizes), runs.column(contexts)

    def _code_signs(self, sizes: Offsets, given: Offsets | None) -> Offsets:
        """The signs of the numbers that have one; a lane works through a run of them."""
        there = sizes.nonzero()[0]
        negatives = np.zeros(sizes.size, np.uint8)
        runs = Runs(there.size, self._coder.lanes)
        wanted = runs.rows(given[there]) if given is not None else None
        signs = runs.empty(np.uint8)
        for step, active in runs:
            bias = self._sign[:active]
            contexts = (bias + 128 >> 5).astype(np.intp)
            negative = self._coder.code(
                self._sign_table, contexts, wanted[step, :active] if wanted is not None else None
            )
            signs[step, :active] = negative
            pull = SIGN_VALUES.take(negative)
            pull -= bias
            pull >>= min(step.bit_length(), SLOW)
            bias += pull
        negatives[there] = runs.column(signs)
        return negatives


def trend_of(mean: Means, quick: Means) -> Contexts:
    """Whether the quick mean is below, near or above the slow one: 0, 1 or 2."""
    trend = quick - mean
    trend += 3 * UNIT
    trend >>= UNIT_BITS + 1
    return TRENDS.take(trend, mode="clip")


def _code_tops(coder: Coder, table: Table, sizes: Offsets, size_contexts: Means, given: Offsets | None) -> Offsets:
    """The bits below the highest one, of all numbers that have some; a lane takes whatever comes next."""
    tops = np.zeros(sizes.size, np.uint8)
    for first in range(0, sizes.size, TOP_WINDOW):
        there = np.flatnonzero(sizes[first : first + TOP_WINDOW] >= 2) + first
        size = sizes[there].astype(np.int16)
        expected = size_contexts[there] // TREND - EXPECTED_ZERO
        tilts = np.minimum(np.maximum(size + size - expected + TILTS // 2, 0), TILTS - 1)
        contexts = ((np.minimum(size, TOP_BITS + 1) - 2) * TILTS + tilts).astype(np.intp)
        want = given[there] if given is not None else None
        tops[there] = code_in_turn(coder, table, contexts, want)
    return tops


def code_in_turn(coder: Coder, table: Table, contexts: Contexts, given: Offsets | None) -> Offsets:
    """Codes symbols whose contexts are known: a lane takes whatever comes next. `given` are they when writing."""
    symbols = np.empty(contexts.size, np.uint8)
    for at in range(0, contexts.size, coder.lanes):
        some = slice(at, at + coder.lanes)
        symbols[some] = coder.code(table, contexts[some], given[some] if given is not None else None)
    return symbols


def code_bodies(
    bits: PlainBits, sizes: Sizes, *, learn_signs: bool, given: npt.NDArray[np.int64] | None = None
) -> Iterator[npt.NDArray[np.int64]]:
    """Codes the bits that are left and puts the numbers together, `BODY_WINDOW` at a time.

    Args:
        bits: One direction.
        sizes: From `code_sizes`.
        learn_signs: As it was there.
        given: int64 [n], the numbers, when writing.
    """
    for first in range(0, sizes.size.size, BODY_WINDOW):
        window = slice(first, first + BODY_WINDOW)
        size = sizes.size[window].astype(np.int64)
        plain = np.maximum(size - 1 - TOP_BITS, 0)
        sign_bits = np.zeros_like(size) if learn_signs else np.minimum(size, 1)
        low = None
        if given is not None:
            numbers = given[window]
            low = ((np.abs(numbers) & ((np.int64(1) << plain) - 1)) << sign_bits).astype(np.uint32)
            low |= (numbers < 0) & (sign_bits == 1)
        low = bits.code(plain + sign_bits, low).astype(np.int64)
        negative = sizes.negative[window] == 1 if learn_signs else (low & sign_bits) == 1
        top_width = np.minimum(np.maximum(size - 1, 0), TOP_BITS)
        magnitude = ((np.int64(1) << top_width) | sizes.top[window]) << plain | low >> sign_bits
        magnitude[size == 0] = 0
        yield np.where(negative, -magnitude, magnitude)


def expected_sizes(widest: int) -> int:
    """How many expected sizes contexts tell apart."""
    return EXPECTED_ZERO + 2 * widest + EXPECTED_SPARE


def _size_prior(widest: int) -> npt.NDArray[np.int64]:
    """Sizes near the expected one are likelier."""
    expected = (np.arange(expected_sizes(widest) * TREND) // TREND - EXPECTED_ZERO) >> 1
    distance = np.abs(np.arange(widest + 1)[None, :] - np.maximum(expected, 0)[:, None])
    return np.asarray(1 + (32 >> np.minimum(distance, 6)), np.int64)


def _top_prior() -> npt.NDArray[np.int64]:
    """In the contexts for one and for two bits only two and four symbols occur."""
    prior = np.full((TILTS * TOP_BITS, 1 << TOP_BITS), 16, np.int64)
    for bits in range(1, TOP_BITS):
        prior[(bits - 1) * TILTS : bits * TILTS, 1 << bits :] = 1
    return prior
