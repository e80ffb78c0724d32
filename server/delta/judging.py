"""About what a matrix takes with a predicted change and without.

Judged by some of its rows, and in 32-bit floats where `protocol.delta.lowrank` has exact integers: for each change that
is taken many are looked at.
"""

from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.delta.integers import LEVELS, LEVELS_TOLD, OLD_VALUES_TOLD, PHASE_BITS, PHASES
from protocol.delta.lowrank import Change, FloatForm

JUDGED_FLOATS: Final = 1 << 15
JUDGED_INTEGERS: Final = 1 << 16  # each says less
JUDGED_ROWS: Final = 8  # at least
MEAN_OVER: Final = 24  # elements whose mean size is what a size is compared with
CONTEXTS: Final = (-8, 80)  # of sizes: how far the mean is from the exponent, in half bits
REACH_BITS: Final = 6  # sums are cut at so many times the old value's octave
MOST_EIGHTHS: Final = 1016
RUN: Final = 16  # integers whose mean magnitude is a context, as `protocol.delta.integers` has it
MEAN_LEVELS: Final = (LEVELS // OLD_VALUES_TOLD).astype(np.int32)
SYMBOLS: Final = 512  # that differences of 8-bit integers are told apart by

Words = npt.NDArray[np.unsignedinteger]
Small = npt.NDArray[np.int32]
Steps = npt.NDArray[np.float32]
Kind = TypeVar("Kind", bound=np.generic)


class Judge(Protocol):
    """What a matrix takes."""

    def bits(self, change: Change | None) -> float:
        """Of all elements; those of the factors are not in it."""
        ...


class _Sample:
    """Some rows of a matrix."""

    def __init__(self, rows: int, columns: int, elements: int) -> None:
        count = min(rows, max(JUDGED_ROWS, elements // columns))
        self.share = rows / count
        self._columns = columns
        self._rows = np.arange(count) * rows // count

    def of(self, elements: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
        """Their elements, of all [rows * columns]."""
        return elements.reshape(-1, self._columns)[self._rows].ravel()

    def steps(self, change: Change, units_bits: int) -> Steps:
        """By how much a change moves them, in units of 2^-units_bits of the change's."""
        left = change.left.T[self._rows] * 2.0**-units_bits
        return np.asarray(left.astype(np.float32) @ change.right.astype(np.float32)).ravel()


class FloatJudge:
    """Of floats.

    Args:
        form: Of the elements.
        old: The old words [rows * columns], all finite.
        new: The new words.
        rows: Of the matrix.
        columns: Of the matrix.
    """

    def __init__(self, form: FloatForm, old: Words, new: Words, rows: int, columns: int) -> None:
        self._sample = _Sample(rows, columns, JUDGED_FLOATS)
        self._form = form
        words = self._sample.of(old)
        self._old = reals(form, words)
        self._new = _ordered(form, reals(form, self._sample.of(new)))
        self._offsets = (words >> form.mantissa & form.exponent_mask).astype(np.int32)
        with np.errstate(over="ignore"):  # as far as there are floats
            self._reach = np.ldexp(np.float32(1), np.maximum(self._offsets, 1) - form.bias + REACH_BITS)

    def bits(self, change: Change | None) -> float:
        """See `Judge`."""
        expected = self._old
        # What becomes an infinity here is left alone when it is predicted: it is one of very few.
        with np.errstate(over="ignore", invalid="ignore"):
            if change is not None:
                expected = np.clip(self._sample.steps(change, change.shift), -self._reach, self._reach)
                expected += self._old
            size = bit_length(self._new - _ordered(self._form, expected))
        return self._sample.share * _bits_of_sizes(size, self._offsets)


class IntegerJudge:
    """Of 8-bit integers.

    Args:
        moved: int8 [rows * columns]: by how much each did.
        rows: Of the matrix.
        columns: Of the matrix.
    """

    def __init__(self, moved: npt.NDArray[np.int8], rows: int, columns: int) -> None:
        self._sample = _Sample(rows, columns, JUDGED_INTEGERS)
        self._moved = self._sample.of(moved).astype(np.int32)

    def bits(self, change: Change | None) -> float:
        """See `Judge`."""
        left = self._moved
        phase = np.full(left.size, PHASES // 2, np.int32)
        if change is not None:
            steps = self._sample.steps(change, max(change.shift - PHASE_BITS, 0))
            steps += np.float32(0.5)
            np.clip(np.floor(steps, out=steps), -MOST_EIGHTHS, MOST_EIGHTHS, out=steps)
            eighths = steps.astype(np.int32)
            eighths += PHASES // 2
            phase = eighths & (PHASES - 1)
            left = left - (eighths >> PHASE_BITS)
        sums = np.concatenate([np.zeros(RUN + 1, np.int32), np.cumsum(np.abs(left), dtype=np.int32)])
        mean = (sums[RUN:-1] - sums[: -RUN - 1]) * PHASES // RUN
        context = phase * LEVELS_TOLD + MEAN_LEVELS[np.minimum(mean, MEAN_LEVELS.size - 1)]
        return self._sample.share * _entropy_bits(context * SYMBOLS + left + SYMBOLS // 2, SYMBOLS)


def factor_bits(change: Change) -> float:
    """About what coding the factors takes."""
    total = 0.0
    for side in (change.left, change.right):
        size = bit_length(side)
        width = int(size.max()) + 1
        which = np.arange(change.rank, dtype=np.int32)[:, None] * width
        total += _entropy_bits((size + which).ravel(), width) + float(size.sum())
    return total


def reals(form: FloatForm, words: Words) -> npt.NDArray[np.float32]:
    """The floats that words stand for."""
    if form.bits == 16 and form.mantissa == 7:
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.view(f"<f{form.bits // 8}").astype(np.float32)


def bit_length(numbers: Small) -> Small:
    """Of the magnitude of each; of numbers of 24 bits and more it may be one more than it is."""
    exponents = np.abs(numbers).astype(np.float32).view(np.int32) >> 23
    return np.asarray(np.maximum(exponents - 126, 0), np.int32)


def _ordered(form: FloatForm, floats: npt.NDArray[np.float32]) -> Small:
    """Numbers of the words next to these floats, in the order of the floats: see `protocol.delta.floats.ordered`."""
    words: Small
    if form.bits == 32:
        words = floats.view(np.int32).copy()
    elif form.mantissa == 7:
        wide = floats.view(np.uint32)
        words = (wide + (np.uint32(0x7FFF) + (wide >> 16 & 1)) >> 16).astype(np.uint16).view(np.int16).astype(np.int32)
    else:
        words = floats.astype(np.float16).view(np.int16).astype(np.int32)
    words ^= words >> 31 & np.int32((1 << form.bits - 1) - 1)
    return words


def _bits_of_sizes(size: Small, offsets: Small) -> float:
    """About what coding differences takes, by their sizes."""
    both = size + offsets
    sums = np.cumsum(both, dtype=np.int64)
    mean = np.full(size.size, sums[-1] * 2 // sums.size, np.int32)
    mean[MEAN_OVER:] = (sums[MEAN_OVER - 1 : -1] - np.concatenate([[0], sums[: -MEAN_OVER - 1]])) * (2 / MEAN_OVER)
    mean -= 2 * offsets
    lowest, highest = CONTEXTS
    context = np.minimum(np.maximum(mean, lowest), highest) - lowest
    width = int(size.max()) + 1
    return _entropy_bits(context * width + size, width) + float(size.sum())


def _entropy_bits(joint: Small, width: int) -> float:
    """What symbols take when what is likely in each context is known.

    Args:
        joint: Context times width plus symbol, both from 0.
        width: How many symbols there are.
    """
    counts = np.bincount(joint).astype(np.float64)
    alone = np.add.reduceat(counts, np.arange(0, counts.size, width))
    counts, alone = counts[counts > 0], alone[alone > 0]
    return float((alone * np.log2(alone)).sum() - (counts * np.log2(counts)).sum())
