"""What the update machine needs of the rest of the device, in its own words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from protocol.container import Image
from protocol.errors import StateError
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
    """Evidence about one release since it was last brought up.

    Args:
        digest: The release whose workers serve now; None when nothing does.
        serving: The set is complete: every model's worker is alive, loaded and warm, every container runs, is healthy
            and sees its model, and nothing else of ours runs.
        inferences: Those that finished while the set was complete, also those that failed.
        errors: Inferences that failed.
        crashes: What ended each worker that died by itself: `SIGSEGV`, `exit 1`.
        latency_ms: 95th percentile of the last inferences by model name, preprocessing included.
        faults: What speaks against its containers, each with the last lines of its log.
        late: Which of its containers are not up, or have not seen their model, in their time: it speaks against a
            release that never served.
        hindered: Why nothing can be told of its containers or done about them now; that says nothing about them.
    """

    digest: Digest | None
    serving: bool
    inferences: int = 0
    errors: int = 0
    crashes: tuple[str, ...] = ()
    latency_ms: Mapping[str, float] | None = None
    faults: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    hindered: str = ""


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
    """What serves: the processes that infer, and containers. They follow the record's active release, never decide."""

    async def converge(self, release: ReleaseSet | None, *, trial: bool = False) -> None:
        """Makes `release` the one whose workers serve; returns once they do. Doing it again changes nothing.

        A backend that can overlap is warm before the old worker lets go; frames wait meanwhile, none is dropped.
        Containers hold up no inference: they follow in their own time, and what dies of them is started again.

        Args:
            release: None for none.
            trial: It is on trial: where something served before, its containers are up before its workers switch, and
                one that does not come up is evidence. Once it serves, looks at all of it again.

        Raises:
            Refused: It does not come up; what served before goes on serving. As `Canary.check`, but `TRIAL_GOLDEN` for
                a golden input that does not hold in the worker that was to serve. On trial also `TRIAL_CONTAINER`, and
                `WRONG_HARDWARE` for a device that is not there.
            HinderedError: On trial: the engine does not do what its containers need, for a reason of its own; what
                served before goes on serving.
            StateError: On trial: what an image is loaded from is not here.
        """
        ...

    def health(self) -> Health:
        """The evidence so far. Never blocks."""
        ...


class HinderedError(StateError):
    """The machine is in the way of a release, not the release itself."""
