"""Anomaly: the largest value of the output is the score, and at the threshold it is an alarm."""

import numpy as np
from numpy.typing import NDArray

from device.inference.finding import Finding
from protocol.errors import Reason, Refused
from protocol.release import Anomaly


def judge(task: Anomaly, values: NDArray[np.float32]) -> Finding:
    """Makes a finding of `float32` of any shape.

    Raises:
        Refused: `MODEL_SHAPE`: no value at all, or an infinite one.
    """
    if values.size == 0 or not np.isfinite(values).all():
        raise Refused(Reason.MODEL_SHAPE, f"output {task.output!r} holds no finite score")
    score = float(values.max())
    return Finding(anomaly=score, alarm=score >= task.threshold)
