"""What goes into a kit, and what is left out when it must fit. Pure.

Full payloads of everything its machines may need are never left out: a kit must serve a machine that lost its base.
Patches are: they only save time. The first to go are those that fewest machines would use, of these the largest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from protocol import limits
from protocol.errors import StateError
from protocol.kits import KitRelease
from protocol.objects import Payload, Step
from signing.kits.offer import KitOffer, OfferedRelease, OfferedStep

BlobKind = Literal["manifest", "full", "delta"]
STEP_BYTES: Final = 700  # of a step in `kit.json`, at most
CLUSTER_BYTES: Final = 32 * limits.KIB  # what files are rounded up to on a stick that does not say


@dataclass(frozen=True)
class Blob:
    """One blob of a kit."""

    sha256: str
    length_bytes: int
    kind: BlobKind
    what: str


@dataclass(frozen=True)
class KitPlan:
    """What a kit holds.

    Args:
        releases: As they are signed.
        blobs: Each once.
        left_out: Patches that did not fit.
    """

    releases: tuple[KitRelease, ...]
    blobs: tuple[Blob, ...]
    left_out: tuple[OfferedStep, ...] = field(default=())

    def bytes_of(self, kind: BlobKind) -> int:
        """Bytes of all blobs of a kind."""
        return sum(blob.length_bytes for blob in self.blobs if blob.kind == kind)

    @property
    def blob_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.length_bytes for blob in self.blobs)


def plan_kit(offer: KitOffer, metadata: Sequence[int], fit_bytes: int | None, cluster_bytes: int) -> KitPlan:
    """The plan.

    Args:
        offer: The server's answer, all payloads ready.
        metadata: Length of each file of both repositories.
        fit_bytes: All of the kit takes no more; None: as much as it needs.
        cluster_bytes: Each file takes a multiple of that.

    Raises:
        StateError: It cannot be made to fit; says by how much, and what each release takes.
    """
    deltas = sorted(
        {
            (release.release, each.step.payload.sha256): each
            for release in offer.releases
            for each in _deltas(release)
            if each.step.payload is not None
        }.items(),
        key=lambda item: (item[1].machines, -item[1].step.travels_bytes(), item[0]),
    )
    left_out: list[OfferedStep] = []
    while True:
        dropped = {id(each) for each in left_out}
        kept = [
            (release, [each.step for each in release.steps if id(each) not in dropped]) for release in offer.releases
        ]
        plan = KitPlan(
            releases=tuple(
                KitRelease(release=release.release, manifest=release.manifest, steps=tuple(steps))
                for release, steps in kept
            ),
            blobs=tuple(_blobs(kept)),
            left_out=tuple(left_out),
        )
        needs = needs_bytes(plan, offer.machines, metadata, cluster_bytes)
        over = needs - fit_bytes if fit_bytes is not None else 0
        if over <= 0:
            return plan
        if not deltas:
            raise _too_large(plan, over)
        left_out.append(deltas.pop(0)[1])


def needs_bytes(
    plan: KitPlan, machines: Sequence[str] | None, metadata: Iterable[int], cluster_bytes: int = CLUSTER_BYTES
) -> int:
    """What a kit takes on a stick, about: files take up whole clusters.

    Args:
        plan: Its blobs.
        machines: Named in it.
        metadata: Length of each file of both repositories.
        cluster_bytes: Of the stick's file system.
    """
    steps = sum(len(release.steps) for release in plan.releases)
    kit_json = steps * STEP_BYTES + sum(len(name) + 4 for name in machines or ()) + 16 * limits.KIB
    return sum(
        -(-length // cluster_bytes) * cluster_bytes
        for length in (*(blob.length_bytes for blob in plan.blobs), *metadata, kit_json)
    )


def _deltas(release: OfferedRelease) -> Iterable[OfferedStep]:
    return (each for each in release.steps if each.step.method == "delta")


def _blobs(kept: Sequence[tuple[OfferedRelease, list[Step]]]) -> Iterable[Blob]:
    found: dict[str, Blob] = {}

    def add(payload: Payload | None, kind: BlobKind, what: str) -> None:
        if payload is not None:
            found.setdefault(payload.sha256, Blob(payload.sha256, payload.length_bytes, kind, what))

    for release, steps in kept:
        add(release.manifest, "manifest", f"manifest of {release.release}")
        for step in steps:
            kind: BlobKind = "delta" if step.method == "delta" else "full"
            add(step.payload, kind, f"{release.release} {step.artifact[:12]} {'patch' if kind == 'delta' else 'whole'}")
            add(step.index, kind, f"{release.release} {step.artifact[:12]} index")
    return found.values()


def _too_large(plan: KitPlan, over: int) -> StateError:
    each = ", ".join(
        f"{release.release} takes {sum(step.travels_bytes() for step in release.steps):,}" for release in plan.releases
    )
    return StateError(
        f"without any patch it is still {over:,} bytes too large ({each})",
        hint="leave out a release, or make a kit for each kind of hardware: name its machines (--machine, --group)",
    )
