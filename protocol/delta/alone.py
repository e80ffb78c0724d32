"""Streams of floats that resemble nothing in the base: exponents are alike among neighbours, the rest is noise.

| part | bytes |
|---|---|
| form | 1: lanes are 2^(low four bits) |
| length | LEB128, of the words |
| words | what `lanes.LaneReader` reads: at each step exponents, then the highest bits of their mantissas |
| plain bits | signs and the other bits; the first are hidden in the lanes' states |
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.floats import LANES_BITS, elements
from protocol.delta.lanes import BitReader, Coder, LaneReader, PlainBits, Table, hold_lanes
from protocol.delta.lowrank import FloatForm
from protocol.delta.patch import read_varint
from protocol.delta.residuals import BODY_WINDOW, FAST, SLOW, TREND, UNIT, UNIT_BITS, Means, trend_of
from protocol.delta.runs import Runs
from protocol.errors import Reason, Refused

Exponents = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

ABOVE: Final = 7  # an exponent is seldom so far above the mean of its neighbours
SYMBOLS: Final = 24  # distances from there downward, and two more:
NOTHING: Final = SYMBOLS - 2  # a zero, or a number too small for an exponent
STRANGE: Final = SYMBOLS - 1  # any other exponent, which follows by itself
LEVELS: Final = 32  # of the mean, in half bits; those 16 bits apart share their contexts
MOST_PULL: Final = 6 * UNIT  # of one exponent on a mean: an outlier says little of its neighbours
LEAST_PULL: Final = -UNIT * 3 // 4  # and a number near nothing even less: it may be so by chance
TOP_BITS: Final = 3
TILT_BITS: Final = 1  # what contexts tell apart of how far an exponent is from the mean, in half bits
TILTS: Final = 24
TILTS_BELOW: Final = 16
_HEAD_BYTES: Final = 10


def open_alone(form: FloatForm, coded: memoryview, length_bytes: int) -> Iterator[bytes]:
    """Decodes a stream of floats on their own.

    Args:
        form: Of the elements.
        coded: The stream.
        length_bytes: What it must give.

    Raises:
        Refused: `LENGTH`, `LIMIT`, `METADATA`.
    """
    head = bytes(coded[:_HEAD_BYTES])
    try:
        words_bytes, at = read_varint(head, 1)
    except IndexError:
        raise Refused(Reason.LENGTH, "a stream of floats that ends in its head") from None
    if head[0] > LANES_BITS or at + words_bytes > len(coded):
        raise Refused(Reason.METADATA, "a stream of floats with a form or a length that cannot be")
    coder = LaneReader(coded[at : at + words_bytes], 1 << head[0])
    hold_lanes(coder.lanes, elements(form, length_bytes))
    exponents, tops = code_exponents(coder, form, elements(form, length_bytes))
    bits = BitReader(coder.finish(), coded[at + words_bytes :])
    for words in code_rest(bits, form, exponents, tops):
        yield words.astype(form.word).tobytes()


def code_exponents(
    coder: Coder, form: FloatForm, count: int, given: tuple[Exponents, Exponents] | None = None
) -> tuple[Exponents, Exponents]:
    """Codes exponent fields and the highest bits of mantissas, in the context of what the lane has just seen.

    Args:
        coder: One direction. Lane j works through the j-th run of equally many neighbours.
        form: Of the elements.
        count: How many.
        given: Both, uint8 [count], when writing.
    """
    model = _ExponentModel(coder, form)
    runs = Runs(count, coder.lanes)
    given_rows = [runs.rows(column) for column in given] if given is not None else None
    exponents = runs.empty(np.uint8)
    tops = runs.empty(np.uint8)
    for step, active in runs:
        some = None if given_rows is None else (given_rows[0][step, :active], given_rows[1][step, :active])
        exponents[step, :active], tops[step, :active] = model.code(active, some, step)
    return runs.column(exponents), runs.column(tops)


class _ExponentModel:
    """What is learnt over a stream, and where its lanes stand."""

    def __init__(self, coder: Coder, form: FloatForm) -> None:
        self._coder = coder
        self._form = form
        prior = np.ones(SYMBOLS, np.int64)
        prior[ABOVE - 4 : NOTHING] = 8
        self._table = Table(LEVELS * TREND * 2, SYMBOLS, prior)
        self._strange_table = Table(1, 256)
        self._top_table = Table(TILTS, 1 << TOP_BITS, 16)
        self._slow = np.full(coder.lanes, max(form.bias - 9, 1) * UNIT, np.int16)
        self._fast = self._slow.copy()
        self._nothing = np.zeros(coder.lanes, np.int16)

    def code(self, active: int, given: tuple[Exponents, Exponents] | None, step: int) -> tuple[Means, Exponents]:
        """Codes the exponent and the top of one number in each of the first lanes."""
        mean, quick = self._slow[:active], self._fast[:active]
        contexts = mean >> (UNIT_BITS - 1)
        contexts &= LEVELS - 1
        contexts *= TREND
        contexts += trend_of(mean, quick)
        contexts <<= 1
        contexts += self._nothing[:active]
        exponent = self._code_exponent(mean >> UNIT_BITS, contexts, None if given is None else given[0])
        nothing = exponent == 0
        self._nothing[:active] = nothing
        # Of a number far above its neighbours the highest bits are likely to be small.
        tilts = mean >> (UNIT_BITS - TILT_BITS)
        np.subtract(exponent << TILT_BITS, tilts, out=tilts)
        tilts += TILTS_BELOW
        np.maximum(tilts, 0, out=tilts)
        np.minimum(tilts, TILTS - 1, out=tilts)
        tops = self._coder.code(self._top_table, tilts.astype(np.intp), None if given is None else given[1])
        seen = exponent << UNIT_BITS
        seen += UNIT // 2
        for running, rate in ((mean, SLOW), (quick, FAST)):
            pull = seen - running
            np.maximum(pull, LEAST_PULL, out=pull)
            np.minimum(pull, MOST_PULL, out=pull)
            pull >>= min(step.bit_length(), rate)
            pull[nothing] = 0
            np.add(running, pull, out=running)
        return exponent, tops

    def _code_exponent(self, middle: Means, contexts: Means, want: Exponents | None) -> Means:
        symbols = None
        if want is not None:
            wanted = want.astype(np.int16)
            distance = middle + ABOVE - wanted
            distance[(distance < 0) | (distance >= NOTHING)] = STRANGE
            distance[wanted == 0] = NOTHING
            symbols = distance.astype(np.uint8)
        symbols = self._coder.code(self._table, contexts.astype(np.intp), symbols)
        exponent = middle + ABOVE
        exponent -= symbols
        special = (symbols >= NOTHING).nonzero()[0]
        if special.size:
            exponent[special] = 0
            strange = special[symbols[special] == STRANGE]
            if strange.size:
                found = want[strange] if want is not None else None
                exponent[strange] = self._coder.code(
                    self._strange_table, np.zeros(strange.size, np.intp), found, strange
                )
        np.maximum(exponent, 0, out=exponent)
        np.minimum(exponent, self._form.exponent_mask, out=exponent)
        return exponent


def code_rest(
    bits: PlainBits, form: FloatForm, exponents: Exponents, tops: Exponents, given: Integers | None = None
) -> Iterator[Integers]:
    """Codes signs and low bits and puts the words together, `BODY_WINDOW` at a time; `given` are they when writing."""
    low_bits = form.mantissa - TOP_BITS
    low_mask = (1 << low_bits) - 1
    for first in range(0, exponents.size, BODY_WINDOW):
        window = slice(first, first + BODY_WINDOW)
        exponent = exponents[window].astype(np.int64)
        rest = None
        if given is not None:
            words = given[window]
            rest = ((words & low_mask) << 1 | words >> (form.bits - 1)).astype(np.uint32)
        rest = bits.code(np.full(exponent.size, low_bits + 1, np.int64), rest).astype(np.int64)
        upper = (rest & 1) << (form.bits - 1) | exponent << form.mantissa
        yield upper | tops[window].astype(np.int64) << low_bits | rest >> 1
