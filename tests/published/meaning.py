"""What a model's direct outputs mean, by other code than the product's: the two must agree."""

import numpy as np
import pytest
from numpy.typing import NDArray

from device.inference.finding import Finding
from protocol.release import Anomaly, Classify, Detect, Model
from tests.published.catalogue import Array, Arrays


def hold(model: Model, found: Finding, direct: Arrays, frame_size: tuple[int, int]) -> None:
    raw = np.asarray(direct[model.task.output], np.float64)
    match model.task:
        case Classify():
            order = np.argsort(-raw.reshape(-1), kind="stable")[: len(found.scores)]
            assert [score.label for score in found.scores] == [model.labels[i] for i in order]
            assert [score.score for score in found.scores] == pytest.approx(raw.reshape(-1)[order], abs=1e-4)
        case Anomaly(threshold=threshold):
            assert found.anomaly == pytest.approx(raw.max(), abs=1e-4)
            assert found.alarm == (raw.max() >= threshold)
        case Detect(score_threshold=least, iou_threshold=overlap):
            expected = boxes_of(raw[0], least, overlap)
            assert len(found.detections) == len(expected)
            for detection, (score, kind, box) in zip(found.detections, expected, strict=True):
                assert detection.label == str(kind)
                assert detection.score == pytest.approx(score, abs=1e-4)
                size = np.array([*frame_size, *frame_size], np.float64)
                wanted = np.clip(box * size / 320, 0, size)
                assert detection.box == pytest.approx(wanted, abs=0.05)


def boxes_of(raw: Array, least: float, overlap: float) -> list[tuple[float, int, NDArray[np.float64]]]:
    """Boxes of a YOLO output `[4 + classes, N]`, the best first: the textbook's greedy suppression, class by class."""
    candidates = []
    for column in np.asarray(raw, np.float64).T:
        x, y, width, height = column[:4]
        kind = int(column[4:].argmax())
        if column[4 + kind] >= least:
            corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            candidates.append((float(column[4 + kind]), kind, corners))
    kept: list[tuple[float, int, NDArray[np.float64]]] = []
    for candidate in sorted(candidates, key=lambda item: -item[0]):
        if all(other[1] != candidate[1] or shared(other[2], candidate[2]) <= overlap for other in kept):
            kept.append(candidate)
    return kept


def shared(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return float(width * height / (areas - width * height))
