"""Holds a model's outputs against a golden input's expected ones."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from protocol.errors import Reason, Refused
from protocol.release import Golden


def compare(
    golden: Golden,
    got: Mapping[str, NDArray[np.generic]],
    expected: Mapping[str, NDArray[np.generic]],
    task_output: str,
) -> float:
    """Checks `|got - expected| <= atol + rtol * |expected|`, element by element, for every expected output.

    A NaN matches only a NaN at the same place, an infinity only itself. Types need not be equal, values must.

    Args:
        golden: Names the case and its tolerances.
        got: Raw outputs by name.
        expected: By name; some outputs may be left out, that of the task may not.
        task_output: The output that the task reads.

    Returns:
        The largest difference found, for the log.

    Raises:
        Refused: `GOLDEN`, with the place and size of the worst difference.
    """
    if task_output not in expected:
        raise Refused(Reason.GOLDEN, f"golden {golden.name} expects nothing of output {task_output!r}")
    worst = 0.0
    for name, wanted in expected.items():
        if name not in got:
            raise Refused(Reason.GOLDEN, f"golden {golden.name} expects output {name!r}, which the model lacks")
        worst = max(worst, _compare_one(golden, name, got[name], wanted))
    return worst


def _compare_one(golden: Golden, name: str, got: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    if got.shape != wanted.shape:
        raise Refused(
            Reason.GOLDEN,
            f"golden {golden.name}: output {name!r} has shape {list(got.shape)}, expected {list(wanted.shape)}",
        )
    if got.size == 0:
        return 0.0
    have, want = got.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(have - want)
        allowed = golden.atol + golden.rtol * np.abs(want)
    # Equal infinities differ by NaN, and an infinite tolerance allows everything: both are judged by equality alone.
    same = (have == want) | (np.isnan(have) & np.isnan(want))
    finite = np.isfinite(have) & np.isfinite(want)
    right = same | (finite & (difference <= allowed))
    measured = np.where(finite, difference, np.where(same, 0.0, np.inf))
    if not right.all():
        place = np.unravel_index(int(np.argmax(np.where(right, -1.0, measured))), got.shape)
        raise Refused(
            Reason.GOLDEN,
            f"golden {golden.name}: output {name!r} differs in {int((~right).sum())} of {right.size} values; at "
            f"{[int(i) for i in place]} it is {have[place]:.6g}, expected {want[place]:.6g} "
            f"(allowed {golden.atol:g} + {golden.rtol:g} * |expected|)",
        )
    return float(measured.max())
