"""Streams of 8-bit integers that are made from those of the base: quantised weights.

Most do not change, a few move by one. What tells them apart is how the matrix moved as a whole (`lowrank`, in eighths
of a unit, for the change before rounding), how much its neighbours changed, and the old value.

| part | bytes |
|---|---|
| form | 1: lanes are 2^(low four bits) |
| lengths | LEB128 of shapes and factor bits |
| shapes | numbers of `lowrank.code_shapes`; a shift is at least 0 |
| factor bits | plain bits of the factors |
| words | the rest: what `lanes.LaneReader` reads, factors first |
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.floats import LANES_BITS, code_factors
from protocol.delta.lanes import BitReader, Coder, LaneReader, Table
from protocol.delta.lowrank import Change, code_shapes
from protocol.delta.numbers import NumberReader
from protocol.delta.patch import read_varint
from protocol.delta.residuals import rows_of
from protocol.errors import Reason, Refused

Bytes = npt.NDArray[np.uint8]

PHASE_BITS: Final = 3  # a change is expected in eighths
PHASES: Final = 1 << PHASE_BITS
SYMBOLS: Final = 32  # 0, -1, 1, -2, ... from the expected change; the last one says that the rest follows
RESTS: Final = 256 - (SYMBOLS - 1)
RUN_SHIFT: Final = 4  # the running mean of the magnitudes moves by a sixteenth of the way
RUN_UNIT: Final = 64
LEVELS: Final = np.array(
    [0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 8, 8] + [9] * 30,
    np.int16,
)
"""What contexts tell apart of the mean magnitude, in eighths."""
OLD_VALUES: Final = np.repeat(np.arange(5, dtype=np.int16), [64, 56, 16, 56, 64])
"""What contexts tell apart of the old value, from -128 up."""
WINDOW: Final = 1 << 16


def open_integers(coded: memoryview, length_bytes: int, references: Iterable[bytes]) -> bytes:
    """Decodes a stream.

    Args:
        coded: The stream.
        length_bytes: What it must give: as much as its references.
        references: The old integers.

    Raises:
        Refused: `LENGTH`, `LIMIT`, `METADATA`.
    """
    head = bytes(coded[:19])
    try:
        shapes_bytes, at = read_varint(head, 1)
        factor_bytes, at = read_varint(head, at)
    except IndexError:
        raise Refused(Reason.LENGTH, "a stream of integers that ends in its head") from None
    middle = at + shapes_bytes
    end = middle + factor_bytes
    if head[0] > LANES_BITS or end > len(coded):
        raise Refused(Reason.METADATA, "a stream of integers with a form or a length that cannot be")
    coder = LaneReader(coded[end:], 1 << head[0])
    changes = code_shapes(NumberReader(bytes(coded[at:middle])), length_bytes)
    changes = code_factors(coder, BitReader(np.empty(0, np.uint16), coded[middle:end]), changes, None)
    old = np.frombuffer(b"".join(references), np.uint8)
    if old.size != length_bytes:
        raise Refused(Reason.LENGTH, "a stream of integers that is not as long as what it is made from")
    new = code_integers(coder, old, changes)
    coder.finish()
    return new.tobytes()


def code_integers(coder: Coder, old: Bytes, changes: list[Change], given: Bytes | None = None) -> Bytes:
    """Codes the new bytes, each in the context of what its lane has just seen.

    Args:
        coder: One direction. Lane j works through the j-th run of equally many neighbours.
        old: uint8 [n].
        changes: With their factors.
        given: uint8 [n], the new bytes, when writing.
    """
    count = old.size
    steps = -(-count // coder.lanes)
    lanes = -(-count // max(steps, 1))
    whole, phase = expectations(count, changes)
    base = (old + whole.view(np.uint8)).astype(np.uint8)
    phase_rows = rows_of(phase, lanes, steps)
    old_rows = rows_of(old, lanes, steps)
    given_rows = None
    if given is not None:
        difference = (given - base).view(np.int8).astype(np.int16)
        given_rows = rows_of(
            np.where(difference < 0, -2 * difference - 1, 2 * difference).astype(np.uint8), lanes, steps
        )
    rows = np.zeros((steps, lanes), np.uint8)
    prior = 1 + (64 >> np.minimum(np.arange(SYMBOLS), 6))
    table = Table(PHASES * 10 * 5, SYMBOLS, prior)
    rest_table = Table(1, RESTS)
    mean = np.zeros(lanes, np.int16)
    for step in range(steps):
        # Only the last lane may be shorter than the others.
        active = lanes if (lanes - 1) * steps + step < count else lanes - 1
        now = mean[:active]
        level = LEVELS[np.minimum(now >> 3, LEVELS.size - 1)]
        value = OLD_VALUES[old_rows[step, :active] ^ 0x80]
        contexts = ((phase_rows[step, :active] * np.int16(10) + level) * np.int16(5) + value).astype(np.intp)
        symbols = None
        if given_rows is not None:
            symbols = np.minimum(given_rows[step, :active], SYMBOLS - 1)
        symbols = coder.code(table, contexts, symbols)
        far = (symbols == SYMBOLS - 1).nonzero()[0]
        if far.size:
            rest = given_rows[step, far] - np.uint8(SYMBOLS - 1) if given_rows is not None else None
            symbols = symbols.copy()
            symbols[far] += coder.code(rest_table, np.zeros(far.size, np.intp), rest, far)
        rows[step, :active] = symbols
        magnitude = np.minimum((symbols.astype(np.int16) + 1) >> 1, 63) * np.int16(RUN_UNIT)
        now += (magnitude - now) >> RUN_SHIFT
    zigzag = rows.T.ravel()[:count]
    difference8 = (zigzag >> 1) ^ (np.uint8(0) - (zigzag & np.uint8(1)))
    return np.asarray(base + difference8, np.uint8)


def expectations(count: int, changes: list[Change]) -> tuple[npt.NDArray[np.int8], Bytes]:
    """The expected change of each element: whole units, and the eighths beside them (4 is none)."""
    whole = np.zeros(count, np.int8)
    phase = np.full(count, PHASES // 2, np.uint8)
    for change in changes:
        for first in range(0, change.rows * change.columns, WINDOW):
            size = min(WINDOW, change.rows * change.columns - first)
            units = change.units(first, size)
            drop = min(max(change.shift - PHASE_BITS, 0), 62)
            eighths = np.minimum(np.maximum(units + ((1 << drop) >> 1) >> drop, -1016), 1016) + PHASES // 2
            here = slice(change.first + first, change.first + first + size)
            whole[here] = eighths >> PHASE_BITS
            phase[here] = eighths & (PHASES - 1)
    return whole, phase
