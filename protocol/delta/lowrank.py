"""Predicts how a matrix of weights changed: the product of two narrow matrices of integers.

A few steps of training move a weight matrix along a few directions (an adapter that was merged in, by its rank), so a
patch says those directions in small numbers and the rest is noise of fewer bits. All arithmetic is on integers: the
prediction is the same on every processor.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.numbers import Numbers
from protocol.errors import Reason, Refused

RANK_BITS: Final = 6
FACTOR_BITS: Final = 16  # magnitudes of factors are below 2^this: sums of products stay below 2^38
COLUMNS: Final = 1 << 17  # a row of sums stays within a megabyte
CHANGES: Final = 1 << 12  # of one stream: each window of elements looks at all of them
FACTORS: Final = 1 << 19  # of one stream: two megabytes while it is applied
SHIFTS: Final = 400  # the units of any float type, and of products of factors below 1
GUARD_BITS: Final = 20  # below the last place of the old value: what a sum near zero needs

_SKIP, _ROWS, _COLUMNS, _RANK, _SHIFT, _MORE = range(6)


@dataclass(frozen=True)
class FloatForm:
    """How a float type lies in its bits: sign, exponent, mantissa.

    Args:
        bits: All of them.
        mantissa: Of these.
    """

    bits: int
    mantissa: int

    @property
    def exponent_mask(self) -> int:
        """The exponent's bits, shifted down."""
        return (1 << (self.bits - 1 - self.mantissa)) - 1

    @property
    def bias(self) -> int:
        """What is added to exponents."""
        return self.exponent_mask >> 1

    @property
    def word(self) -> np.dtype[np.unsignedinteger[npt.NBitBase]]:
        """The unsigned integers that its bits are read as."""
        return np.dtype(f"<u{self.bits // 8}")


F32: Final = FloatForm(32, 23)
F16: Final = FloatForm(16, 10)
BF16: Final = FloatForm(16, 7)
I32: Final = FloatForm(32, 31)  # an integer is a float that has no exponent


@dataclass(frozen=True)
class Change:
    """The predicted change of one run of elements, taken as rows of a matrix.

    Args:
        first: Its first element in the stream.
        rows: Of the matrix.
        columns: Of the matrix.
        rank: Columns of `left` and rows of `right`; at least 1.
        shift: The product counts in units of 2^-shift.
        left: int32 [rank, rows].
        right: int32 [rank, columns].
    """

    first: int
    rows: int
    columns: int
    rank: int
    shift: int
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]

    @property
    def factors(self) -> int:
        """How many numbers it takes."""
        return self.rank * (self.rows + self.columns)

    def moved_to(self, first: int) -> "Change":
        """The same change of elements from `first` on."""
        return replace(self, first=first)

    def units(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """The change of `count` elements from element `first` of the matrix on, in units of 2^-shift."""
        top, bottom = first // self.columns, -(-(first + count) // self.columns)
        product = self.left[:, top:bottom].T.astype(np.int64) @ self.right.astype(np.int64)
        skip = first - top * self.columns
        units: npt.NDArray[np.int64] = product.ravel()[skip : skip + count]
        return units


def code_shapes(numbers: Numbers, elements: int, given: list[Change] | None = None) -> list[Change]:
    """Codes what changes there are, without their factors.

    Args:
        numbers: One direction.
        elements: Of the stream.
        given: In order, when writing.

    Raises:
        Refused: `LIMIT`: one reaches out of the stream, or they are too large.
    """
    changes: list[Change] = []
    end = factors = 0
    while numbers.symbol(_MORE, 1, int(given is not None and len(changes) < len(given))):
        if len(changes) == CHANGES:
            raise Refused(Reason.LIMIT, "a patch predicts too many changes")
        was = given[len(changes)] if given else None
        first = end + numbers.unsigned(_SKIP, was.first - end if was else 0)
        rows = 1 + numbers.unsigned(_ROWS, was.rows - 1 if was else 0)
        columns = 1 + numbers.unsigned(_COLUMNS, was.columns - 1 if was else 0)
        rank = 1 + numbers.symbol(_RANK, RANK_BITS, was.rank - 1 if was else 0)
        shift = numbers.signed(_SHIFT, was.shift if was else 0)
        end = first + rows * columns
        factors += rank * (rows + columns)
        if rank * (rows + columns) > rows * columns:  # as many numbers as it is to predict
            raise Refused(Reason.LIMIT, "a patch predicts a change with too many factors")
        if end > elements or columns > COLUMNS or factors > FACTORS or abs(shift) > SHIFTS:
            raise Refused(Reason.LIMIT, "a patch predicts a change that is out of bounds")
        empty = np.empty((rank, 0), np.int32)
        changes.append(was or Change(first, rows, columns, rank, shift, empty, empty))
    return changes


def with_factors(changes: list[Change], factors: npt.NDArray[np.int32]) -> list[Change]:
    """Gives each change its share of the factors: all of `left`, then all of `right`.

    Raises:
        Refused: `LIMIT`: one is too large.
    """
    if np.abs(factors).max(initial=0) >= 1 << FACTOR_BITS:
        raise Refused(Reason.LIMIT, "a patch predicts a change with a factor that is out of bounds")
    whole = []
    at = 0
    for change in changes:
        middle = at + change.rank * change.rows
        end = at + change.factors
        left = factors[at:middle].reshape(change.rank, change.rows)
        right = factors[middle:end].reshape(change.rank, change.columns)
        whole.append(replace(change, left=left, right=right))
        at = end
    return whole


def factors_of(changes: list[Change]) -> npt.NDArray[np.int64]:
    """All factors in the order of `with_factors`."""
    parts = [part.ravel() for change in changes for part in (change.left, change.right)]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def predict(
    form: FloatForm, old: npt.NDArray[np.unsignedinteger[npt.NBitBase]], first: int, changes: list[Change]
) -> npt.NDArray[np.int64]:
    """The words that elements `first` and on of the stream are expected to become.

    Args:
        form: Of the elements.
        old: Their old words.
        first: Which they are.
        changes: All of the stream.
    """
    words = old.astype(np.int64)
    end = first + old.size
    for change in changes:
        start = max(change.first, first)
        stop = min(change.first + change.rows * change.columns, end)
        if start < stop:
            units = change.units(start - change.first, stop - start)
            here = slice(start - first, stop - first)
            words[here] = add(form, words[here], units, change.shift)
    return words


def add(
    form: FloatForm, words: npt.NDArray[np.int64], units: npt.NDArray[np.int64], shift: int
) -> npt.NDArray[np.int64]:
    """Adds `units` of 2^-shift to floats, in integer arithmetic; sums are cut at 64 times the old value.

    Infinities and NaNs stay what they are, and so does what would become one.
    """
    sign = words >> (form.bits - 1) & 1
    exponent = words >> form.mantissa & form.exponent_mask
    fraction = words & ((1 << form.mantissa) - 1)
    place = np.maximum(exponent, 1)
    magnitude = (fraction | (np.minimum(exponent, 1) << form.mantissa)) << GUARD_BITS
    # From units of 2^-shift to units of the old value's last place, with guard bits.
    up = form.bias + form.mantissa + GUARD_BITS - shift - place
    most = np.int64(1) << (form.mantissa + GUARD_BITS + 6)
    left = np.minimum(np.maximum(up, 0), form.mantissa + GUARD_BITS + 6)
    right = np.minimum(np.maximum(-up, 0), 62)
    step = np.minimum(np.maximum(units >> right, -(most >> left)), most >> left) << left
    total = np.where(sign == 1, -magnitude, magnitude) + step
    size = np.abs(total)
    # Exact: a double holds numbers below 2^53.
    length = np.frexp(size.astype(np.float64))[1].astype(np.int64)
    raised = place + length - (form.mantissa + GUARD_BITS + 1)
    result_exponent = np.maximum(raised, 0)
    drop = GUARD_BITS + np.maximum(raised, 1) - place
    rounded = np.where(
        drop > 0,
        (size + ((np.int64(1) << np.maximum(drop, 1)) >> 1)) >> np.maximum(drop, 0),
        size << np.maximum(-drop, 0),
    )
    # The implicit bit adds one to the exponent field, and rounding up may carry into it: both come out right.
    field = (np.maximum(result_exponent, 1) - 1 << form.mantissa) + rounded
    field = np.where(size == 0, 0, field)
    result = field | ((total < 0).astype(np.int64) << (form.bits - 1))
    usable = (exponent < form.exponent_mask) & (field < form.exponent_mask << form.mantissa)
    return np.where(usable, result, words)
