"""Streams of 8-bit integers that are made from those of the base: quantised weights.

Most do not change, a few move by one. What tells them apart is how the matrix moved as a whole (`lowrank`, in eighths
of a unit, for the change before rounding), how much its neighbours changed, and the old value.

| part | bytes |
|---|---|
| form | 1: lanes are 2^(low four bits); bit 4: most do not change; bit 5: most change by much |
| lengths | LEB128 of shapes and factor bits |
| shapes | numbers of `lowrank.code_shapes`; a shift is at least 0 |
| factor bits | plain bits of the factors |
| words | the rest: what `lanes.LaneReader` reads, factors first |
"""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.floats import LANES_BITS, code_factors
from protocol.delta.lanes import BitReader, Bits, Coder, Contexts, LaneReader, Table, hold_lanes
from protocol.delta.lowrank import Change, code_shapes
from protocol.delta.numbers import NumberReader
from protocol.delta.patch import read_varint
from protocol.delta.residuals import UNIT, SizeModel, Sizes, code_bodies, split
from protocol.delta.runs import Runs
from protocol.errors import Reason, Refused

Bytes = npt.NDArray[np.uint8]
Signed = npt.NDArray[np.int8]

QUIET: Final = 16
LOUD: Final = 32

PHASE_BITS: Final = 3  # a change is expected in eighths
PHASES: Final = 1 << PHASE_BITS
SYMBOLS: Final = 32  # 0, -1, 1, -2, ... from the expected change; the last one says that the rest follows
RESTS: Final = 256 - (SYMBOLS - 1)
RUN_SHIFT: Final = 4  # the running mean of the magnitudes moves by a sixteenth of the way, at first by more
RUN_UNIT: Final = 64
LEVELS_TOLD: Final = 10
OLD_VALUES_TOLD: Final = 5
LEVELS: Final = OLD_VALUES_TOLD * np.repeat(np.arange(LEVELS_TOLD), [1, 1, 2, 2, 3, 4, 6, 7, 8, 471])
"""What contexts tell apart of the mean magnitude, in eighths."""
OLD_VALUES: Final = np.repeat(np.arange(OLD_VALUES_TOLD, dtype=np.int16), [64, 56, 16, 56, 64])
"""What contexts tell apart of the old value, from -128 up."""
MAGNITUDES: Final = np.minimum(np.arange(1, 257, dtype=np.int16) >> 1, 63) * np.int16(RUN_UNIT)
"""What the running mean takes a symbol for."""
CHANGED: Final = np.array([0, (1 << 14) - 1], np.int16)
"""What the running share of changed elements takes no change and a change for; it moves by a 32nd of the way."""
SHARE_SHIFT: Final = 5
SHARE_DROP: Final = 5
SHARES: Final = OLD_VALUES_TOLD * np.frexp(np.arange(1 << 14 - SHARE_DROP))[1].astype(np.intp)
"""What contexts tell apart of that share: the bit length of its 512ths."""
CONTEXTS: Final = PHASES * LEVELS_TOLD * OLD_VALUES_TOLD
PLAIN_BITS: Final = 4  # a size of eight bits less its highest one and the three with a context
WINDOW: Final = 1 << 14
BLOCK: Final = 1 << 18


def open_integers(coded: memoryview, length_bytes: int, references: Iterable[bytes]) -> Iterator[bytes]:
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
    form = head[0]
    if form & ~(15 | QUIET | LOUD) or form & 15 > LANES_BITS or end > len(coded):
        raise Refused(Reason.METADATA, "a stream of integers with a form or a length that cannot be")
    coder = LaneReader(coded[end:], 1 << (form & 15))
    hold_lanes(coder.lanes, length_bytes)
    changes = code_shapes(NumberReader(bytes(coded[at:middle])), length_bytes)
    changes = code_factors(coder, BitReader(np.empty(0, np.uint16), coded[middle:end]), changes, None)
    model = BySize(coder) if form & LOUD else ByValue(coder, quiet=bool(form & QUIET))
    for first, old in blocks(references):
        yield code_block(model, old, first, changes).tobytes()
    coder.finish()


def blocks(references: Iterable[bytes]) -> Iterator[tuple[int, Bytes]]:
    """Bytes in runs of `BLOCK`, each with where it begins."""
    held = bytearray()
    first = 0
    for piece in references:
        held += piece
        while len(held) >= BLOCK:
            yield first, np.frombuffer(bytes(held[:BLOCK]), np.uint8)
            del held[:BLOCK]
            first += BLOCK
    if held:
        yield first, np.frombuffer(bytes(held), np.uint8)


def code_block(
    model: "BySize | ByValue", old: Bytes, first: int, changes: list[Change], given: Bytes | None = None
) -> Bytes:
    """Codes a run of new bytes.

    Args:
        model: What is learnt over the stream.
        old: uint8 [n], n at most `BLOCK`.
        first: Where the run begins in the stream.
        changes: All of the stream, with their factors.
        given: uint8 [n], the new bytes, when writing.
    """
    whole, phase = expectations(first, old.size, changes)
    base = (old + whole.view(np.uint8)).astype(np.uint8)
    difference = model.code(old, phase, (given - base).view(np.int8) if given is not None else None)
    return np.asarray(base + difference.view(np.uint8), np.uint8)


class BySize:
    """Differences by their size: when they are too many and too different to be learnt apart.

    Args:
        coder: One direction.
    """

    def __init__(self, coder: Coder) -> None:
        self._sizes = SizeModel(coder, 8, 4 * UNIT)
        self._bits = _TableBits(coder)

    def code(self, old: Bytes, phase: Bytes, given: Signed | None) -> Signed:
        """Codes a run of differences: int8 [n]; `given` when writing."""
        wide = given.astype(np.int64) if given is not None else None
        sizes = split(wide) if wide is not None else None
        size, top, negative = self._sizes.code(np.zeros(old.size, np.uint8), True, sizes)
        bodies = code_bodies(self._bits, Sizes(size, negative, top), learn_signs=True, given=wide)
        return np.concatenate(list(bodies)).astype(np.int8)


class _TableBits:
    """The few bits below those that have a context, as symbols: there is no other stream for them."""

    def __init__(self, coder: Coder) -> None:
        self._coder = coder
        self._table = Table(PLAIN_BITS + 1, 1 << PLAIN_BITS)

    def code(
        self, widths: npt.NDArray[np.int64], values: npt.NDArray[np.uint32] | None = None
    ) -> npt.NDArray[np.uint32]:
        numbers = np.zeros(widths.size, np.uint32)
        there = np.flatnonzero(widths)
        for at in range(0, there.size, self._coder.lanes):
            some = there[at : at + self._coder.lanes]
            given = values[some].astype(np.uint8) if values is not None else None
            numbers[some] = self._coder.code(self._table, widths[some].astype(np.intp), given)
        return numbers


class ByValue:
    """Each difference in the context of what its lane has just seen, of the old value and of what is expected.

    Args:
        coder: One direction. Lane j works through the j-th part of each run.
        quiet: Whether to say first which have changed: quicker and finer, when hardly any have.
    """

    def __init__(self, coder: Coder, *, quiet: bool) -> None:
        self._coder = coder
        self._quiet = quiet
        self._table = Table(CONTEXTS, SYMBOLS, 1 + (64 >> np.minimum(np.arange(SYMBOLS), 6)))
        self._changed = Bits(CONTEXTS, (64, 8), memory=1 << 14)
        self._rests = Table(1, RESTS)
        self._mean = np.zeros(coder.lanes, np.int16)
        self._share = np.zeros(coder.lanes, np.int16)

    def code(self, old: Bytes, phase: Bytes, given: Signed | None) -> Signed:
        """Codes a run of differences: int8 [n]; `given` when writing."""
        known = phase * np.int16(LEVELS_TOLD * OLD_VALUES_TOLD) + OLD_VALUES[old ^ 0x80]
        zigzag = None
        if given is not None:
            wide = given.astype(np.int16)
            zigzag = np.where(wide < 0, -2 * wide - 1, 2 * wide).astype(np.uint8)
        if self._quiet:
            there = self._code_changed(known, np.minimum(zigzag, 1) if zigzag is not None else None).nonzero()[0]
            values = self._code_values(known[there], zigzag[there] - 1 if zigzag is not None else None)
            zigzag = np.zeros(old.size, np.uint8)
            zigzag[there] = values + 1
        else:
            zigzag = self._code_values(known, zigzag)
        return np.asarray((zigzag >> 1) ^ (np.uint8(0) - (zigzag & np.uint8(1))), np.uint8).view(np.int8)

    def _code_changed(self, known: npt.NDArray[np.int16], given: Bytes | None) -> Bytes:
        """Which have changed, in the context of how many have."""
        runs = Runs(known.size, self._coder.lanes)
        known_rows = runs.rows(known)
        wanted = runs.rows(given) if given is not None else None
        flags = runs.empty(np.uint8)
        for step, active in runs:
            share = self._share[:active]
            contexts = SHARES.take(share >> SHARE_DROP)
            contexts += known_rows[step, :active]
            flag = self._coder.code(self._changed, contexts, wanted[step, :active] if wanted is not None else None)
            flags[step, :active] = flag
            pull = CHANGED.take(flag)
            pull -= share
            pull >>= min(step.bit_length(), SHARE_SHIFT)
            share += pull
        return runs.column(flags)

    def _code_values(self, known: npt.NDArray[np.int16], given: Bytes | None) -> Bytes:
        """Values from 0 up, in the context of how large they are about."""
        runs = Runs(known.size, self._coder.lanes)
        known_rows = runs.rows(known)
        wanted = runs.rows(given) if given is not None else None
        values = runs.empty(np.uint8)
        for step, active in runs:
            mean = self._mean[:active]
            contexts = LEVELS.take(mean >> 3)
            contexts += known_rows[step, :active]
            value = self._code_value(contexts, wanted[step, :active] if wanted is not None else None)
            values[step, :active] = value
            pull = MAGNITUDES.take(value)
            pull -= mean
            pull >>= min(step.bit_length(), RUN_SHIFT)
            mean += pull
        return runs.column(values)

    def _code_value(self, contexts: Contexts, want: Bytes | None) -> Bytes:
        last = SYMBOLS - 1
        value = self._coder.code(self._table, contexts, np.minimum(want, last) if want is not None else None)
        far = (value == last).nonzero()[0]
        if far.size:
            rest = want[far] - np.uint8(last) if want is not None else None
            value = value.copy()  # the table still has to learn what it said
            value[far] += self._coder.code(self._rests, np.zeros(far.size, np.intp), rest, far)
        return value


def expectations(first: int, count: int, changes: list[Change]) -> tuple[npt.NDArray[np.int8], Bytes]:
    """The expected change of elements `first` and on: whole units, and the eighths beside them (4 is none)."""
    whole = np.zeros(count, np.int8)
    phase = np.full(count, PHASES // 2, np.uint8)
    for change in changes:
        start = max(change.first, first)
        stop = min(change.first + change.rows * change.columns, first + count)
        for at in range(start, stop, WINDOW):
            size = min(WINDOW, stop - at)
            units = change.units(at - change.first, size)
            drop = min(max(change.shift - PHASE_BITS, 0), 62)
            eighths = np.minimum(np.maximum(units + ((1 << drop) >> 1) >> drop, -1016), 1016) + PHASES // 2
            here = slice(at - first, at - first + size)
            whole[here] = eighths >> PHASE_BITS
            phase[here] = eighths & (PHASES - 1)
    return whole, phase
