"""Classification: one score a label, the best few, and an alarm when a watched label scores high enough."""

import numpy as np
from numpy.typing import NDArray

from device.inference.finding import Finding, label_of
from protocol.errors import Reason, Refused
from protocol.release import Classify
from protocol.results import Score


def classify(task: Classify, labels: tuple[str, ...], values: NDArray[np.float32]) -> Finding:
    """Makes a finding of `float32 [classes]`, with any number of dimensions of length one around.

    Equal scores come in the order of the labels. The alarm looks at every label, not only at the best `top`.

    Raises:
        Refused: `MODEL_SHAPE`: not one score a label.
    """
    if values.ndim > 0 and max(values.shape) != values.size:
        raise Refused(Reason.MODEL_SHAPE, f"output {task.output!r} of {list(values.shape)} is not one row of scores")
    scores = activate(values.reshape(-1), task.activation)
    if labels and len(scores) != len(labels):
        raise Refused(Reason.MODEL_SHAPE, f"output {task.output!r} has {len(scores)} scores for {len(labels)} labels")
    if not np.isfinite(scores).all():
        raise Refused(Reason.MODEL_SHAPE, f"output {task.output!r} holds an infinite score")
    best = np.argsort(-scores, kind="stable")[: task.top]
    alarm = any(
        scores[index] >= task.alarm_score for index, label in enumerate(labels) if label in set(task.alarm_labels)
    )
    return Finding(
        scores=tuple(Score(label=label_of(labels, int(i)), score=float(scores[i])) for i in best), alarm=alarm
    )


def activate(values: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """Softmax over the last axis, the logistic function, or nothing; without overflow."""
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)
    if activation == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), dtype=np.float32)
    return values
