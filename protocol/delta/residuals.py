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

from protocol.delta.lanes import Bits, Coder, PlainBits, Table

Offsets = npt.NDArray[np.uint8]

UNIT: Final = 16  # running means are in sixteenths of a bit
SLOW: Final = 4  # a mean moves by 1/2^this of the way
FAST: Final = 2
EXPECTED: Final = 96  # contexts for the expected size, in half bits
EXPECTED_ZERO: Final = 16  # the first one is 8 bits below nothing
TREND: Final = 3  # the fast mean is below, near or above the slow one
TOP_BITS: Final = 3
TILTS: Final = 17  # how far a size is from the expected one, in half bits: the slope within an octave
SIGNS: Final = 9  # the running mean of the signs in eighths, and one for zeros
BODY_WINDOW: Final = 1 << 16  # elements: what the temporary arrays of the low bits hold


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


def code_sizes(coder: Coder, offsets: Offsets, widest: int, *, learn_signs: bool, given: Sizes | None = None) -> Sizes:
    """Codes sizes, top bits and, when they are learnt, signs.

    Args:
        coder: One direction. Lane j works through the j-th run of equally many neighbours.
        offsets: uint8 [n].
        widest: The largest size there is, at most 33.
        learn_signs: Whether neighbours tend to have the same sign; else signs travel plain.
        given: When writing.

    Returns:
        All of it; `negative` is zero where signs are not learnt.
    """
    count = offsets.size
    steps = -(-count // coder.lanes)
    lanes = -(-count // max(steps, 1))
    offset_rows = rows_of(offsets, lanes, steps)
    size_rows = rows_of(given.size, lanes, steps) if given else None
    negative_rows = rows_of(given.negative, lanes, steps) if given else None
    sizes = np.zeros((steps, lanes), np.uint8)
    negatives = np.zeros((steps, lanes), np.uint8)
    tilts = np.zeros((steps, lanes), np.uint8)
    size_table = Table(EXPECTED * TREND, widest + 1, _size_prior(widest))
    sign_table = Bits(SIGNS, _sign_prior())
    slow = np.full(lanes, _first_mean(offsets, widest), np.int16)
    fast = slow.copy()
    sign = np.zeros(lanes, np.int16)
    for step in range(steps):
        # Only the last lane may be shorter than the others.
        active = lanes if (lanes - 1) * steps + step < count else lanes - 1
        offset = offset_rows[step, :active].astype(np.int16)
        mean, quick = slow[:active], fast[:active]
        half_bits = (mean >> 3) - (offset << 1)
        expected = np.minimum(np.maximum(half_bits + EXPECTED_ZERO, 0), EXPECTED - 1)
        trend = np.minimum(np.maximum((quick - mean + 3 * UNIT) >> 5, 0), TREND - 1)
        contexts = (expected * TREND + trend).astype(np.intp)
        size8 = coder.code(size_table, contexts, size_rows[step, :active] if size_rows is not None else None)
        sizes[step, :active] = size8
        size = size8.astype(np.int16)
        zero = size8 == 0
        tilts[step, :active] = np.minimum(np.maximum(size + size - half_bits + TILTS // 2, 0), TILTS - 1)
        if learn_signs:
            bias = sign[:active]
            contexts = ((bias + 128) >> 5).astype(np.intp)
            contexts[zero] = SIGNS - 1
            negative = coder.code(
                sign_table, contexts, negative_rows[step, :active] if negative_rows is not None else None
            )
            negatives[step, :active] = negative
            toward = (127 - bias - negative.astype(np.int16) * 255) >> 4
            toward[zero] = 0
            bias += toward
        seen = (size + offset) << 4
        # A zero says that a change was too small to be seen here, not how small.
        np.minimum(seen, mean, out=seen, where=zero)
        mean += (seen - mean) >> SLOW
        quick += (seen - quick) >> FAST
    columns = [rows.T.ravel()[:count] for rows in (sizes, negatives)]
    top = _code_tops(coder, columns[0], tilts.T.ravel()[:count], given.top if given else None)
    return Sizes(columns[0], columns[1], top)


def _code_tops(
    coder: Coder, sizes: npt.NDArray[np.uint8], tilts: npt.NDArray[np.uint8], given: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8]:
    """The bits below the highest one, of all numbers that have some; a lane takes whatever comes next."""
    table = Table(TILTS * TOP_BITS, 1 << TOP_BITS, _top_prior())
    tops = np.zeros(sizes.size, np.uint8)
    for first in range(0, sizes.size, BODY_WINDOW):
        there = np.flatnonzero(sizes[first : first + BODY_WINDOW] >= 2) + first
        contexts = (np.minimum(sizes[there], TOP_BITS + 1).astype(np.intp) - 2) * TILTS + tilts[there]
        for at in range(0, there.size, coder.lanes):
            some = there[at : at + coder.lanes]
            tops[some] = coder.code(table, contexts[at : at + coder.lanes], given[some] if given is not None else None)
    return tops


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


def rows_of(column: npt.NDArray[np.uint8], lanes: int, steps: int) -> npt.NDArray[np.uint8]:
    """What the lanes work on, step by step: uint8 [steps, lanes] from uint8 [n]."""
    padded = np.zeros(lanes * steps, np.uint8)
    padded[: column.size] = column
    return np.ascontiguousarray(padded.reshape(lanes, steps).T)


def _first_mean(offsets: Offsets, widest: int) -> int:
    """Before anything is known: half of the bits change at the usual offset."""
    return (int(offsets.astype(np.int64).sum()) // max(offsets.size, 1) + widest // 2) * UNIT


def _size_prior(widest: int) -> npt.NDArray[np.int64]:
    """Sizes near the expected one are likelier."""
    expected = (np.arange(EXPECTED * TREND) // TREND - EXPECTED_ZERO) >> 1
    distance = np.abs(np.arange(widest + 1)[None, :] - np.maximum(expected, 0)[:, None])
    return np.asarray(1 + (32 >> np.minimum(distance, 6)), np.int64)


def _sign_prior() -> npt.NDArray[np.int64]:
    prior = np.full((SIGNS, 2), 32, np.int64)
    prior[SIGNS - 1] = (1 << 16, 1)  # zeros have no sign; it is coded to keep the lanes in step
    return prior


def _top_prior() -> npt.NDArray[np.int64]:
    """In the contexts for one and for two bits only two and four symbols occur."""
    prior = np.full((TILTS * TOP_BITS, 1 << TOP_BITS), 16, np.int64)
    for bits in range(1, TOP_BITS):
        prior[(bits - 1) * TILTS : bits * TILTS, 1 << bits :] = 1
    return prior
