"""The release manifest: the only installable unit, a target file of the product's role.

It names every artifact by sha256 and length, says which hardware and accelerator each variant of a model fits, how
frames become tensors and tensors become results, and by which rules the release is tried and kept. The bytes are JSON;
their sha256 is the identity of the release.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from protocol import limits
from protocol.artifact import Artifact
from protocol.container import Container, check_containers
from protocol.errors import Reason, Refused
from protocol.ids import Count, Millis, Name, ProductName, Version
from protocol.wire import Message, decode

MODEL_MEDIA_TYPES = {"onnxruntime": "application/onnx", "litert": "application/vnd.tflite"}

Accelerator = Literal["tensorrt", "cuda", "edgetpu", "cpu"]
Runtime = Literal["onnxruntime", "litert"]
DType = Literal["float32", "float16", "uint8", "int8", "int32", "int64", "bool"]
Layout = Literal["NHWC", "NCHW", "any"]
FramePolicy = Literal["never", "alarms", "always"]
"""Whether frames may leave the machine: never (the default), those of alarms, or all."""


class Tensor(Message):
    """One input or output. `shape` holds -1 where a dimension is free."""

    name: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)], ...]
    dtype: DType
    layout: Layout = "any"
    scale: float = 0.0  # affine quantisation: real = scale * (stored - zero_point); 0 means not quantised
    zero_point: int = 0


class ImagePreprocessing(Message, tag="image", tag_field="kind"):
    """A JPEG or PNG becomes the model's one input: decode, resize, `(pixel * scale - mean) / std`, lay out, cast.

    A quantised input is quantised with the tensor's own scale and zero point after that; a `uint8` input without a
    scale takes the pixels as they are.
    """

    width: Annotated[int, msgspec.Meta(ge=1, le=16384)]
    height: Annotated[int, msgspec.Meta(ge=1, le=16384)]
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Literal["stretch", "letterbox"] = "stretch"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class TensorPreprocessing(Message, tag="tensors", tag_field="kind"):
    """A frame is an `.npz` whose arrays are the model's inputs by name: sensor streams, sound, features."""


Preprocessing = ImagePreprocessing | TensorPreprocessing


class Classify(Message, tag="classify", tag_field="kind"):
    """Scores of `output`, one a label. `activation` is applied first; the best `top` come out."""

    output: str
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    top: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    alarm_labels: tuple[str, ...] = ()
    alarm_score: float = 0.5


class Detect(Message, tag="detect", tag_field="kind"):
    """Boxes, after non-maximum suppression: `float32 [N, 6]: x0, y0, x1, y1, score, class` in pixels of the frame.

    decoder:
        `rows`: `output` is `[1, N, 6]` or `[N, 6]`: x0, y0, x1, y1, score, class, in pixels of the model's input.
        `yolo`: `output` is `[1, 4 + classes, N]`: centre x, centre y, width, height, then one score a class.
        `grid`: `output` is `[1, 5 + classes, H, W]` or `[1, H, W, 5 + classes]` (by the tensor's layout): logits of
        objectness, offset x and y inside the cell, log of width and height in cells, then class logits.
    """

    output: str
    decoder: Literal["rows", "yolo", "grid"]
    score_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    iou_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    alarm_labels: tuple[str, ...] = ()
    alarm_score: float = 0.5


class Anomaly(Message, tag="anomaly", tag_field="kind"):
    """The largest value of `output` is the score; at `threshold` or above it is an alarm."""

    output: str
    threshold: float


Task = Classify | Detect | Anomaly


class Golden(Message):
    """An input with the outputs it must give: `|got - expected| <= atol + rtol * |expected|`, element by element.

    `input` is an image (it goes through the preprocessing) or an `.npz` of tensors; `expected` is an `.npz` of the raw
    outputs by name.
    """

    name: Name
    input: Artifact
    expected: Artifact
    atol: Annotated[float, msgspec.Meta(ge=0)] = 1e-3
    rtol: Annotated[float, msgspec.Meta(ge=0)] = 1e-3


class Bounds(Message):
    """What the model may take on the machine. Checked on golden inputs in CHECK, on live frames in TRIAL."""

    latency_ms: Annotated[float, msgspec.Meta(gt=0)] = 1000.0  # 95th percentile of an inference, preprocessing included
    memory_mib: Annotated[int, msgspec.Meta(ge=64, le=1 << 20)] = 1024
    load_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class Variant(Message):
    """One form of a model for one kind of accelerator. Inputs and outputs are the file's own tensors."""

    name: Name
    runtime: Runtime
    accelerator: Accelerator
    artifact: Artifact
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    golden: tuple[Golden, ...]
    hardware: tuple[Name, ...] = ()  # the device must carry every one of these tags; empty fits all
    bounds: Bounds = Bounds()


class Model(Message):
    """A task with its labels, and the variants that can do it, the publisher's favourite first."""

    name: Name
    task: Task
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    variants: tuple[Variant, ...]


class Config(Message):
    """A file that is activated with the models; readers find it under `active/config/NAME`."""

    name: Name
    artifact: Artifact


class Lineage(Message):
    """Where the release comes from: kept, shown, never interpreted."""

    training_run: str = ""
    data: str = ""
    code: str = ""
    metrics: dict[str, float] = {}


class TrialRules(Message):
    """When a tried release is kept. Local evidence only: the server's reachability is never part of it."""

    healthy_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86400)] = 300.0  # adds up over boots
    min_healthy_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 60.0  # a start that reached this was no failed one
    max_failed_starts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    min_inferences: Count = 10
    max_error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3  # of an unfinished trial, before it waits for an offer


class ReleaseManifest(Message):
    """A named, immutable set of artifacts with the rules by which it is tried."""

    format: Literal[1]
    product: ProductName
    version: Version
    release_counter: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    created_ms: Millis
    models: tuple[Model, ...]
    era: Count = 0
    min_agent: Version = "0.1.0"
    hardware: tuple[Name, ...] = ()
    configs: tuple[Config, ...] = ()
    containers: Annotated[tuple[Container, ...], msgspec.Meta(max_length=limits.CONTAINERS)] = ()
    sbom: Artifact | None = None
    trial: TrialRules = TrialRules()
    frame_policy: FramePolicy = "never"
    lineage: Lineage = Lineage()
    notes: str = ""

    def artifacts(self) -> tuple[Artifact, ...]:
        """Every artifact once, in the order of first mention."""
        found: dict[str, Artifact] = {}
        for artifact in self.mentions():
            found.setdefault(artifact.sha256, artifact)
        return tuple(found.values())

    def mentions(self) -> Iterator[Artifact]:
        """Every artifact as often as it is named."""
        for model in self.models:
            for variant in model.variants:
                yield variant.artifact
                for golden in variant.golden:
                    yield from (golden.input, golden.expected)
        for config in self.configs:
            yield config.artifact
        for container in self.containers:
            for image in container.images:
                yield from image.artifacts()
        if self.sbom is not None:
            yield self.sbom


def parse_manifest(data: bytes) -> ReleaseManifest:
    """Reads a manifest whose hash was checked before.

    Raises:
        Refused: `MANIFEST` when malformed or inconsistent; `MEDIA_TYPE` for a model in a form that no backend reads;
            `LENGTH` and `LIMIT` when too large; `LENGTH` when one content is said to have two lengths.
    """
    manifest = decode(data, ReleaseManifest, limit=limits.MANIFEST_BYTES, reason=Reason.MANIFEST)
    _check(manifest)
    return manifest


def manifest_path(product: str, version: str) -> str:
    """The TUF target path of a release: `PRODUCT/releases/VERSION.json`."""
    return f"{product}/releases/{version}.json"


def _check(manifest: ReleaseManifest) -> None:
    def refuse(text: str, reason: Reason = Reason.MANIFEST) -> None:
        raise Refused(reason, f"release {manifest.product} {manifest.version}: {text}")

    if not manifest.models and not manifest.configs and not manifest.containers:
        refuse("names neither a model nor a config file nor a container")
    if len(manifest.artifacts()) > limits.MANIFEST_ARTIFACTS:
        refuse(f"more than {limits.MANIFEST_ARTIFACTS} artifacts", Reason.LIMIT)
    lengths: dict[str, int] = {}
    for artifact in manifest.mentions():
        if artifact.length_bytes > limits.ARTIFACT_BYTES:
            refuse(f"artifact {artifact.sha256[:12]} is larger than {limits.ARTIFACT_BYTES} bytes", Reason.LIMIT)
        if lengths.setdefault(artifact.sha256, artifact.length_bytes) != artifact.length_bytes:
            refuse(f"artifact {artifact.sha256[:12]} has two lengths", Reason.LENGTH)
    for kind, names in (
        ("model", [model.name for model in manifest.models]),
        ("config", [config.name for config in manifest.configs]),
        ("container", [container.name for container in manifest.containers]),
    ):
        if len(set(names)) != len(names):
            refuse(f"two {kind}s of one name")
    for model in manifest.models:
        if not model.variants:
            refuse(f"model {model.name} has no variant")
        if len({variant.name for variant in model.variants}) != len(model.variants):
            refuse(f"model {model.name} has two variants of one name")
        if len(model.labels) > limits.LABELS:
            refuse(f"model {model.name} has more than {limits.LABELS} labels", Reason.LIMIT)
        for variant in model.variants:
            where = f"model {model.name}, variant {variant.name}"
            if variant.artifact.media_type != MODEL_MEDIA_TYPES[variant.runtime]:
                refuse(f"{where}: {variant.runtime} does not read {variant.artifact.media_type}", Reason.MEDIA_TYPE)
            if not 0 < len(variant.inputs) <= limits.TENSORS or not 0 < len(variant.outputs) <= limits.TENSORS:
                refuse(f"{where}: between 1 and {limits.TENSORS} inputs and outputs", Reason.LIMIT)
            if model.task.output not in {tensor.name for tensor in variant.outputs}:
                refuse(f"{where}: the task reads output {model.task.output!r}, which the variant does not have")
            if not variant.golden:
                refuse(f"{where}: no golden input, so nobody could tell whether it works")
    check_containers(manifest.containers, models=bool(manifest.models))
