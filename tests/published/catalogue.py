"""What each published model is for, the frames it is shown, and what its runtime says of them when called directly.

The direct way shares no code with the product: inputs are made here with numpy and Pillow, and onnxruntime and LiteRT
are called as their own documentation does it.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scripts.draw_leaves import draw_scene

Array = NDArray[np.generic]
Arrays = dict[str, Array]

VOICE_RATE, MUSIC_RATE = 16_000, 22_050


@dataclass(frozen=True)
class Case:
    """A frame as a source would bring it, with the inputs that a direct caller makes of it."""

    name: str
    suffix: str
    data: bytes
    feeds: Arrays


@dataclass(frozen=True)
class PublishedModel:
    """One model by others.

    Args:
        name: Of the release's model.
        files: Variant name to the entry of `models.toml`, the first the machine's choice.
        task: TOML.
        preprocessing: TOML.
        cases: Frames; the first two are its golden inputs.
        labels: Reads them from the files that were fetched.
        hardware: Tags of a variant.
        bounds: TOML.
    """

    name: str
    files: Mapping[str, str]
    task: str
    preprocessing: str
    cases: Callable[[], list[Case]]
    labels: Callable[[Callable[[str], Path]], list[str]] = lambda _: []
    hardware: Mapping[str, str] = field(default_factory=dict)


# Pictures


def leaf() -> Image.Image:
    return draw_scene(np.random.default_rng(5), width=640, height=480).image


def label_on_a_crate(angle: int = 0) -> Image.Image:
    picture = Image.new("RGB", (384, 96), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.text((12, 20), "Headland 2026", fill=(10, 10, 10), font=ImageFont.load_default(size=48))
    return picture.rotate(angle)


def picture_case(
    name: str, picture: Image.Image, size: tuple[int, int], *, feed: str, mean: list[float], std: list[float], bgr: bool
) -> Case:
    """PNG, so that nothing but the preprocessing can differ."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).astype(np.float32) / np.float32(255)
    if bgr:
        pixels = pixels[:, :, ::-1]
    pixels = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
    return Case(name, ".png", out.getvalue(), {feed: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})


def nudenet_cases() -> list[Case]:
    return [
        picture_case(name, picture, (320, 320), feed="images", mean=[0.0], std=[1.0], bgr=False)
        for name, picture in (("leaf", leaf()), ("label", label_on_a_crate()))
    ]


def direction_cases() -> list[Case]:
    return [
        picture_case(name, picture, (192, 48), feed="x", mean=[0.5], std=[0.5], bgr=True)
        for name, picture in (("upright", label_on_a_crate()), ("turned", label_on_a_crate(180)), ("leaf", leaf()))
    ]


def text_cases() -> list[Case]:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return [
        picture_case(name, picture, (320, 320), feed="x", mean=mean, std=std, bgr=True)
        for name, picture in (("label", label_on_a_crate()), ("leaf", leaf()))
    ]


# Bytes and sound


def tensor_case(name: str, feeds: Arrays) -> Case:
    out = io.BytesIO()
    np.savez(out, **feeds)
    return Case(name, ".npz", out.getvalue(), feeds)


HTML = b'<!DOCTYPE html><html><head><title>x</title></head><body><p>Hi</p><a href="x">y</a></body></html>'
PYTHON = b'''"""Counts rows."""

import sqlite3
from pathlib import Path


def count(path: Path) -> int:
    with sqlite3.connect(path) as database:
        return int(database.execute("SELECT count(*) FROM rows").fetchone()[0])


if __name__ == "__main__":
    print(count(Path("outbox.db")))
'''


def file_cases() -> list[Case]:
    """The model looks at the first and last 1,024 bytes, 256 where there is none."""

    def features(content: bytes) -> Array:
        first, last = list(content[:4096].lstrip()[:1024]), list(content[-4096:].rstrip()[-1024:])
        return np.array([first + [256] * (1024 - len(first)) + [256] * (1024 - len(last)) + last], np.int32)

    return [tensor_case(name, {"bytes": features(data)}) for name, data in (("html", HTML), ("python", PYTHON))]


def file_labels(fetched: Callable[[str], Path]) -> list[str]:
    labels: list[str] = json.loads(fetched("magika-config").read_text())["target_labels_space"]
    return labels


def voice_cases() -> list[Case]:
    time_s = np.arange(576) / VOICE_RATE
    hum = sum(np.sin(2 * np.pi * 120 * k * time_s) / k * np.exp(-(((120 * k - 700) / 600) ** 2)) for k in range(1, 30))
    rest: Arrays = {"state": np.zeros((2, 1, 128), np.float32), "sr": np.array(VOICE_RATE, np.int64)}
    return [
        tensor_case("silence", {"input": np.zeros((1, 576), np.float32), **rest}),
        tensor_case("hum", {"input": (0.5 * np.asarray(hum)).astype(np.float32)[None], **rest}),
    ]


def music_cases() -> list[Case]:
    time_s = np.arange(43_844) / MUSIC_RATE
    return [
        tensor_case(
            name,
            {
                "serving_default_input_2:0": (loudness * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)[
                    None, :, None
                ]
            },
        )
        for name, loudness in (("concert-a", 0.5), ("silence", 0.0))
    ]


CATALOGUE = {
    model.name: model
    for model in (
        PublishedModel(
            name="nudenet",
            files={"onnx": "nudenet"},
            task='{ kind = "detect", output = "output0", decoder = "yolo", score_threshold = 0.25 }',
            preprocessing='{ kind = "image", width = 320, height = 320 }',
            cases=nudenet_cases,
        ),
        PublishedModel(
            name="text-direction",
            files={"onnx": "rapidocr-cls"},
            task='{ kind = "classify", output = "save_infer_model/scale_0.tmp_1", top = 2 }',
            preprocessing='{ kind = "image", width = 192, height = 48, colour = "bgr", mean = [0.5], std = [0.5] }',
            cases=direction_cases,
            labels=lambda _: ["0", "180"],
        ),
        PublishedModel(
            name="text-presence",
            files={"onnx": "rapidocr-det"},
            task='{ kind = "anomaly", output = "sigmoid_0.tmp_0", threshold = 0.5 }',
            preprocessing=(
                '{ kind = "image", width = 320, height = 320, colour = "bgr", '
                "mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }"
            ),
            cases=text_cases,
        ),
        PublishedModel(
            name="file-type",
            files={"onnx": "magika"},
            task='{ kind = "classify", output = "target_label", top = 3 }',
            preprocessing='{ kind = "tensors" }',
            cases=file_cases,
            labels=file_labels,
        ),
        PublishedModel(
            name="voice",
            files={"onnx": "silero-vad"},
            task='{ kind = "anomaly", output = "output", threshold = 0.2 }',
            preprocessing='{ kind = "tensors" }',
            cases=voice_cases,
        ),
        PublishedModel(
            name="notes",
            files={"tflite": "basic-pitch-tflite", "onnx": "basic-pitch-onnx"},
            task='{ kind = "anomaly", output = "StatefulPartitionedCall:1", threshold = 0.5 }',
            preprocessing='{ kind = "tensors" }',
            cases=music_cases,
            hardware={"tflite": "litert"},
        ),
        PublishedModel(
            name="wake-word",
            files={"tflite": "okay-nabu"},
            task='{ kind = "anomaly", output = "StatefulPartitionedCall:0", threshold = 0.85 }',
            preprocessing='{ kind = "tensors" }',
            cases=lambda: [
                tensor_case("silence", {"serving_default_input_audio:0": np.full((1, 3, 40), -128, np.int8)}),
                tensor_case("hiss", {"serving_default_input_audio:0": np.full((1, 3, 40), -20, np.int8)}),
            ],
        ),
    )
}


def run_directly(path: Path, feeds: Arrays) -> Arrays:
    """Raw outputs by name, from the runtime itself."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    for details in interpreter.get_input_details():
        if tuple(details["shape"]) != feeds[details["name"]].shape:
            interpreter.resize_tensor_input(details["index"], feeds[details["name"]].shape)
    interpreter.allocate_tensors()
    for details in interpreter.get_input_details():
        interpreter.set_tensor(details["index"], feeds[details["name"]])
    interpreter.invoke()
    return {details["name"]: interpreter.get_tensor(details["index"]) for details in interpreter.get_output_details()}
