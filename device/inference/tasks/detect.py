"""Detection: three ways in which networks write boxes, one non-maximum suppression, boxes in pixels of the frame.

Inside this file boxes are `float32 [N, 6]: x0, y0, x1, y1, score, class`, in pixels of the model's input until the
last step. Where the input is no image its pixels are whatever unit the model counts in; a `grid` then counts cells.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from device.inference.finding import Finding, label_of
from device.inference.preprocess import Geometry
from device.inference.tasks.classify import activate
from protocol.errors import Reason, Refused
from protocol.release import Detect, Layout
from protocol.results import Detection

_CANDIDATES: Final = 2000
"""The best so many boxes are looked at: suppression compares pairs, so an untrained model must not stop the machine."""
_LOG_SIDE: Final = 20.0  # exp of more is larger than any frame, and would overflow further on


def detect(
    task: Detect, labels: tuple[str, ...], values: NDArray[np.float32], layout: Layout, geometry: Geometry
) -> Finding:
    """Decodes, drops what is below `score_threshold`, suppresses, and moves boxes into the frame.

    Args:
        task: Decoder and thresholds.
        labels: One a class; without labels, classes go by their number.
        values: The output, as `protocol.release.Detect` describes it for the decoder.
        layout: Of the output; a `grid` reads NHWC when it says so, else NCHW.
        geometry: Of the frame.

    Raises:
        Refused: `MODEL_SHAPE`: not the decoder's shape, or another number of classes than labels.
    """
    match task.decoder:
        case "rows":
            boxes = _rows(task, values)
        case "yolo":
            boxes = _yolo(task, labels, values)
        case "grid":
            boxes = _grid(task, labels, values, layout, geometry)
    boxes = boxes[np.isfinite(boxes).all(axis=1) & (boxes[:, 4] >= task.score_threshold)]
    boxes = suppress(boxes, task.iou_threshold, task.max_detections)
    moved = geometry.to_frame(boxes[:, :4])
    found = []
    for place, (score, kind) in zip(moved, boxes[:, 4:], strict=True):
        index = int(kind)
        if index < 0 or (labels and index >= len(labels)):
            raise Refused(Reason.MODEL_SHAPE, f"output {task.output!r} names class {index} of {len(labels)} labels")
        x0, y0, x1, y1 = (float(side) for side in place)
        found.append(Detection(label=label_of(labels, index), score=float(score), box=(x0, y0, x1, y1)))
    watched = set(task.alarm_labels)
    alarm = any(detection.label in watched and detection.score >= task.alarm_score for detection in found)
    return Finding(detections=tuple(found), alarm=alarm)


def suppress(boxes: NDArray[np.float32], iou_threshold: float, most: int) -> NDArray[np.float32]:
    """Greedy non-maximum suppression, class by class.

    The best box stays and every other of its class that overlaps it by more than `iou_threshold` (intersection over
    union) goes; then the next best. Equal scores keep the order of the output.

    Args:
        boxes: `float32 [N, 6]`; at most the best 2,000 are looked at.
        iou_threshold: 1 keeps all.
        most: The most that are returned.

    Returns:
        `float32 [M, 6]`, best score first.
    """
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")[:_CANDIDATES]]
    x0, y0, x1, y1, _, kind = boxes.T
    area = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
    alive = np.ones(len(boxes), dtype=bool)
    kept: list[int] = []
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == most:
            break
        rest = slice(index + 1, None)
        across = np.minimum(x1[rest], x1[index]) - np.maximum(x0[rest], x0[index])
        down = np.minimum(y1[rest], y1[index]) - np.maximum(y0[rest], y0[index])
        shared = np.maximum(across, 0) * np.maximum(down, 0)
        union = area[rest] + area[index] - shared
        # Two boxes without area share nothing: a union of zero must not divide.
        overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        alive[rest] &= ~((overlap > iou_threshold) & (kind[rest] == kind[index]))
    return boxes[kept]


def _rows(task: Detect, values: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    if rows.ndim != 2 or rows.shape[1] != 6:
        raise _misshapen(task, values, "[1, N, 6] or [N, 6]")
    return rows


def _yolo(task: Detect, labels: tuple[str, ...], values: NDArray[np.float32]) -> NDArray[np.float32]:
    if values.ndim != 3 or values.shape[0] != 1 or values.shape[1] < 5 or _wrong(labels, values.shape[1] - 4):
        raise _misshapen(task, values, f"[1, 4 + {len(labels) or 'classes'}, N]")
    centre_x, centre_y, width, height = values[0, :4]
    scores = values[0, 4:]
    kind = scores.argmax(axis=0)
    return np.stack(
        (
            centre_x - width / 2,
            centre_y - height / 2,
            centre_x + width / 2,
            centre_y + height / 2,
            scores.max(axis=0),
            kind.astype(np.float32),
        ),
        axis=1,
    )


def _grid(
    task: Detect, labels: tuple[str, ...], values: NDArray[np.float32], layout: Layout, geometry: Geometry
) -> NDArray[np.float32]:
    """The score is the logistic of objectness times the softmax of the best class; offsets are logistic too."""
    wanted = f"[1, 5 + {len(labels) or 'classes'}, H, W], or that in NHWC"
    if values.ndim != 4 or values.shape[0] != 1:
        raise _misshapen(task, values, wanted)
    cells = values[0].transpose(2, 0, 1) if layout == "NHWC" else values[0]
    channels, rows, columns = cells.shape
    if channels < 6 or _wrong(labels, channels - 5):
        raise _misshapen(task, values, wanted)
    per_x = geometry.input_width / columns if geometry.input_width else 1.0
    per_y = geometry.input_height / rows if geometry.input_height else 1.0
    objectness, offset_x, offset_y = activate(cells[:3], "sigmoid")
    centre_x = (offset_x + np.arange(columns, dtype=np.float32)[None, :]) * per_x
    centre_y = (offset_y + np.arange(rows, dtype=np.float32)[:, None]) * per_y
    width = np.exp(np.minimum(cells[3], _LOG_SIDE)) * per_x
    height = np.exp(np.minimum(cells[4], _LOG_SIDE)) * per_y
    classes = activate(cells[5:].transpose(1, 2, 0), "softmax")
    boxes = np.stack(
        (
            centre_x - width / 2,
            centre_y - height / 2,
            centre_x + width / 2,
            centre_y + height / 2,
            objectness * classes.max(axis=2),
            classes.argmax(axis=2).astype(np.float32),
        ),
        axis=2,
    )
    return boxes.reshape(-1, 6).astype(np.float32, copy=False)


def _wrong(labels: tuple[str, ...], classes: int) -> bool:
    return bool(labels) and len(labels) != classes


def _misshapen(task: Detect, values: NDArray[np.float32], wanted: str) -> Refused:
    return Refused(
        Reason.MODEL_SHAPE, f"output {task.output!r} is {list(values.shape)}; decoder {task.decoder} reads {wanted}"
    )
