"""Which variants and images of a release a machine takes: one rule for the device, which picks, and the server, which
plans. Pure."""

from collections.abc import Mapping

from protocol.artifact import Artifact
from protocol.container import PLATFORMS, Container, Image
from protocol.errors import Reason, Refused
from protocol.ids import Digest
from protocol.messages import Inventory
from protocol.release import Model, ReleaseManifest, Variant


def select_variants(manifest: ReleaseManifest, inventory: Inventory) -> dict[str, Variant]:
    """The best variant of each model that the machine can run, by model name.

    The machine's order of accelerators decides (best first), then the manifest's order of variants.

    Raises:
        Refused: `WRONG_HARDWARE`, with what the machine has and what the model would need.
    """
    missing = set(manifest.hardware) - set(inventory.hardware)
    if missing:
        raise Refused(Reason.WRONG_HARDWARE, f"the release is for machines tagged {sorted(missing)}; this one is not")
    return {model.name: _best(model, inventory) for model in manifest.models}


def select_images(manifest: ReleaseManifest, inventory: Inventory) -> dict[str, Image]:
    """The image of each container that the machine can run, by container name: the first that fits.

    Raises:
        Refused: `WRONG_HARDWARE`, with what the machine is and what there are images for.
    """
    return {container.name: _fitting(container, inventory) for container in manifest.containers}


def needed_artifacts(
    manifest: ReleaseManifest, chosen: Mapping[str, Variant], images: Mapping[str, Image]
) -> tuple[Artifact, ...]:
    """What a machine must have to check and run what was chosen, each once: models, golden inputs, images, configs."""
    found: dict[Digest, Artifact] = {}
    for variant in chosen.values():
        for artifact in (variant.artifact, *(part for g in variant.golden for part in (g.input, g.expected))):
            found.setdefault(artifact.sha256, artifact)
    for image in images.values():
        for artifact in image.artifacts():
            found.setdefault(artifact.sha256, artifact)
    for config in manifest.configs:
        found.setdefault(config.artifact.sha256, config.artifact)
    return tuple(found.values())


def _fitting(container: Container, inventory: Inventory) -> Image:
    platform = PLATFORMS.get(inventory.platform)
    for image in container.images:
        if image.platform == platform and set(image.hardware) <= set(inventory.hardware):
            return image
    kinds = sorted({" with ".join((image.platform, *image.hardware)) for image in container.images})
    raise Refused(
        Reason.WRONG_HARDWARE,
        f"container {container.name} has images for {kinds}; this machine is {platform or inventory.platform}"
        f"{f' with {list(inventory.hardware)}' if inventory.hardware else ''}",
    )


def _best(model: Model, inventory: Inventory) -> Variant:
    for accelerator in inventory.accelerators:
        for variant in model.variants:
            if variant.accelerator == accelerator and set(variant.hardware) <= set(inventory.hardware):
                return variant
    raise Refused(
        Reason.WRONG_HARDWARE,
        f"model {model.name} has variants for {sorted({v.accelerator for v in model.variants})}; "
        f"this machine runs {list(inventory.accelerators)}",
    )
