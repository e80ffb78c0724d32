"""Reads what a release description names: files become artifacts in the workspace, models tell their tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from protocol.artifact import Artifact, MediaType
from protocol.container import Container, Image
from protocol.errors import Reason, Refused, SettingsError, StateError
from protocol.image_config import check_image
from protocol.limits import IMAGE_CONFIG_BYTES
from protocol.release import Config, Golden, Layout, Model, Runtime, Tensor, Variant
from signing.checker import Checker, Described
from signing.images.content import Say
from signing.images.intake import Intake
from signing.images.reference import EXAMPLE
from signing.release_description import (
    ConfigDescription,
    ContainerDescription,
    GoldenDescription,
    ImageDescription,
    ModelDescription,
    VariantDescription,
)
from signing.workspace import Workspace

RUNTIME_OF_SUFFIX: Final[Mapping[str, Runtime]] = {".onnx": "onnxruntime", ".tflite": "litert"}
MEDIA_TYPE_OF_SUFFIX: Final[Mapping[str, MediaType]] = {
    ".npz": "application/x-npz",
    ".json": "application/json",
    ".toml": "application/toml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".txt": "text/plain",
}


@dataclass(frozen=True)
class Gathering:
    """Gathers the parts of one description.

    Args:
        workspace: Where artifacts are kept.
        folder: What the description's paths are relative to.
        checker: Reads model files.
        intake: Takes images in.
        say: Hears what is being done.
    """

    workspace: Workspace
    folder: Path
    checker: Checker
    intake: Intake
    say: Say

    def model(self, model: ModelDescription) -> Model:
        """A model with all its variants.

        Raises:
            SettingsError: A file that is not there, labels twice or no text.
            StateError: Tensors that are neither stated nor readable here.
            Refused: A file that no machine would take.
        """
        labels = model.labels
        if model.labels_file is not None:
            if labels:
                raise SettingsError(f"model {model.name}: labels or labels_file, not both")
            path = self._path(model.labels_file)
            try:
                labels = tuple(path.read_text(encoding="utf-8").splitlines())
            except UnicodeDecodeError as error:
                raise SettingsError(f"{path}: cannot be read as text: {error}", hint="save it as UTF-8") from error
        return Model(
            name=model.name,
            task=model.task,
            preprocessing=model.preprocessing,
            labels=labels,
            variants=tuple(self._variant(model, variant) for variant in model.variants),
        )

    def config(self, config: ConfigDescription) -> Config:
        """A config artifact."""
        return Config(name=config.name, artifact=self.artifact(config.file, config.media_type))

    def container(self, container: ContainerDescription) -> Container:
        """A container with the images of all its platforms.

        Raises:
            SettingsError: It names no image.
            Refused: `IMAGE`: an image that no machine would take.
        """
        described = container.images or ((ImageDescription(image=container.image),) if container.image else ())
        if not described or (container.images and container.image):
            raise SettingsError(f"container {container.name}: name one `image`, or several `images`", hint=EXAMPLE)
        images: list[Image] = []
        for each in described:
            found = self.intake.take(each.image, each.platforms or container.platforms, each.hardware)
            images += found
        made = Container(name=container.name, images=tuple(images), run=container.run())
        for image in images:
            try:
                check_image(self.workspace.read_blob(image.config.sha256, IMAGE_CONFIG_BYTES), image, made.run)
            except Refused as error:
                raise Refused(
                    error.reason, f"container {made.name}, {image.platform}: {error.message}", hint=error.hint
                ) from error
        return made

    def artifact(self, name: str, media_type: MediaType | None = None) -> Artifact:
        """Keeps a file.

        Raises:
            SettingsError: It is not there.
            Refused: `MEDIA_TYPE`: files of this kind do not travel.
        """
        path = self._path(name)
        kind = media_type or MEDIA_TYPE_OF_SUFFIX.get(path.suffix.lower())
        if kind is None:
            known = ", ".join(sorted(MEDIA_TYPE_OF_SUFFIX))
            raise Refused(Reason.MEDIA_TYPE, f"{path.name}: files of this kind do not travel; known: {known}")
        sha256, length = self.workspace.add_blob_file(path)
        return Artifact(sha256=sha256, length_bytes=length, media_type=kind)

    def _variant(self, model: ModelDescription, variant: VariantDescription) -> Variant:
        path = self._path(variant.file)
        runtime = variant.runtime or RUNTIME_OF_SUFFIX.get(path.suffix.lower())
        if runtime is None:
            raise Refused(Reason.MEDIA_TYPE, f"{path.name}: machines run .onnx and .tflite; else state the runtime")
        described = self._tensors(path, runtime, variant)
        media_type: MediaType = "application/onnx" if runtime == "onnxruntime" else "application/vnd.tflite"
        return Variant(
            name=variant.name,
            runtime=runtime,
            accelerator=variant.accelerator,
            artifact=self.artifact(variant.file, media_type),
            inputs=_laid_out(described.inputs, variant.input_layout),
            outputs=_laid_out(described.outputs, variant.output_layout),
            golden=tuple(self._golden(golden) for golden in variant.golden or model.golden),
            hardware=variant.hardware,
            bounds=variant.bounds,
        )

    def _tensors(self, path: Path, runtime: Runtime, variant: VariantDescription) -> Described:
        stated = None
        if variant.inputs and variant.outputs:
            stated = Described(inputs=variant.inputs, outputs=variant.outputs)
        # The compiler for the Edge TPU leaves an operator that the ordinary runtime cannot load.
        if self.checker.can_read(runtime) and variant.accelerator != "edgetpu":
            self.say(f"reading {path.name}")
            try:
                found = self.checker.describe(path)
            except Refused as error:  # the runtimes speak of the model, not of its file
                raise Refused(error.reason, f"{path.name}: {error.message}", hint=error.hint) from error
            return found if stated is None else _agreed(path.name, stated, found)
        if stated is None:
            raise StateError(
                f"{path.name} cannot be read here, so its tensors are not known",
                hint=f"install {runtime}, or state inputs and outputs of variant {variant.name} in the description",
            )
        return stated

    def _golden(self, golden: GoldenDescription) -> Golden:
        return Golden(
            name=golden.name,
            input=self.artifact(golden.input),
            expected=self.artifact(golden.expected),
            atol=golden.atol,
            rtol=golden.rtol,
        )

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise SettingsError(f"{path}: there is no such file")
        return path


def _agreed(name: str, stated: Described, found: Described) -> Described:
    """The stated tensors, when the file has the same names and ranks; the checker compares the rest."""
    for mine, its in ((stated.inputs, found.inputs), (stated.outputs, found.outputs)):
        if {(t.name, t.dtype, len(t.shape)) for t in mine} != {(t.name, t.dtype, len(t.shape)) for t in its}:
            raise Refused(
                Reason.MODEL_SHAPE,
                f"{name} has {[(t.name, t.dtype, t.shape) for t in its]}, "
                f"the description states {[(t.name, t.dtype, t.shape) for t in mine]}",
            )
    return stated


def _laid_out(tensors: tuple[Tensor, ...], layout: Layout | None) -> tuple[Tensor, ...]:
    if layout is None:
        return tensors
    return tuple(msgspec.structs.replace(t, layout=layout) if len(t.shape) == 4 else t for t in tensors)
