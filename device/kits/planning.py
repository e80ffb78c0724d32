"""What of a kit a machine may take, and the cheapest way to it. Pure: facts in, a plan or the reason against it out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from device.trust.port import Listed, Terms
from protocol.artifact import Artifact
from protocol.delta.patch import CODEC
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import Digest
from protocol.kits import KitBody, KitRelease
from protocol.objects import Step, TransferPlan


@dataclass(frozen=True)
class Standing:
    """A release of a kit, as it stands to what this machine has.

    Args:
        release: Of the kit.
        listed: As the managers list it now.
        is_new: It is above all that was committed here.
        is_permitted: It is not, and the managers permitted this machine to go back to it.
    """

    release: KitRelease
    listed: Listed
    is_new: bool
    is_permitted: bool

    @property
    def rank(self) -> tuple[int, int]:
        """Era and counter."""
        return (self.listed.era, self.listed.release_counter)


def rank(kit: KitBody, terms: Terms, floor: tuple[int, int]) -> tuple[Standing, ...]:
    """What of a kit is listed, the newest first.

    Args:
        kit: Judged.
        terms: The newest trusted.
        floor: Era and counter of what was committed.
    """
    permitted = {permit.manifest for permit in terms.permits}
    found = []
    for release in kit.releases:
        listed = terms.listed.get(release.manifest.sha256)
        if listed is not None:
            is_new = (listed.era, listed.release_counter) > floor
            is_permitted = not is_new and release.manifest.sha256 in permitted
            found.append(Standing(release, listed, is_new, is_permitted))
    return tuple(sorted(found, key=lambda one: one.rank, reverse=True))


def plan(
    release: KitRelease,
    needed: Sequence[Artifact],
    *,
    have: Collection[Digest],
    lacking: frozenset[Digest],
    has_failed: Callable[[Step], bool],
) -> TransferPlan:
    """The cheapest step for each artifact that this machine needs.

    Args:
        release: With all steps that the kit has.
        needed: What the machine must have afterwards.
        have: What it holds, in the store or in the engine.
        lacking: Blobs that no stick at hand gives as they should be.
        has_failed: Whether a patch gave no result here before.

    Raises:
        Refused: `WRONG_HARDWARE`: the kit has no way to an artifact.
        LinkError: It has, and the blobs for it are damaged or missing on the sticks at hand.
    """
    steps = []
    for artifact in needed:
        if artifact.sha256 in have:
            steps.append(Step(artifact=artifact.sha256, length_bytes=artifact.length_bytes, method="have"))
            continue
        ways = [step for step in release.steps if step.artifact == artifact.sha256 and _is_way(step, have)]
        if not ways:
            raise Refused(
                Reason.WRONG_HARDWARE,
                f"this kit was not made for this hardware: it has no way to {artifact.sha256[:12]} of release "
                f"{release.release}",
                hint="make one for this machine: headland kit build --machine",
            )
        whole = [step for step in ways if not lacking.intersection(_blobs(step))] if lacking else ways
        good = [step for step in whole if step.method == "full" or not has_failed(step)]
        if not good and whole:
            raise LinkError(
                f"the patches of this kit to {artifact.sha256[:12]} gave no result here, and it has no whole file",
                retryable=False,
                hint="make a kit with whole files for this machine",
            )
        if not good:
            raise LinkError(
                f"files of the kit for release {release.release} are damaged or missing on the sticks at hand",
                retryable=False,
                hint="plug in another copy of the kit; `headland kit verify` tells a good one",
            )
        steps.append(min(good, key=lambda step: (step.travels_bytes(), step.method)))
    full = sum(step.full_bytes or step.travels_bytes() for step in steps)
    return TransferPlan(steps=tuple(steps), full_bytes=full)


def _is_way(step: Step, have: Collection[Digest]) -> bool:
    if step.payload is None:
        return False
    return step.method == "full" or (step.method == "delta" and step.base in have and step.codec == CODEC)


def _blobs(step: Step) -> set[Digest]:
    return {part.sha256 for part in (step.payload, step.index) if part is not None}
