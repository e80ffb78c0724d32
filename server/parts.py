"""The parts of a release, by names that stay from one to the next: they find an artifact's predecessor. Pure."""

from protocol.ids import Digest
from protocol.release import ReleaseManifest


def parts_of(manifest: ReleaseManifest) -> dict[str, Digest]:
    """The artifact of each part: `model/NAME/VARIANT`, `golden/NAME/VARIANT/GOLDEN/input`, `config/NAME`."""
    found: dict[str, Digest] = {}
    for model in manifest.models:
        for variant in model.variants:
            where = f"{model.name}/{variant.name}"
            found[f"model/{where}"] = variant.artifact.sha256
            for golden in variant.golden:
                found[f"golden/{where}/{golden.name}/input"] = golden.input.sha256
                found[f"golden/{where}/{golden.name}/expected"] = golden.expected.sha256
    for config in manifest.configs:
        found[f"config/{config.name}"] = config.artifact.sha256
    return found
