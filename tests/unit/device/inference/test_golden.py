"""Golden outputs: every value within its tolerance, and nothing hides behind NaN."""

import numpy as np
import pytest

from device.inference.golden import compare
from protocol.artifact import Artifact
from protocol.errors import Reason, Refused
from protocol.release import Golden

NAN, INF = float("nan"), float("inf")
PART = Artifact(sha256="0" * 64, length_bytes=0, media_type="application/x-npz")
GOLDEN = Golden(name="g", input=PART, expected=PART, atol=0.1, rtol=0.01)


def held(got, expected, task_output="y"):
    return compare(GOLDEN, {"y": np.asarray(got)}, {"y": np.asarray(expected)}, task_output)


@pytest.mark.parametrize(
    ("got", "expected", "worst"),
    [
        ([1.0, 2.0], [1.05, 2.0], 0.05),
        ([100.0], [101.1], 1.1),
        ([NAN, INF, -INF], [NAN, INF, -INF], 0.0),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
        (np.array([3], np.int8), np.array([3.0], np.float32), 0.0),
    ],
)
def test_within_the_tolerance_holds(got, expected, worst):
    assert held(got, expected) == pytest.approx(worst)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ([1.0], [1.2]),
        ([101.2], [100.0]),
        ([NAN], [1.0]),
        ([1.0], [NAN]),
        ([INF], [1.0]),
        ([1.0], [INF]),
        ([INF], [-INF]),
        ([[1.0]], [1.0]),
        ([1.0, 1.0], [1.0]),
    ],
)
def test_anything_else_does_not(got, expected):
    with pytest.raises(Refused) as refused:
        held(got, expected)
    assert refused.value.reason is Reason.GOLDEN


def test_the_worst_place_is_named():
    with pytest.raises(Refused, match=r"in 2 of 3 values; at \[2\] it is 9, expected 3"):
        held([1.0, 2.5, 9.0], [1.0, 2.0, 3.0])


def test_the_tasks_output_must_be_expected_and_every_expected_one_must_be_there():
    with pytest.raises(Refused, match="expects nothing of output 'z'"):
        held([1.0], [1.0], task_output="z")
    with pytest.raises(Refused, match="lacks"):
        compare(GOLDEN, {}, {"y": np.ones(1)}, "y")
