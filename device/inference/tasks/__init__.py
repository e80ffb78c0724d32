"""Tasks: raw outputs become what a result row says. Pure numpy, no state."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from device.inference.finding import Finding
from device.inference.preprocess import Geometry, dequantise
from device.inference.tasks.anomaly import judge
from device.inference.tasks.classify import classify
from device.inference.tasks.detect import detect
from protocol.errors import Reason, Refused
from protocol.release import Anomaly, Classify, Detect, Model, Tensor

__all__ = ["Finding", "interpret"]


def interpret(
    model: Model, outputs: Mapping[str, NDArray[np.generic]], tensors: Sequence[Tensor], geometry: Geometry
) -> Finding:
    """What the model said of one frame.

    Args:
        model: Its task and labels.
        outputs: Raw, by name.
        tensors: The variant's outputs: scale, zero point and layout.
        geometry: Of the frame, to bring boxes back into its pixels.

    Raises:
        Refused: `MODEL_SHAPE`: the output does not have the task's shape, or holds what is not a number.
    """
    task = model.task
    tensor = next(tensor for tensor in tensors if tensor.name == task.output)
    if task.output not in outputs:
        raise Refused(Reason.MODEL_SHAPE, f"model {model.name} gave no output {task.output!r}")
    values = dequantise(outputs[task.output], tensor)
    # A row is JSON, which has no NaN; and a model that answers so is ill, which the trial must see.
    if np.isnan(values).any():
        raise Refused(Reason.MODEL_SHAPE, f"model {model.name}: output {task.output!r} holds what is not a number")
    match task:
        case Classify():
            return classify(task, model.labels, values)
        case Detect():
            return detect(task, model.labels, values, tensor.layout, geometry)
        case Anomaly():
            return judge(task, values)
