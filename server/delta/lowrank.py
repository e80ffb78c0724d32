"""Finds the directions along which weight matrices changed: what `protocol.delta.lowrank` predicts."""

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.delta.lowrank import COLUMNS, FACTORS, SHIFTS, Change, FloatForm
from server.delta.directions import Reals, directions, refined, rounded
from server.delta.judging import FloatJudge, Judge, factor_bits, reals
from server.delta.remembering import by_digest

LEAST_ELEMENTS: Final = 1024
LEAST_SIDE: Final = 4
RANKS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
FEW: Final = 4  # directions that are looked for first: they show whether more are worth it
PRECISIONS: Final = (5, 7, 9, 12, 15)  # bits of the largest factor: a merged adapter is worth many
GIVE_UP_AFTER: Final = 2  # ranks in a row that were no better
HOPELESS: Final = 0.5  # the first direction loses more than this share of what it takes: no other is looked at
FINE: Final = 14  # bits of the largest factor from which on more would be wanted than there are
LEAST_BITS: Final = 2  # of a factor: a matrix that takes less than its factors is hopeless

Words = npt.NDArray[np.unsignedinteger]
Parts = tuple[Reals, Reals, Reals]  # of a product: left, weights, right


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


class Trial(NamedTuple):
    """A change and what the matrix takes with it, its factors included."""

    bits: float
    factor_bits: float = 0
    change: Change | None = None
    precision: int = 0


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
        if not may_move(matrix) or not form.exponent_mask:
            continue
        here = slice(matrix.first, matrix.first + matrix.rows * matrix.columns)
        change = _find_change(form, old[here], new[here], matrix.rows, matrix.columns)
        if change is not None and factors + change.factors <= FACTORS:
            factors += change.factors
            changes.append(change.moved_to(matrix.first))
    return changes


def may_move(matrix: Matrix) -> bool:
    """Whether a matrix is large enough for directions to pay, and not too large to predict."""
    enough = matrix.rows * matrix.columns >= LEAST_ELEMENTS and min(matrix.rows, matrix.columns) >= LEAST_SIDE
    return enough and matrix.columns <= COLUMNS


def factors_in(change: Change | None) -> int:
    """How many factors there are."""
    return change.factors if change is not None else 0


@by_digest(factors_in)
def _find_change(form: FloatForm, old: Words, new: Words, rows: int, columns: int) -> Change | None:
    with np.errstate(invalid="ignore"):  # infinities and signalling NaNs: nothing is predicted for their matrix
        moved = reals(form, new).astype(np.float64) - reals(form, old)
    if not np.isfinite(moved).all() or not moved.any():
        return None
    judge = FloatJudge(form, old, new, rows, columns)
    return Search(judge, RANKS, PRECISIONS).best(moved.reshape(rows, columns))


class Search(NamedTuple):
    """How the change of a matrix is looked for.

    Args:
        judge: Says what the matrix takes.
        ranks: To try, ascending.
        precisions: To begin with, ascending.
        least_precision: Of all.
        least_shift: Of a change.
    """

    judge: Judge
    ranks: Sequence[int]
    precisions: Sequence[int]
    least_precision: int = 1
    least_shift: int = -SHIFTS

    def best(self, moved: Reals, scales: Sequence[Reals | None] = (None,)) -> Change | None:
        """The change that takes the fewest bits, or None: with any the matrix takes more than without.

        Args:
            moved: [rows, columns], not all zero.
            scales: Of the rows, [rows, 1]: the directions are looked for without each of them, as long
                as there are any.
        """
        nothing = Trial(self.judge.bits(None))
        if nothing.bits < LEAST_BITS * sum(moved.shape):
            return None
        best = nothing
        for scale in scales:
            found = self._along(moved, scale, nothing)
            best = min(best, found, key=_bits)
            if found.change is None:
                break
        return best.change

    def _along(self, moved: Reals, scale: Reals | None, nothing: Trial) -> Trial:
        """The best change along the strongest directions of the matrix without its rows' scales."""
        scaled = moved if scale is None else moved / scale
        most = min(self.ranks[-1], min(moved.shape) // 2)
        left, weights, right = directions(scaled, min(FEW, most))
        best = nothing
        misses = 0
        for rank in self.ranks:
            if rank > FEW and weights.size == FEW:
                left, weights, right = directions(scaled, most)
            if rank > weights.size or misses == GIVE_UP_AFTER:
                break
            side = left[:, :rank] if scale is None else left[:, :rank] * scale
            parts = side, weights[:rank], right[:rank]
            trial = self._climbed(parts) if best.change is None else self._near(parts, best.precision)
            misses += 1
            if trial.bits < best.bits:
                best, misses = trial, 0
            elif best.change is None and trial.bits - nothing.bits > HOPELESS * trial.factor_bits:
                break
        fine = best.change if best.precision >= FINE and scale is None else None
        if fine is None:
            return best
        ways = [refined(moved, fine, min(times * fine.rank, most - fine.rank)) for times in (1, 2) if fine.rank < most]
        return min([best, *(self._judged(way, best.precision) for way in ways)], key=_bits)

    def _climbed(self, parts: Parts) -> Trial:
        """The best of the precisions, as long as each is better than the one before."""
        best = Trial(inf)
        for precision in self.precisions:
            trial = self._tried(parts, precision)
            if best.change is not None and trial.bits >= best.bits:
                break
            best = trial
        return best

    def _near(self, parts: Parts, precision: int) -> Trial:
        """The best of a precision and those below or above it, as long as each is better than the one before."""
        here = self._tried(parts, precision)
        for step in (-1, 1):
            best = here
            while best.precision + step >= self.least_precision:
                trial = self._tried(parts, best.precision + step)
                if trial.bits >= best.bits:
                    break
                best = trial
            if best is not here:
                return best
        return here

    def _tried(self, parts: Parts, precision: int) -> Trial:
        change = rounded(*parts, precision)
        if change is None or change.shift < self.least_shift:
            return Trial(inf, precision=precision)
        return self._judged(change, precision)

    def _judged(self, change: Change, precision: int) -> Trial:
        factors = factor_bits(change)
        return Trial(self.judge.bits(change) + factors, factors, change, precision)


def _bits(trial: Trial) -> float:
    return trial.bits
