"""The config of a container image: what it says of layers and platform, and what it asks for without being granted it.

One rule for the builder and the machine. Engines are written in Go, whose JSON reader takes `VOLUMES` for `Volumes`
and puts two objects of one name together: what could be read in two ways is refused here, so that the engine sees what
was checked.
"""

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from protocol import limits
from protocol.container import Image, Platform, RunSpec
from protocol.errors import Reason, Refused
from protocol.ids import Digest, digest, is_digest

ORIGIN_DIGITS: Final = 16
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of signs, in the place of which engines read another sign."""
_CHANGING: Final = re.compile(r"[0-9a-f]{8,}|\d+(?:\.\d+)*")
"""What differs in a build step from one build to the next: digests that builders write into it, versions."""

_VARIANTS: Final[Mapping[str, tuple[Platform, tuple[str, ...]]]] = {
    "amd64": ("linux/amd64", ("", "v1")),
    "arm64": ("linux/arm64", ("v8", "")),
    "arm": ("linux/arm/v7", ("v7", "", "v6", "v5")),  # a v7 machine runs what older ones run
    "riscv64": ("linux/riscv64", ("",)),
}
"""By `architecture`: the platform, and those variants that every machine of it runs, the best first."""


class History(msgspec.Struct, frozen=True):
    """A build step."""

    created_by: str = ""
    empty_layer: bool = False


class _RootFS(msgspec.Struct, frozen=True):
    type: str
    diff_ids: list[str] | None = None


class _Asked(msgspec.Struct, frozen=True):
    Volumes: dict[str, Any] | None = None
    Env: list[str] | None = None
    Labels: dict[str, Any] | None = None


class _Content(msgspec.Struct, frozen=True):
    architecture: str
    os: str
    rootfs: _RootFS
    variant: str = ""
    config: _Asked | None = None
    history: list[History] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """What counts of a config.

    Args:
        platform: That its programs are for.
        layers: Diff ids, lowest first.
        volumes: Where it wants volumes: normal paths. The engine makes one wherever no mount of ours is.
        variables: Names of its environment: what a container must be told not to have.
        labels: Names of its labels, likewise: programs on a machine act on those of containers.
        steps: The build step behind each layer, or nothing when the config does not tell them all.
    """

    platform: Platform
    layers: tuple[Digest, ...]
    volumes: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    def origins(self) -> tuple[str, ...]:
        """`Layer.origin` of each layer."""
        if not self.steps:
            return ("",) * len(self.layers)
        return tuple(_origin(step) if step else "" for step in self.steps)


def parse_image_config(data: bytes) -> ImageConfig:
    """Reads a config whose hash was checked before.

    Raises:
        Refused: `LIMIT`: too long. `IMAGE`: not a config, for a machine that there is no release for, or it can be
            read in two ways.
    """
    if len(data) > limits.IMAGE_CONFIG_BYTES:
        raise Refused(Reason.LIMIT, f"an image config of more than {limits.IMAGE_CONFIG_BYTES} bytes")
    try:
        tree = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        _spelt(tree, _Content, "config")
        content = msgspec.convert(tree, _Content)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise Refused(Reason.IMAGE, f"not an image config: {error}") from error
    asked = content.config or _Asked()
    layers = _layers(content.rootfs)
    steps = tuple(step.created_by for step in content.history or () if not step.empty_layer)
    return ImageConfig(
        platform=_platform(content),
        layers=layers,
        volumes=tuple(_volume(path) for path in asked.Volumes or ()),
        variables=tuple(_variable(text) for text in asked.Env or ()),
        labels=tuple(_label(name) for name in asked.Labels or ()),
        steps=steps if len(steps) == len(layers) else (),
    )


def platform_of(os: str, architecture: str, variant: str) -> tuple[Platform, int] | None:
    """The platform that a config or an index means, and how well it fits its machines (0 is best); None: not ours."""
    platform, variants = _VARIANTS.get(architecture, (None, ()))
    if os != "linux" or platform is None or variant not in variants:
        return None
    return platform, variants.index(variant)


def check_image(data: bytes, image: Image, run: RunSpec) -> ImageConfig:
    """Whether an image's config fits what the manifest says, and asks for nothing that is not granted.

    Args:
        data: The config, its hash checked.
        image: That it is the config of.
        run: What a container of it is granted.

    Raises:
        Refused: `LIMIT`, `IMAGE`: as `parse_image_config`; other layers or another platform than the manifest says, a
            volume without a mount in exactly its place.
    """
    config = parse_image_config(data)
    if config.platform != image.platform:
        raise Refused(Reason.IMAGE, f"the image is for {config.platform}; the manifest says {image.platform}")
    if config.layers != tuple(layer.artifact.sha256 for layer in image.layers):
        raise Refused(Reason.IMAGE, "the layers are not those that the image's config names")
    check_volumes(config, run)
    return config


def check_volumes(config: ImageConfig, run: RunSpec) -> None:
    """Whether each volume that the image declares has a mount: else the engine would make one that nobody granted.

    Raises:
        Refused: `IMAGE`.
    """
    granted = {posixpath.normpath(mount.at) for mount in run.mounts}
    for path in config.volumes:
        if path not in granted:
            raise Refused(
                Reason.IMAGE,
                f"the image declares a volume at {path!r:.200}, and the run specification mounts nothing there",
                hint="add a mount there: scratch, or data when it must outlive the container",
            )


def _origin(step: str) -> str:
    return digest(_CHANGING.sub("#", step).encode(errors="surrogatepass"))[:ORIGIN_DIGITS]


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _spelt(tree: Any, kind: type[msgspec.Struct], where: str) -> None:
    """Refuses names that only differ from one that is read in how they are written."""
    if not isinstance(tree, dict):
        return
    fields = {field.name.casefold(): field for field in msgspec.structs.fields(kind)}
    for name, value in tree.items():
        field = fields.get(name.casefold())
        if field is None:
            continue
        if name != field.name:
            raise ValueError(f"{name!r:.80} in {where} may be read as {field.name!r}")
        for inner in (_RootFS, _Asked):
            if field.type in (inner, inner | None):
                _spelt(value, inner, name)
        if field.name == "history":
            for step in value if isinstance(value, list) else ():
                _spelt(step, History, name)


def _layers(rootfs: _RootFS) -> tuple[Digest, ...]:
    names = rootfs.diff_ids or []
    if rootfs.type != "layers" or not names:
        raise Refused(Reason.IMAGE, "an image without layers")
    if len(names) > limits.IMAGE_LAYERS:
        raise Refused(Reason.LIMIT, f"an image of more than {limits.IMAGE_LAYERS} layers")
    found = tuple(name.removeprefix("sha256:") for name in names)
    if not all(is_digest(layer) and name != layer for name, layer in zip(names, found, strict=True)):
        raise Refused(Reason.IMAGE, "a layer that is not named by its sha256")
    return found


def _platform(content: _Content) -> Platform:
    found = platform_of(content.os, content.architecture, content.variant)
    if found is None:
        said = "/".join(part for part in (content.os, content.architecture, content.variant) if part)
        known = ", ".join(sorted(name for name, _ in _VARIANTS.values()))
        raise Refused(Reason.IMAGE, f"an image for {said!r:.80}; releases are for {known}")
    return found[0]


def _volume(path: str) -> str:
    if not path.startswith("/") or _NO_TEXT.search(path):
        raise Refused(Reason.IMAGE, f"a volume at {path!r:.80}, which is no absolute path")
    # Go's path cleaning, which engines do, and this one differ in leading slashes alone.
    return "/" + posixpath.normpath(path).lstrip("/")


def _variable(text: str) -> str:
    name = text.partition("=")[0]
    if not name or _NO_TEXT.search(text):
        raise Refused(Reason.IMAGE, f"an environment variable without a name that can be read: {text!r:.80}")
    return name


def _label(name: str) -> str:
    if _NO_TEXT.search(name):
        raise Refused(Reason.IMAGE, f"a label whose name cannot be read: {name!r:.80}")
    return name
