"""What the update machine needs of the rest of the device, in its own words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from protocol.container import Image
from protocol.ids import Digest
from protocol.release import ReleaseManifest, Variant


@dataclass(frozen=True)
class ReleaseSet:
    """A whole release as it lies in the store: what workers are started from.

    Args:
        digest: sha256 of the manifest's bytes; the identity of the release.
        manifest: Parsed.
        variants: The variant chosen for this machine, by model name.
        files: Where each needed artifact lies, by digest. Layers that the engine holds may lie nowhere else.
        images: The image chosen for this machine, by container name.
    """

    digest: Digest
    manifest: ReleaseManifest
    variants: Mapping[str, Variant]
    files: Mapping[Digest, Path]
    images: Mapping[str, Image] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """Evidence about the workers of one release since they were last started for it.

    Args:
        digest: The release that serves now; None when nothing does.
        serving: Every model's worker is alive, loaded and warm.
        inferences: Finished ones, also those that failed.
        errors: Inferences that failed.
        crashes: What ended each worker that died by itself: `SIGSEGV`, `exit 1`.
        latency_ms: 95th percentile of the last inferences by model name, preprocessing included.
    """

    digest: Digest | None
    serving: bool
    inferences: int = 0
    errors: int = 0
    crashes: tuple[str, ...] = ()
    latency_ms: Mapping[str, float] | None = None


class Canary(Protocol):
    """Tries a release in a throw-away process, beside what runs."""

    async def check(self, release: ReleaseSet) -> None:
        """Loads every model and holds every golden input, under the limits of the manifest's bounds.

        Raises:
            Refused: `MODEL_LOAD`, `MODEL_CRASH`, `MODEL_SHAPE`, `GOLDEN`, `BOUNDS`, `EXTERNAL_DATA`; `HASH`, `LENGTH`
                when a file is missing or not what was signed, which says nothing about the release.
        """
        ...


class Workers(Protocol):
    """The processes that infer. They follow the record's active release, they never decide."""

    async def converge(self, release: ReleaseSet | None) -> None:
        """Makes `release` the one that serves; returns once it does. Doing it again changes nothing.

        A backend that can overlap is warm before the old worker lets go; frames wait meanwhile, none is dropped.

        Raises:
            Refused: It does not come up; what served before goes on serving. As `Canary.check`, but `TRIAL_GOLDEN` for
                a golden input that does not hold in the worker that was to serve.
        """
        ...

    def health(self) -> Health:
        """The evidence so far. Never blocks."""
        ...
