"""What is to run, as one value: the keeper of containers is given another one, and never half of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from device.containers.reconcile import Wanted
from device.update.ports import ReleaseSet
from protocol.container import spec_digest
from protocol.ids import Digest


@dataclass(frozen=True)
class Aim:
    """The containers of one release.

    Args:
        wanted: By container name.
        models: Digests of the release's models on this machine.
        since_s: From when on.
        trial: It is on trial: what speaks against it is told, and mended only as far as its rules bear.
        held: The workers of the release do not serve yet: what they follow goes on.
        switched_s: Since when they serve.
    """

    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    models: frozenset[Digest] = frozenset()
    since_s: float = 0.0
    trial: bool = False
    held: bool = False
    switched_s: float | None = None

    @property
    def specs(self) -> frozenset[Digest]:
        """What runs when this is reached."""
        return frozenset(one.spec for one in self.wanted.values())


def make_aim(release: ReleaseSet | None, now_s: float, *, trial: bool = False, held: bool = False) -> Aim:
    """What is to run for a release; nothing for None."""
    if release is None:
        return Aim(since_s=now_s, switched_s=now_s)
    wanted = {}
    for container in release.manifest.containers:
        image = release.images[container.name]
        spec = spec_digest(container.name, image.config.sha256, container.run)
        wanted[container.name] = Wanted(container, image, spec)
    return Aim(
        wanted=wanted,
        models=frozenset(variant.artifact.sha256 for variant in release.variants.values()),
        since_s=now_s,
        trial=trial,
        held=held,
        switched_s=None if held else now_s,
    )
