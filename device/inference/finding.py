"""What a task makes of a frame: the part of a result row that the model decides."""

from protocol.results import Detection, Score
from protocol.wire import Message


class Finding(Message):
    """Scores, boxes in pixels of the frame, or an anomaly score; and whether it is an alarm."""

    scores: tuple[Score, ...] = ()
    detections: tuple[Detection, ...] = ()
    anomaly: float | None = None
    alarm: bool = False


def label_of(labels: tuple[str, ...], index: int) -> str:
    """The label of a class; its number when the model has no labels."""
    return labels[index] if labels else str(index)
