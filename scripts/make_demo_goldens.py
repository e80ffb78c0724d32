"""Lets the product's own runtimes say what the demo's models give for the golden pictures, and describes the releases.

Run after training, in `.venv`: preprocessing and runtimes are those that machines use. For each version and variant
there is then `golden-NAME-VARIANT.npz` beside the model; the pictures are shared by all versions. The descriptions
that `headland release build` reads are `pest-detector-VERSION.toml`.

    .venv/bin/python scripts/make_demo_goldens.py [--show FOLDER]      FOLDER: the pictures with what was found
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from draw_leaves import LABELS, Box, draw_scene, outline_boxes  # noqa: E402  (the path is set above)
from PIL import Image  # noqa: E402  (as above)

from device.inference.backends import choose  # noqa: E402  (as above)
from device.inference.npz import write_npz  # noqa: E402  (as above)
from device.inference.preprocess import prepare  # noqa: E402  (as above)
from device.inference.tasks import interpret  # noqa: E402  (as above)
from protocol.release import Detect, ImagePreprocessing, Layout, Model, Runtime  # noqa: E402  (as above)
from protocol.results import Detection  # noqa: E402  (as above)

MODELS = ROOT / "scripts" / "demo_models"
RELEASES = {"1.0.0": 1, "1.1.0": 2}  # with their counters
PREPROCESSING = ImagePreprocessing(width=128, height=128, mean=(0.5,), std=(0.25,))
TASK = Detect(output="grid", decoder="grid", score_threshold=0.5, iou_threshold=0.5)
GOLDEN_SEEDS = {"pests": 903_003, "healthy": 903_100}  # one picture with each kind of pest, one with none
GOLDEN_HEIGHT = 180  # the model looks at 128 x 128 pixels; what is committed shall stay small
VARIANTS: Mapping[str, tuple[Runtime, str, Layout]] = {
    "onnx": ("onnxruntime", "pest-detector.onnx", "NCHW"),
    "int8": ("litert", "pest-detector-int8.tflite", "NHWC"),
}


def golden_picture(name: str) -> bytes:
    """The JPEG of a golden input; the same bytes for the same Pillow."""
    rng = np.random.default_rng(GOLDEN_SEEDS[name])
    scene = draw_scene(rng, width=GOLDEN_HEIGHT * 4 // 3, height=GOLDEN_HEIGHT, pests=4 if name == "pests" else 0)
    jpeg = io.BytesIO()
    scene.image.save(jpeg, "JPEG", quality=75)
    return jpeg.getvalue()


def run(variant: str, model: bytes, picture: bytes) -> tuple[bytes, tuple[Detection, ...]]:
    """Raw outputs of one picture as an `.npz`, and what the task makes of them."""
    runtime, _, layout = VARIANTS[variant]
    session = choose(runtime, "cpu").load(model, "cpu", threads=1)
    try:
        inputs = tuple(msgspec.structs.replace(tensor, layout=layout) for tensor in session.description.inputs)
        outputs = tuple(msgspec.structs.replace(tensor, layout=layout) for tensor in session.description.outputs)
        prepared = prepare(picture, "image/jpeg", PREPROCESSING, inputs)
        raw = session.run(prepared.feeds)
        task = msgspec.structs.replace(TASK, output=outputs[0].name)
        whole = Model(name="pest-detector", task=task, preprocessing=PREPROCESSING, labels=LABELS, variants=())
        # Half precision is finer than the tolerances, and half as long.
        short = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in raw.items()}
        return write_npz(short), interpret(whole, raw, outputs, prepared.geometry).detections
    finally:
        session.close()


def golden_lines(version: str, variant: str, names: Sequence[str], tolerances: str) -> str:
    cases = [
        f'    {{ name = "{name}", input = "golden-{name}.jpg", '
        f'expected = "{version}/golden-{name}-{variant}.npz", {tolerances} }},'
        for name in names
    ]
    return "\n".join(["golden = [", *cases, "]"])


def description(
    version: str,
    counter: int,
    *,
    metrics: Mapping[str, float],
    training: str,
    data: str,
    variants: Sequence[str] = ("int8", "onnx"),
    goldens: Sequence[str] = tuple(GOLDEN_SEEDS),
) -> str:
    """The text of a release description; paths are relative to the folder that holds it."""
    labels = ", ".join(f'"{label}"' for label in LABELS)
    lines = [
        'product = "pest-detector"',
        f'version = "{version}"',
        f"counter = {counter}",
        "",
        "# Short, for a demo: a release for real machines would be on trial for minutes.",
        "[trial]",
        "healthy_s = 4.0",
        "min_healthy_s = 2.0",
        "min_inferences = 5",
        "",
        "[lineage]",
        f'training_run = "{training}"',
        f'data = "{data}"',
        'code = "scripts/train_demo_models.py"',
        "",
        "[lineage.metrics]  # on held-out pictures; for the float32 form",
        *(f"{name} = {value}" for name, value in metrics.items()),
        "",
        "[[models]]",
        'name = "leaf"',
        f"labels = [{labels}]",
        "",
        "[models.task]",
        'kind = "detect"',
        'output = "grid"',
        'decoder = "grid"',
        "score_threshold = 0.5",
        "iou_threshold = 0.5",
        'alarm_labels = ["beetle"]',
        "alarm_score = 0.6",
        "",
        "[models.preprocessing]",
        'kind = "image"',
        "width = 128",
        "height = 128",
        "mean = [0.5]",
        "std = [0.25]",
        "",
    ]
    if "int8" in variants:
        lines += [
            "# For machines tagged `litert`; raw outputs are int8, so the tolerance counts steps of the quantiser.",
            "[[models.variants]]",
            'name = "int8"',
            f'file = "{version}/pest-detector-int8.tflite"',
            'hardware = ["litert"]',
            'input_layout = "NHWC"',
            'output_layout = "NHWC"',
            BOUNDS,
            golden_lines(version, "int8", goldens, "atol = 4.0, rtol = 0.0"),
            "",
        ]
    lines += [
        "[[models.variants]]",
        'name = "onnx"',
        f'file = "{version}/pest-detector.onnx"',
        'input_layout = "NCHW"',
        'output_layout = "NCHW"',
        BOUNDS,
        golden_lines(version, "onnx", goldens, "atol = 0.02, rtol = 0.001"),
        "",
    ]
    return "\n".join(lines)


BOUNDS = "bounds = { latency_ms = 250, memory_mib = 512, load_s = 30 }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    pictures = {name: golden_picture(name) for name in GOLDEN_SEEDS}
    for name, picture in pictures.items():
        (options.models / f"golden-{name}.jpg").write_bytes(picture)
    for version, counter in RELEASES.items():
        measured = json.loads((options.models / version / "metrics.json").read_text())
        training, held_out = measured["training"], measured["held_out"]
        text = description(
            version,
            counter,
            metrics=measured["float32"],
            training=f"{training['epochs']} epochs"
            + (f", continues {training['continues']}" if "continues" in training else ""),
            data=f"{training['pictures']} drawn pictures; {held_out['pictures']} others held out",
        )
        (options.models / f"pest-detector-{version}.toml").write_text(text)
        for variant, (_, file, _) in VARIANTS.items():
            for name, picture in pictures.items():
                expected, found = run(variant, (options.models / version / file).read_bytes(), picture)
                (options.models / version / f"golden-{name}-{variant}.npz").write_bytes(expected)
                print(f"{version} {variant} {name}: {[f'{d.label} {d.score:.2f}' for d in found]}")
                if options.show:
                    options.show.mkdir(parents=True, exist_ok=True)
                    boxes = [Box(d.label, *d.box) for d in found]
                    shown = outline_boxes(Image.open(io.BytesIO(picture)), boxes)
                    shown.save(options.show / f"{version}-{variant}-{name}.png")


if __name__ == "__main__":
    main()
