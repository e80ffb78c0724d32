"""Whole releases on disk, with golden inputs whose expected outputs are written by hand."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from device.inference.npz import write_npz
from device.update.ports import ReleaseSet
from protocol.artifact import Artifact
from protocol.ids import digest
from protocol.release import (
    MODEL_MEDIA_TYPES,
    Bounds,
    Classify,
    Golden,
    ImagePreprocessing,
    Model,
    Preprocessing,
    ReleaseManifest,
    Runtime,
    Task,
    Tensor,
    Variant,
)
from protocol.wire import encode
from tests.fakes.tiny_models import LABELS, SIDE

IMAGE = (Tensor(name="image", shape=(1, 3, SIDE, SIDE), dtype="float32", layout="NCHW"),)
IMAGE_NHWC = (Tensor(name="image", shape=(1, SIDE, SIDE, 3), dtype="float32", layout="NHWC"),)
SCORES = (Tensor(name="scores", shape=(1, 2), dtype="float32"),)


def grey_png(level: int, side: int = SIDE) -> bytes:
    """A PNG of one grey: what its brightness is, needs no decoder to know."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(out, "PNG")
    return out.getvalue()


@dataclass
class ModelSpec:
    """One model of a release; what is not said is the `brightness` model's."""

    data: bytes
    name: str = "light"
    runtime: Runtime = "onnxruntime"
    accelerator: str = "cpu"
    inputs: tuple[Tensor, ...] = IMAGE
    outputs: tuple[Tensor, ...] = SCORES
    task: Task = field(default_factory=lambda: Classify(output="scores", alarm_labels=("bright",), alarm_score=0.8))
    preprocessing: Preprocessing = field(default_factory=lambda: ImagePreprocessing(width=SIDE, height=SIDE))
    labels: tuple[str, ...] = LABELS
    factor: float = 1.0
    goldens: list[tuple[bytes, str, dict[str, np.ndarray]]] | None = None
    bounds: Bounds = field(default_factory=lambda: Bounds(latency_ms=2000.0, memory_mib=128))

    def golden_cases(self) -> list[tuple[bytes, str, dict[str, np.ndarray]]]:
        if self.goldens is not None:
            return self.goldens
        cases = []
        for level in (51, 102):
            light = self.factor * level / 255
            cases.append((grey_png(level), "image/png", {"scores": np.array([[light, 1 - light]], np.float32)}))
        return cases


def make_release(folder: Path, *specs: ModelSpec, version: str = "1.0.0") -> ReleaseSet:
    """Writes the artifacts of a release into `folder` and describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}

    def artifact(data: bytes, media_type: str) -> Artifact:
        name = digest(data)
        files[name] = folder / name
        files[name].write_bytes(data)
        return Artifact(sha256=name, length_bytes=len(data), media_type=media_type)

    models, variants = [], {}
    for spec in specs:
        goldens = tuple(
            Golden(
                name=f"case-{number}",
                input=artifact(data, media_type),
                expected=artifact(write_npz(expected), "application/x-npz"),
            )
            for number, (data, media_type, expected) in enumerate(spec.golden_cases())
        )
        variant = Variant(
            name=f"{spec.runtime}-{spec.accelerator}",
            runtime=spec.runtime,
            accelerator=spec.accelerator,
            artifact=artifact(spec.data, MODEL_MEDIA_TYPES[spec.runtime]),
            inputs=spec.inputs,
            outputs=spec.outputs,
            golden=goldens,
            bounds=spec.bounds,
        )
        variants[spec.name] = variant
        models.append(
            Model(
                name=spec.name,
                task=spec.task,
                preprocessing=spec.preprocessing,
                labels=spec.labels,
                variants=(variant,),
            )
        )
    manifest = ReleaseManifest(
        format=1, product="lights", version=version, release_counter=1, created_ms=0, models=tuple(models)
    )
    return ReleaseSet(digest=digest(encode(manifest)), manifest=manifest, variants=variants, files=files)
