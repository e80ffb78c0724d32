"""Reads what a release description names: files become artifacts in the workspace, models tell their tensors."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from protocol.artifact import Artifact, MediaType
from protocol.container import Container, Platform, RunSpec, check_kinds
from protocol.errors import Reason, Refused, SettingsError, StateError, said_of
from protocol.ids import Name
from protocol.image_config import check_volumes, parse_image_config
from protocol.release import Config, Golden, Layout, Model, Runtime, Tensor, Variant
from signing.checker import Checker, Described
from signing.images.content import Found, Say
from signing.images.intake import Intake
from signing.images.programs import check_programs
from signing.release_description import (
    ConfigDescription,
    ContainerDescription,
    GoldenDescription,
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


class FoundImage(NamedTuple):
    """An image of a container, before its layers are taken in."""

    text: str
    found: Found
    hardware: tuple[Name, ...]


class FoundContainer(NamedTuple):
    """A container with all its images, the layers of which are still where they were found."""

    name: Name
    run: RunSpec
    images: tuple[FoundImage, ...]


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

    @contextmanager
    def found(self, containers: Sequence[ContainerDescription]) -> Iterator[tuple[FoundContainer, ...]]:
        """All images of all containers, for `taken` while this is open: what is wrong with one is said before any
        layer is fetched.

        Raises:
            SettingsError: An image that is not there.
            StateError: The same, of an engine or a registry; no image for a platform.
            Refused: An image that no machine would take.
            LinkError: No answer.
        """
        with ExitStack() as held:

            @functools.cache  # containers may share an image
            def find(text: str, platforms: tuple[Platform, ...]) -> tuple[Found, ...]:
                return held.enter_context(self.intake.find(text, platforms))

            yield tuple(_found(container, find) for container in containers)

    def taken(self, container: FoundContainer) -> Container:
        """A container whose images are in the workspace, with all their layers.

        Raises:
            StateError, Refused, LinkError: As `Intake.take`.
            Refused: `IMAGE`: a program of its commands is not in an image.
        """
        self.say(f"container {container.name}")
        with said_of(f"container {container.name}"):
            images = tuple(self.intake.take(*image) for image in container.images)
            for image in images:
                layers = [self.workspace.blob(layer.artifact.sha256) for layer in image.layers]
                with said_of(image.platform):
                    check_programs(layers, container.run)
        return Container(name=container.name, images=images, run=container.run)

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


def _found(
    container: ContainerDescription, find: Callable[[str, tuple[Platform, ...]], tuple[Found, ...]]
) -> FoundContainer:
    images: list[FoundImage] = []
    run = container.run()
    for each in container.all_images():
        with said_of(f"container {container.name}"):
            for found in find(each.image, each.platforms):
                with said_of(f"{each.image}, {found.platform}"):
                    check_volumes(parse_image_config(found.config), run)
                images.append(FoundImage(each.image, found, each.hardware))
    check_kinds(container.name, [(image.found.platform, image.hardware) for image in images])
    return FoundContainer(container.name, run, tuple(images))


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
