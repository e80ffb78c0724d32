"""Raw outputs become findings: each decoder against boxes written by hand."""

import numpy as np
import pytest

from device.inference.preprocess import Geometry
from device.inference.tasks import interpret
from device.inference.tasks.detect import suppress
from protocol.errors import Reason, Refused
from protocol.release import Anomaly, Classify, Detect, Model, Task, Tensor, TensorPreprocessing

FRAME = Geometry(frame_width=200, frame_height=100, input_width=100, input_height=100, per_x=2.0, per_y=1.0)


def said(task: Task, values, labels=(), layout="any", geometry=FRAME, scale=0.0, zero_point=0):
    values = np.asarray(values)
    tensor = Tensor(
        name="out", shape=values.shape, dtype=values.dtype.name if values.dtype != np.float64 else "float32",
        layout=layout, scale=scale, zero_point=zero_point,
    )  # fmt: skip
    model = Model(name="m", task=task, preprocessing=TensorPreprocessing(), labels=labels, variants=())
    return interpret(model, {"out": values.astype(tensor.dtype)}, (tensor,), geometry)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_the_best_labels_come_first():
    finding = said(Classify(output="out", top=2), [[0.1, 0.7, 0.2]], ("a", "b", "c"))
    assert [(score.label, round(score.score, 3)) for score in finding.scores] == [("b", 0.7), ("c", 0.2)]
    assert not finding.alarm


def test_softmax_and_sigmoid():
    finding = said(Classify(output="out", activation="softmax", top=3), [1000.0, 1000.0, -1000.0])
    assert [round(score.score, 3) for score in finding.scores] == [0.5, 0.5, 0.0]
    assert [score.label for score in finding.scores] == ["0", "1", "2"]
    finding = said(Classify(output="out", activation="sigmoid"), [[logit(0.25), logit(0.75)]])
    assert finding.scores[0].score == pytest.approx(0.75, abs=1e-6)


def test_an_alarm_needs_its_label_and_its_score():
    task = Classify(output="out", alarm_labels=("c",), alarm_score=0.3)
    assert said(task, [[0.5, 0.1, 0.3]], ("a", "b", "c")).alarm
    assert not said(task, [[0.5, 0.3, 0.2]], ("a", "b", "c")).alarm


def test_quantised_outputs_are_real_again():
    finding = said(Classify(output="out"), np.array([[0, 127]], np.int8), scale=1 / 256, zero_point=-128)
    assert finding.scores[0].score == pytest.approx(255 / 256)


ROWS = [
    [10, 10, 30, 30, 0.9, 0],
    [12, 12, 32, 32, 0.8, 0],
    [12, 12, 32, 32, 0.7, 1],
    [60, 60, 90, 120, 0.6, 1],
    [0, 0, 5, 5, 0.1, 0],
]


@pytest.mark.parametrize("values", [ROWS, [ROWS]], ids=["[N, 6]", "[1, N, 6]"])
def test_rows(values):
    finding = said(
        Detect(output="out", decoder="rows", alarm_labels=("snail",), alarm_score=0.65), values, ("slug", "snail")
    )
    assert [(d.label, round(d.score, 2), d.box) for d in finding.detections] == [
        ("slug", 0.9, (20, 10, 60, 30)),
        ("snail", 0.7, (24, 12, 64, 32)),
        ("snail", 0.6, (120, 60, 180, 100)),
    ]
    assert finding.alarm
    assert not said(
        Detect(output="out", decoder="rows", alarm_labels=("snail",), alarm_score=0.75), values, ("slug", "snail")
    ).alarm


def test_yolo():
    values = np.zeros((1, 6, 3), np.float32)
    values[0, :, 1] = [50, 40, 20, 10, 0.1, 0.8]
    finding = said(Detect(output="out", decoder="yolo"), values, ("a", "b"))
    assert [(d.label, d.box) for d in finding.detections] == [("b", (80, 35, 120, 45))]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_grid(layout):
    cells = np.full((1, 7, 5, 10), -20.0, np.float32)
    # Cell (row 2, column 3) of 10 x 20 pixels: centre a quarter across and half down, two cells wide, one cell high.
    cells[0, :, 2, 3] = [logit(0.9), logit(0.25), 0.0, np.log(2.0), 0.0, 0.0, logit(0.8)]
    values = cells if layout == "NCHW" else cells.transpose(0, 2, 3, 1)
    finding = said(Detect(output="out", decoder="grid"), values, ("a", "b"), layout=layout)
    (one,) = finding.detections
    assert one.label == "b"
    assert one.score == pytest.approx(0.9 * 0.8, abs=1e-4)
    assert one.box == pytest.approx((2 * (32.5 - 10), 40, 2 * (32.5 + 10), 60), abs=1e-3)


def test_suppression_against_the_slow_and_plain_way():
    rng = np.random.default_rng(3)
    corner = rng.random((120, 2)) * 80
    boxes = np.concatenate(
        [corner, corner + rng.random((120, 2)) * 30, rng.random((120, 1)), rng.integers(0, 3, (120, 1))], 1
    )
    boxes = boxes.astype(np.float32)

    def iou(a, b):
        w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
        return w * h / union

    kept: list = []
    for box in sorted(boxes.tolist(), key=lambda box: -box[4]):
        if all(other[5] != box[5] or iou(other, box) <= 0.4 for other in kept):
            kept.append(box)
    np.testing.assert_allclose(suppress(boxes, 0.4, 1000), np.array(kept, np.float32))
    np.testing.assert_allclose(suppress(boxes, 0.4, 5), np.array(kept[:5], np.float32))


def test_boxes_without_area_and_without_number_harm_nobody():
    flat = [[5, 5, 5, 5, 0.9, 0], [5, 5, 5, 5, 0.8, 0], [float("inf"), 0, 1, 1, 0.9, 0]]
    assert len(said(Detect(output="out", decoder="rows"), flat, ("a",)).detections) == 2
    assert said(Detect(output="out", decoder="rows"), np.zeros((0, 6), np.float32), ("a",)).detections == ()


def test_anomaly():
    assert said(Anomaly(output="out", threshold=0.5), [[0.1], [0.5]]).alarm
    finding = said(Anomaly(output="out", threshold=0.6), [[0.1], [0.5]])
    assert (finding.anomaly, finding.alarm) == (0.5, False)


@pytest.mark.parametrize(
    ("task", "values"),
    [
        (Classify(output="out"), [[0.1, 0.2], [0.3, 0.4]]),
        (Classify(output="out"), [0.1, 0.2, 0.3]),
        (Classify(output="out"), [float("nan"), 0.2]),
        (Classify(output="out"), [float("inf"), 0.2]),
        (Detect(output="out", decoder="rows"), np.zeros((1, 3, 7))),
        (Detect(output="out", decoder="rows"), [[0, 0, 1, 1, 0.9, 2]]),
        (Detect(output="out", decoder="rows"), [[0, 0, 1, 1, 0.9, -1]]),
        (Detect(output="out", decoder="yolo"), np.zeros((1, 7, 3))),
        (Detect(output="out", decoder="grid"), np.zeros((1, 8, 2, 2))),
        (Detect(output="out", decoder="grid"), np.zeros((7, 2, 2))),
        (Anomaly(output="out", threshold=1.0), np.zeros((0,))),
        (Anomaly(output="out", threshold=1.0), [float("nan")]),
    ],
)
def test_outputs_of_another_shape_and_what_is_no_number_are_refused(task, values):
    with pytest.raises(Refused) as refused:
        said(task, values, ("a", "b"))
    assert refused.value.reason is Reason.MODEL_SHAPE
