"""The strongest directions of a matrix, and what they are in small integers."""

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.lowrank import FACTOR_BITS, Change

EXACT_SIDE: Final = 768  # up to here all directions are found at once
MANY_DIRECTIONS: Final = 8  # when one in so many or more of them are asked for
POWER_STEPS: Final = 2  # of the subspace iteration
SPARE: Final = 6  # directions that the iteration follows beyond those that are asked for
NOTHING: Final = 1e-9  # a direction so much weaker than the strongest one is rounding
MOST_SCALE: Final = 190  # the binary logarithm of what factors may be multiplied by

Reals = npt.NDArray[np.float64]


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
    side = tall.shape[1]
    followed = most + SPARE
    if followed >= side or (side <= EXACT_SIDE and followed * MANY_DIRECTIONS >= side):
        basis = np.linalg.eigh(tall.T @ tall)[1][:, ::-1][:, :most]
    else:
        basis = _followed(tall.astype(np.float32), followed)[:, :most].astype(np.float64)
    product = tall @ basis
    weights = np.sqrt((product**2).sum(axis=0))
    kept = weights > weights[0] * NOTHING
    product, weights, basis = product[:, kept] / weights[kept], weights[kept] * largest, basis[:, kept].T
    return (product, weights, basis) if tall is scaled else (basis.T, weights, product.T)


def _followed(tall: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """Directions of the columns, the strongest first, by subspace iteration."""
    # From a fixed start: the same patch each time.
    start = np.random.default_rng(0).standard_normal((tall.shape[0], count), np.float32)
    basis = np.linalg.qr(tall.T @ start)[0]
    for _ in range(POWER_STEPS):
        basis = np.linalg.qr(tall.T @ (tall @ basis))[0]
    product = tall @ basis
    return np.asarray(basis @ np.linalg.eigh(product.T @ product)[1][:, ::-1], np.float32)


def rounded(left: Reals, weights: Reals, right: Reals, precision: int) -> Change | None:
    """The directions in integers, the largest of either side of so many bits.

    Args:
        left: [rows, n].
        weights: [n].
        right: [n, columns].
        precision: In bits.

    Returns:
        A change from element 0 on, or None: there is nothing, or it is too much for integers.
    """
    share = np.sqrt(weights)
    sides = (left * share).T, (right.T * share).T
    scales = []
    for side in sides:
        largest = float(np.abs(side).max())
        if largest == 0 or not np.isfinite(largest):
            return None
        scales.append(min(int(np.floor(precision - np.log2(largest))), MOST_SCALE))
    whole = [np.rint(side * 2.0**scale).astype(np.int32) for side, scale in zip(sides, scales, strict=True)]
    if max(int(np.abs(side).max()) for side in whole) >= 1 << FACTOR_BITS:
        return None
    return Change(0, left.shape[0], right.shape[1], len(weights), sum(scales), whole[0], whole[1])


def refined(moved: Reals, change: Change, more: int) -> Change:
    """A change with directions of what its integers are too small to say, in the same units.

    Rounding either side of n directions leaves a matrix of 2n directions: with them factors are as good as of twice as
    many bits.

    Args:
        moved: [rows, columns], what the change is to come near to.
        change: Of it, from element 0 on.
        more: Directions at most.
    """
    rest = moved * 2.0**change.shift - change.left.T.astype(np.float64) @ change.right.astype(np.float64)
    if not rest.any():
        return change
    left, weights, right = directions(rest, more)
    share = np.sqrt(weights)
    whole = [np.rint(side).astype(np.int32) for side in ((left * share).T, (right.T * share).T)]
    if max(int(np.abs(side).max()) for side in whole) >= 1 << FACTOR_BITS:
        return change
    both = [np.concatenate([side, added]) for side, added in zip((change.left, change.right), whole, strict=True)]
    return replace(change, rank=len(both[0]), left=both[0], right=both[1])
