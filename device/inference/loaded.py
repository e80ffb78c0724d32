"""A model as it stands ready in a process: hashed, loaded, held against its manifest; frame in, finding out."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device.inference.backends import choose
from device.inference.backends.port import Backend, Description, Session
from device.inference.golden import compare
from device.inference.npz import read_npz
from device.inference.preprocess import Prepared, UnreadableFrame, prepare
from device.inference.tasks import Finding, interpret
from protocol import limits
from protocol.artifact import Artifact
from protocol.errors import Reason, Refused
from protocol.ids import Digest, digest
from protocol.release import Golden, Model, Tensor, TensorPreprocessing, Variant

_SCALE_TOLERANCE: Final = 1e-6  # of itself: a scale is a float32 that went through JSON


@dataclass(frozen=True)
class Inferred:
    """One frame's finding, and how long preprocessing, the model and its task took together."""

    finding: Finding
    latency_ms: float


class LoadedModel:
    """One variant of a model with its session. One thread uses it.

    Args:
        model: Task, labels and preprocessing.
        variant: What was loaded.
        session: Of the very bytes whose sha256 is `model_digest`.
        model_digest: See there.
        clock: Seconds that only ever rise.
    """

    def __init__(
        self,
        model: Model,
        variant: Variant,
        session: Session,
        model_digest: Digest,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.variant = variant
        self.session = session
        self.model_digest = model_digest
        self._clock = clock

    def infer(self, data: bytes, media_type: str) -> Inferred:
        """Decodes, infers and interprets one frame.

        Raises:
            UnreadableFrame: The frame is broken.
            Refused: The model or its manifest is.
        """
        began = self._clock()
        prepared = prepare(data, media_type, self.model.preprocessing, self.variant.inputs)
        outputs = self.session.run(prepared.feeds)
        finding = interpret(self.model, outputs, self.variant.outputs, prepared.geometry)
        return Inferred(finding, (self._clock() - began) * 1000.0)

    def hold(self, golden: Golden, data: bytes, expected: bytes) -> float:
        """Runs one golden input and compares; returns the latency in milliseconds.

        Args:
            golden: Names the case and its tolerances.
            data: The input's bytes, hash checked.
            expected: The expected outputs' bytes, hash checked.

        Raises:
            Refused: `GOLDEN` when the outputs are others; `MODEL_SHAPE`, `BOUNDS`, `MODEL_LOAD` as they come.
        """
        wanted = read_npz(expected)
        began = self._clock()
        prepared = self._prepare_golden(golden, data)
        outputs = self.session.run(prepared.feeds)
        took_ms = (self._clock() - began) * 1000.0
        compare(golden, outputs, wanted, self.model.task.output)
        # What the task makes of it is not compared, but it must make something: labels and shapes are proved here.
        interpret(self.model, outputs, self.variant.outputs, prepared.geometry)
        return took_ms

    def close(self) -> None:
        """Lets the accelerator go."""
        self.session.close()

    def _prepare_golden(self, golden: Golden, data: bytes) -> Prepared:
        try:
            if golden.input.media_type == "application/x-npz":
                # Tensors are the model's inputs as they are, for a model of images too.
                return prepare(data, golden.input.media_type, TensorPreprocessing(), self.variant.inputs)
            return prepare(data, golden.input.media_type, self.model.preprocessing, self.variant.inputs)
        except UnreadableFrame as error:
            raise Refused(Reason.GOLDEN, f"golden {golden.name}: {error}") from error


def load_model(
    model: Model, variant: Variant, path: Path, *, threads: int, backend: Backend | None = None
) -> LoadedModel:
    """Reads a model file once, checks its hash, and loads those very bytes.

    Args:
        model: From the manifest.
        variant: The one chosen for this machine.
        path: Where the file lies.
        threads: Of one inference on the CPU; 0 leaves it to the runtime.
        backend: Chosen by the variant when none is handed in.

    Raises:
        Refused: `HASH`, `LENGTH`: not the signed bytes; `EXTERNAL_DATA`, `MODEL_LOAD`, `BOUNDS`; `MODEL_SHAPE` when
            its tensors are not those that the manifest states.
    """
    data = read_artifact(path, variant.artifact)
    backend = backend or choose(variant.runtime, variant.accelerator)
    session = backend.load(data, variant.accelerator, threads=threads)
    try:
        check_description(variant, session.description)
    except Refused:
        session.close()
        raise
    return LoadedModel(model, variant, session, variant.artifact.sha256)


def read_artifact(path: Path, artifact: Artifact) -> bytes:
    """The bytes of an artifact, length and hash checked on what was read.

    Raises:
        Refused: `LENGTH`, `HASH`; the latter also when the file is missing or cannot be read: it is the store that is
            damaged then, and nothing was learnt about the release.
    """
    try:
        with path.open("rb") as file:
            data = file.read(artifact.length_bytes + 1)
    except OSError as error:
        raise Refused(Reason.HASH, f"artifact {artifact.sha256[:12]} cannot be read: {error}") from error
    if len(data) != artifact.length_bytes:
        raise Refused(Reason.LENGTH, f"artifact {artifact.sha256[:12]} is not {artifact.length_bytes} bytes long")
    if digest(data) != artifact.sha256:
        raise Refused(Reason.HASH, f"artifact {artifact.sha256[:12]} has other bytes than those signed")
    return data


def read_golden(golden: Golden, files: Mapping[Digest, Path]) -> tuple[bytes, bytes]:
    """Input and expected outputs of a golden case, hash checked.

    Raises:
        Refused: `LIMIT`, `LENGTH`, `HASH`.
    """
    for artifact in (golden.input, golden.expected):
        if artifact.length_bytes > limits.GOLDEN_BYTES:
            raise Refused(Reason.LIMIT, f"golden {golden.name} of more than {limits.GOLDEN_BYTES} bytes")
        if artifact.sha256 not in files:
            raise Refused(Reason.HASH, f"golden {golden.name}: artifact {artifact.sha256[:12]} is not there")
    return (
        read_artifact(files[golden.input.sha256], golden.input),
        read_artifact(files[golden.expected.sha256], golden.expected),
    )


def check_description(variant: Variant, description: Description) -> None:
    """Holds the file's own tensors against those that the manifest states.

    Name, type, quantisation and rank must be equal; a length must be equal, or free in the file. The layout is the
    manifest's to say, as files do not.

    Raises:
        Refused: `MODEL_SHAPE`, with the first difference.
    """
    for what, stated, found in (
        ("input", variant.inputs, description.inputs),
        ("output", variant.outputs, description.outputs),
    ):
        by_name = {tensor.name: tensor for tensor in found}
        if {tensor.name for tensor in stated} != set(by_name):
            raise Refused(
                Reason.MODEL_SHAPE,
                f"variant {variant.name}: the manifest states {what}s {[t.name for t in stated]}, the file has "
                f"{list(by_name)}",
            )
        for tensor in stated:
            if not _same(tensor, by_name[tensor.name]):
                raise Refused(
                    Reason.MODEL_SHAPE,
                    f"variant {variant.name}: the manifest states {what} {_told(tensor)}, the file has "
                    f"{_told(by_name[tensor.name])}",
                )


def _same(stated: Tensor, found: Tensor) -> bool:
    return (
        stated.dtype == found.dtype
        and len(stated.shape) == len(found.shape)
        and all(have in (-1, want) for want, have in zip(stated.shape, found.shape, strict=True))
        and abs(stated.scale - found.scale) <= _SCALE_TOLERANCE * max(abs(found.scale), 1e-30)
        and (stated.zero_point == found.zero_point or not found.scale)
    )


def _told(tensor: Tensor) -> str:
    quantised = f", scale {tensor.scale:g}, zero point {tensor.zero_point}" if tensor.scale else ""
    return f"{tensor.name!r} {tensor.dtype} {list(tensor.shape)}{quantised}"
