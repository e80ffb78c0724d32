"""Which variants of a release a machine takes: one pure rule for the device that picks and the server that plans."""

from protocol.errors import Reason, Refused
from protocol.ids import Digest
from protocol.messages import Inventory
from protocol.release import Artifact, Model, ReleaseManifest, Variant


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


def needed_artifacts(manifest: ReleaseManifest, chosen: dict[str, Variant]) -> tuple[Artifact, ...]:
    """What must be on the disk to check and run the chosen variants: models, golden inputs, config files, each once."""
    found: dict[Digest, Artifact] = {}
    for variant in chosen.values():
        for artifact in (variant.artifact, *(part for g in variant.golden for part in (g.input, g.expected))):
            found.setdefault(artifact.sha256, artifact)
    for config in manifest.configs:
        found.setdefault(config.artifact.sha256, config.artifact)
    return tuple(found.values())


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
