"""The parts of a release, by names that stay from one to the next: they find an artifact's predecessor. Pure.

A layer has several names, for it may be changed, inserted, left out or moved: what build step made it, and where it
stands from the bottom and from the top. A step that is the same says most; places count where no step does.
"""

from collections import Counter
from collections.abc import Collection
from typing import Final

from protocol.container import Container
from protocol.ids import Digest
from protocol.release import ReleaseManifest
from server.storage.records import Likeness

_PLACES: Final = ("bottom", "top")


def parts_of(manifest: ReleaseManifest) -> dict[str, Digest]:
    """The artifact of each part: `model/NAME/VARIANT`, `golden/NAME/VARIANT/GOLDEN/input`, `config/NAME`.

    Of an image, `image/CONTAINER/PLATFORM/TAG,TAG` and behind it `config`, `step/ORIGIN/N` (the N-th layer of that
    step), `bottom/N` and `top/N` (the N-th from there).
    """
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
    for container in manifest.containers:
        found |= _images(container)
    return found


def likely(alike: Collection[Likeness]) -> dict[tuple[Digest, Digest], int]:
    """Which (base, result) are worth a patch, with the machines that it would serve.

    A layer whose step is known in the older release comes from there and from nowhere else. Only without one does its
    place count, and then no layer is its base that the new release keeps as it is: that one is still where it was.
    """
    stepped = {_where(each) for each in alike if _kind(each.part) == "step"}
    return {
        (each.base, each.result): each.machines
        for each in alike
        if _kind(each.part) not in _PLACES or not (each.goes_on or _where(each) in stepped)
    }


def _images(container: Container) -> dict[str, Digest]:
    found: dict[str, Digest] = {}
    for image in container.images:
        where = f"image/{container.name}/{image.platform.replace('/', '-')}/{','.join(image.hardware)}"
        found[f"{where}/config"] = image.config.sha256
        counts: Counter[str] = Counter()
        for number, layer in enumerate(image.layers):
            if layer.origin:
                found[f"{where}/step/{layer.origin}/{counts[layer.origin]}"] = layer.artifact.sha256
                counts[layer.origin] += 1
            found[f"{where}/bottom/{number}"] = layer.artifact.sha256
            found[f"{where}/top/{len(image.layers) - 1 - number}"] = layer.artifact.sha256
    return found


def _kind(part: str) -> str:
    words = part.split("/")
    return words[4] if words[0] == "image" else words[0]


def _where(each: Likeness) -> tuple[str, str, str, Digest]:
    """A layer of an image in a step from one release to another."""
    image = "/".join(each.part.split("/")[:4])
    return each.old_manifest, each.manifest, image, each.result
