"""The release description: a small strict TOML beside the model files, as the release manager writes it.

    product = "pest-detector"
    version = "1.0.0"
    counter = 1

    [[models]]
    name = "leaf"
    labels = ["aphid", "beetle"]                        # or labels_file = "labels.txt", one a line
    task = { kind = "detect", output = "grid", decoder = "grid", alarm_labels = ["beetle"] }
    preprocessing = { kind = "image", width = 96, height = 96 }

    [[models.variants]]
    name = "onnx-cpu"
    file = "leaf.onnx"
    bounds = { latency_ms = 200, memory_mib = 512 }
    golden = [{ name = "beetle", input = "beetle.png", expected = "beetle.npz" }]

    [[containers]]
    name = "sprayer"
    image = "oci:build/sprayer:1.0"                     # or archive:FILE, engine:NAME, registry:HOST/NAME:TAG
    command = ["/sprayer", "--boom", "3"]
    mounts = [{ kind = "release" }, { kind = "scratch", at = "/tmp" }]

Beside `name` and `image`, a container takes every field of `protocol.container.RunSpec`. Paths are relative to the
description. What a model file says of itself (runtime, tensors) need not be repeated.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from protocol.artifact import MediaType
from protocol.container import Platform, RunSpec
from protocol.errors import SettingsError, said_of
from protocol.ids import Name, ProductName, Version
from protocol.release import (
    Accelerator,
    Bounds,
    FramePolicy,
    Layout,
    Lineage,
    Preprocessing,
    Runtime,
    Task,
    Tensor,
    TrialRules,
)
from protocol.settings import Settings, parse_settings
from signing.images.reference import EXAMPLE, check_reference

DEFAULT_NAME = "release.toml"
"""What `release build FOLDER` looks for."""


class GoldenDescription(Settings):
    """An input, an image or an `.npz`, and the `.npz` of raw outputs that it must give."""

    name: Name
    input: str
    expected: str
    atol: Annotated[float, msgspec.Meta(ge=0)] = 1e-3
    rtol: Annotated[float, msgspec.Meta(ge=0)] = 1e-3


class VariantDescription(Settings):
    """A model file. Tensors are read from the file; state them only for files that nothing here can read."""

    name: Name
    file: str
    golden: tuple[GoldenDescription, ...] = ()  # none: those of the model
    runtime: Runtime | None = None  # from the file's suffix
    accelerator: Accelerator = "cpu"
    hardware: tuple[Name, ...] = ()
    bounds: Bounds = Bounds()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    input_layout: Layout | None = None  # of inputs with four dimensions, when the file's shape does not tell
    output_layout: Layout | None = None


class ModelDescription(Settings):
    """A task, its labels, and the variants, the favourite first."""

    name: Name
    task: Task
    preprocessing: Preprocessing
    variants: tuple[VariantDescription, ...]
    labels: tuple[str, ...] = ()
    labels_file: str | None = None
    golden: tuple[GoldenDescription, ...] = ()  # for variants that name none of their own


class ConfigDescription(Settings):
    """A file that is activated with the models."""

    name: Name
    file: str
    media_type: MediaType | None = None  # from the suffix


class ImageDescription(Settings):
    """An image of a container: what it is taken from, and which of what is found there."""

    image: str
    platforms: tuple[Platform, ...] = ()  # none: those of the container
    hardware: tuple[Name, ...] = ()


class ContainerDescription(RunSpec, kw_only=True):
    """A container: what it is made from, and, as fields of its own, all that it is granted."""

    name: Name
    image: str = ""
    images: tuple[ImageDescription, ...] = ()  # instead of `image`, when there are several: by hardware, or by platform
    platforms: tuple[Platform, ...] = ()  # only these of a multi-platform image; none: all that releases are for

    def all_images(self) -> tuple[ImageDescription, ...]:
        """Where its images are, each with the platforms that are wanted of it.

        Raises:
            SettingsError: Nowhere, in two ways, or where nothing can be looked for.
        """
        if bool(self.image) == bool(self.images):
            raise SettingsError(f"container {self.name}: name one `image`, or several `images`", hint=EXAMPLE)
        every = self.images or (ImageDescription(image=self.image),)
        with said_of(f"container {self.name}"):
            for each in every:
                check_reference(each.image)
        return tuple(msgspec.structs.replace(each, platforms=each.platforms or self.platforms) for each in every)

    def run(self) -> RunSpec:
        """What it is granted."""
        return RunSpec(**{field: getattr(self, field) for field in RunSpec.__struct_fields__})


class ReleaseDescription(Settings):
    """The whole file."""

    product: ProductName
    version: Version
    counter: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    models: tuple[ModelDescription, ...] = ()
    configs: tuple[ConfigDescription, ...] = ()
    containers: tuple[ContainerDescription, ...] = ()
    sbom: str | None = None  # a JSON file
    hardware: tuple[Name, ...] = ()
    min_agent: Version = "0.1.0"
    trial: TrialRules = TrialRules()
    frame_policy: FramePolicy = "never"
    lineage: Lineage = Lineage()
    notes: str = ""


def read_description(path: Path) -> tuple[Path, ReleaseDescription]:
    """Reads a description.

    Args:
        path: The file, or a folder with a `release.toml`.

    Returns:
        The folder that its paths are relative to, and the record.

    Raises:
        SettingsError: Absent, unknown keys, wrong values; with the line.
    """
    file = path / DEFAULT_NAME if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{file}: cannot be read as text: {error}") from error
    return file.parent, parse_settings(text, ReleaseDescription, source=str(file))
