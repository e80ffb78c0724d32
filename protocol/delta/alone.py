"""Streams of floats that resemble nothing in the base: exponents are alike among neighbours, the rest is noise.

| part | bytes |
|---|---|
| form | 1: lanes are 2^(low four bits) |
| length | LEB128, of the words |
| words | what `lanes.LaneReader` reads: exponents, then the highest bits of the mantissas |
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
from protocol.delta.residuals import BODY_WINDOW, FAST, SLOW, TREND, UNIT, rows_of
from protocol.errors import Reason, Refused

Exponents = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

ABOVE: Final = 10  # an exponent is seldom so far above the mean of its neighbours
SYMBOLS: Final = 40  # distances from there downward, and two more:
NOTHING: Final = SYMBOLS - 2  # a zero, or a number too small for an exponent
STRANGE: Final = SYMBOLS - 1  # any other exponent, which follows by itself
LEVELS: Final = 16  # of the mean, in steps of two, from 2^-23 up
PHASES: Final = 2  # of the mean's fraction
FURTHEST: Final = 6 * UNIT  # what one exponent may pull a mean by: an outlier says little of its neighbours
TOP_BITS: Final = 3
TOP_CONTEXTS: Final = 32
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
    exponents = code_exponents(coder, form, elements(form, length_bytes))
    tops = code_tops(coder, form, exponents)
    bits = BitReader(coder.finish(), coded[at + words_bytes :])
    for words in code_rest(bits, form, exponents, tops):
        yield words.astype(form.word).tobytes()


def code_exponents(coder: Coder, form: FloatForm, count: int, given: Exponents | None = None) -> Exponents:
    """Codes exponent fields, each in the context of those before it in its lane.

    Args:
        coder: One direction. Lane j works through the j-th run of equally many neighbours.
        form: Of the elements.
        count: How many.
        given: uint8 [count] when writing.
    """
    steps = -(-count // coder.lanes)
    lanes = -(-count // max(steps, 1))
    given_rows = rows_of(given, lanes, steps) if given is not None else None
    rows = np.zeros((steps, lanes), np.uint8)
    prior = np.ones(SYMBOLS, np.int64)
    prior[ABOVE - 4 : ABOVE + 12] = 8
    table = Table(PHASES * LEVELS * TREND * 2, SYMBOLS, prior, memory=512)
    strange_table = Table(1, 256)
    slow = np.full(lanes, max(form.bias - 9, 1) * UNIT, np.int16)
    fast = slow.copy()
    nothing_before = np.zeros(lanes, np.int16)
    for step in range(steps):
        # Only the last lane may be shorter than the others.
        active = lanes if (lanes - 1) * steps + step < count else lanes - 1
        mean, quick = slow[:active], fast[:active]
        middle = mean >> 4
        level = np.minimum(np.maximum((middle - (form.bias - 23)) >> 1, 0), LEVELS - 1)
        trend = np.minimum(np.maximum((quick - mean + 3 * UNIT) >> 5, 0), TREND - 1)
        contexts = (((mean >> 3 & 1) * LEVELS + level) * TREND + trend) * 2 + nothing_before[:active]
        symbols = None
        if given_rows is not None:
            exponent = given_rows[step, :active].astype(np.int16)
            distance = middle + ABOVE - exponent
            distance[(distance < 0) | (distance >= NOTHING)] = STRANGE
            distance[exponent == 0] = NOTHING
            symbols = distance.astype(np.uint8)
        symbols = coder.code(table, contexts.astype(np.intp), symbols)
        exponent = np.maximum(middle + ABOVE - symbols, 0)
        nothing = symbols == NOTHING
        exponent[nothing] = 0
        strange = (symbols == STRANGE).nonzero()[0]
        if strange.size:
            found = given_rows[step, strange] if given_rows is not None else None
            exponent[strange] = coder.code(strange_table, np.zeros(strange.size, np.intp), found, strange)
        np.minimum(exponent, form.exponent_mask, out=exponent)
        rows[step, :active] = exponent
        nothing_before[:active] = nothing
        seen = exponent << 4
        for running, rate in ((mean, SLOW), (quick, FAST)):
            pull = np.minimum(np.maximum(seen - running, -FURTHEST), FURTHEST) >> rate
            pull[nothing] = 0
            np.add(running, pull, out=running)
    return rows.T.ravel()[:count]


def code_tops(coder: Coder, form: FloatForm, exponents: Exponents, given: Exponents | None = None) -> Exponents:
    """Codes the highest bits of the mantissas; a lane takes whatever comes next. `given` are they when writing."""
    table = Table(TOP_CONTEXTS, 1 << TOP_BITS, 16)
    tops = np.zeros(exponents.size, np.uint8)
    for at in range(0, exponents.size, coder.lanes):
        some = exponents[at : at + coder.lanes].astype(np.intp)
        contexts = np.minimum(np.maximum(some - (form.bias - 23), 0), TOP_CONTEXTS - 1)
        tops[at : at + some.size] = coder.code(
            table, contexts, given[at : at + some.size] if given is not None else None
        )
    return tops


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
