"""Finds the directions along which weight matrices changed: what `protocol.delta.lowrank` predicts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.delta.floats import differences
from protocol.delta.lowrank import COLUMNS, FACTOR_BITS, FACTORS, Change, FloatForm, predict
from protocol.delta.residuals import bit_length

LEAST_ELEMENTS: Final = 1024
LEAST_SIDE: Final = 4
RANKS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
FIRST_PRECISIONS: Final = (5, 7, 9, 12, 15)  # bits of the largest factor: a merged adapter is worth many
GIVE_UP_AFTER: Final = 2  # ranks in a row that were no better
JUDGED_ELEMENTS: Final = 1 << 15  # of a large matrix: what a rank is judged by
JUDGED_ROWS: Final = 8
POWER_STEPS: Final = 2  # of the subspace iteration
EXACT_SIDE: Final = 768  # up to here all directions are found at once
NOTHING: Final = 1e-9  # a direction so much weaker than the strongest one is rounding
SPARE: Final = 6  # directions that the iteration follows beyond those that are asked for
MEAN_OVER: Final = 24  # elements whose mean size is what a size is compared with

Words = npt.NDArray[np.unsignedinteger]
Reals = npt.NDArray[np.float64]


class Matrix(NamedTuple):
    """A run of a stream's elements that has a shape.

    Args:
        first: Its first element.
        rows: Of the matrix.
        columns: Of the matrix.
    """

    first: int
    rows: int
    columns: int


def find_changes(form: FloatForm, old: Words, new: Words, matrices: Sequence[Matrix]) -> list[Change]:
    """The changes that pay for their factors.

    Args:
        form: Of the elements.
        old: The old words.
        new: The new words.
        matrices: In order, disjoint.
    """
    changes = []
    factors = 0
    for matrix in matrices:
        count = matrix.rows * matrix.columns
        if count < LEAST_ELEMENTS or min(matrix.rows, matrix.columns) < LEAST_SIDE or matrix.columns > COLUMNS:
            continue
        here = slice(matrix.first, matrix.first + count)
        change = _find_change(form, old[here], new[here], matrix)
        if change is not None and factors + change.factors <= FACTORS:
            factors += change.factors
            changes.append(change)
    return changes


def _find_change(form: FloatForm, old: Words, new: Words, matrix: Matrix) -> Change | None:
    with np.errstate(invalid="ignore"):  # infinities and signalling NaNs: nothing is predicted for their matrix
        moved = _values(form, new) - _values(form, old)
    if not np.isfinite(moved).all() or not moved.any():
        return None
    moved = moved.reshape(matrix.rows, matrix.columns)
    judge = _Judge(form, old, new, matrix)
    best_bits, best, best_precision = judge.bits(None), None, 0
    left, weights, right = directions(moved, min(RANKS[-1], min(matrix.rows, matrix.columns) // 2))
    misses = 0
    for rank in RANKS:
        if rank > weights.size or misses == GIVE_UP_AFTER:
            break
        misses += 1
        precisions = (best_precision - 1, best_precision, best_precision + 1) if best else FIRST_PRECISIONS
        for precision in precisions:
            change = rounded(left[:, :rank], weights[:rank], right[:rank], precision, matrix)
            if change is None:
                continue
            bits = judge.bits(change)
            if bits < best_bits:
                best_bits, best, best_precision, misses = bits, change, precision, 0
    return None if best is None else best.moved_to(matrix.first)


class _Judge:
    """Says what a matrix takes with a change and without, by some of its rows."""

    def __init__(self, form: FloatForm, old: Words, new: Words, matrix: Matrix) -> None:
        count = min(matrix.rows, max(JUDGED_ROWS, JUDGED_ELEMENTS // matrix.columns))
        self._rows = np.arange(count) * matrix.rows // count
        self._share = matrix.rows / count
        self._form = form
        self._old = old.reshape(matrix.rows, matrix.columns)[self._rows].ravel()
        self._new = new.reshape(matrix.rows, matrix.columns)[self._rows].ravel().astype(np.int64)
        self._offsets = self._old.astype(np.int64) >> form.mantissa & form.exponent_mask

    def bits(self, change: Change | None) -> float:
        """About what all rows take, the change's factors included."""
        if change is None:
            return self._share * _bits(self._differences(self._old.astype(np.int64)), self._offsets)
        some = replace(change, rows=self._rows.size, left=change.left[:, self._rows])
        expected = predict(self._form, self._old, 0, [some])
        return self._share * _bits(self._differences(expected), self._offsets) + factor_bits(change)

    def _differences(self, expected: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return differences(self._form, expected, self._new)


def directions(moved: Reals, most: int) -> tuple[Reals, Reals, Reals]:
    """The strongest directions of a matrix.

    Args:
        moved: float64 [rows, columns], not all zero.
        most: How many at most.

    Returns:
        float64 [rows, n], [n] and [n, columns]: their product comes nearest to the matrix.
    """
    largest = np.abs(moved).max()
    scaled = moved / largest
    tall = scaled if scaled.shape[0] >= scaled.shape[1] else scaled.T
    if tall.shape[1] <= EXACT_SIDE:
        basis = np.linalg.eigh(tall.T @ tall)[1][:, ::-1][:, :most]
    else:
        # Subspace iteration, from a fixed start: the same patch each time.
        start = np.random.default_rng(0).standard_normal((tall.shape[0], most + SPARE))
        basis = np.linalg.qr(tall.T @ start)[0]
        for _ in range(POWER_STEPS):
            basis = np.linalg.qr(tall.T @ (tall @ basis))[0]
        basis = basis @ np.linalg.eigh((tall @ basis).T @ (tall @ basis))[1][:, ::-1][:, :most]
    product = tall @ basis
    weights = np.sqrt((product**2).sum(axis=0))
    kept = weights > weights[0] * NOTHING
    product, weights, basis = product[:, kept] / weights[kept], weights[kept] * largest, basis[:, kept].T
    return (product, weights, basis) if tall is scaled else (basis.T, weights, product.T)


def rounded(left: Reals, weights: Reals, right: Reals, precision: int, matrix: Matrix) -> Change | None:
    """The directions in integers, the largest of either side of so many bits."""
    share = np.sqrt(weights)
    sides = (left * share).T, (right.T * share).T
    scales = []
    for side in sides:
        largest = float(np.abs(side).max())
        if largest == 0 or not np.isfinite(largest):
            return None
        scales.append(min(int(np.floor(precision - np.log2(largest))), 190))
    whole = [np.rint(side * 2.0**scale).astype(np.int64) for side, scale in zip(sides, scales, strict=True)]
    if max(int(np.abs(side).max()) for side in whole) >= 1 << FACTOR_BITS:
        return None
    return Change(
        0, matrix.rows, matrix.columns, len(weights), sum(scales), whole[0].astype(np.int32), whole[1].astype(np.int32)
    )


def _values(form: FloatForm, words: Words) -> Reals:
    if form.bits == 16 and form.mantissa == 7:
        return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return words.view(f"<f{form.bits // 8}").astype(np.float64)


def _bits(difference: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> float:
    """About what coding the differences takes."""
    size = bit_length(np.abs(difference))
    sums = np.cumsum(size + offsets)
    mean = np.full(size.size, int(np.median(size + offsets)) * 2)
    mean[MEAN_OVER:] = (sums[MEAN_OVER - 1 : -1] - np.concatenate([[0], sums[: -MEAN_OVER - 1]])) * 2 // MEAN_OVER
    context = np.minimum(np.maximum(mean - 2 * offsets, -8), 80) + 8
    return entropy_bits(size, context) + float(np.maximum(size - 1, 0).sum()) + float((size > 0).sum())


def factor_bits(change: Change) -> float:
    """About what coding the factors takes."""
    total = 0.0
    for side in (change.left, change.right):
        size = bit_length(np.abs(side))
        which = np.repeat(np.arange(change.rank), side.shape[1])
        total += entropy_bits(size.ravel(), which) + float(np.maximum(size - 1, 0).sum()) + float((size > 0).sum())
    return total


def entropy_bits(symbols: npt.NDArray[np.int64], contexts: npt.NDArray[np.int64]) -> float:
    """What symbols take when what is likely in each context is known; both count from 0."""
    width = int(symbols.max(initial=0)) + 1
    joint = np.bincount(contexts * width + symbols).astype(np.float64)
    alone = np.bincount(contexts).astype(np.float64)
    joint, alone = joint[joint > 0], alone[alone > 0]
    return float((alone * np.log2(alone)).sum() - (joint * np.log2(joint)).sum())
