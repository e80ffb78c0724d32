"""The transfer plan: how one machine comes by each artifact of a release. Pure.

For each artifact the cheapest of what is ready: nothing where the machine holds it, a patch from any base that it
holds, the compressed full payload. Prices are measured: the bytes of payload and index, less those of them that the
machine has already. So a plan changes in the middle of a transfer only where that takes fewer bytes from then on.

A patch loses against the full payload where the machine cannot apply it, has too little memory, told that it failed
there, or would take longer over it on a link whose bytes are free.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol import limits
from protocol.artifact import Artifact
from protocol.objects import Payload, Step, TransferPlan
from server.storage.records import Compressed, Pair, Patch

MEMORY_SHARE: Final = 4  # applying may take this part of a machine's memory: the rest runs models


@dataclass(frozen=True)
class Means:
    """What a machine can do, and what it has begun.

    Args:
        codecs: Versions of the codec that it applies.
        memory_mib: Its memory; 0: unknown.
        patch_rate_kib_s: Output of its applier; 0: unknown.
        link_rate_kib_s: What its link is good for; 0: unknown.
        metered: A budget limits its bytes: there the fewest bytes win, however long they take.
        failed: (patch, payload) that gave no result on it.
        parts: Bytes of payloads and indexes that need not travel again.
    """

    codecs: Collection[int] = ()
    memory_mib: int = 0
    patch_rate_kib_s: int = 0
    link_rate_kib_s: int = 0
    metered: bool = False
    failed: Collection[tuple[str, str]] = ()
    parts: Mapping[str, int] = field(default_factory=dict)


def make_plan(
    needed: Sequence[Artifact],
    have: Collection[str],
    ready: Mapping[str, Compressed],
    patches: Iterable[Patch] = (),
    means: Means = Means(),
) -> TransferPlan | None:
    """The plan, or None while a full payload is still being made: then there is no price to hold a patch against.

    Args:
        needed: What the machine must hold, from `protocol.selection`.
        have: Digests that it says it holds.
        ready: Full payloads by artifact.
        patches: That may serve; others do no harm.
        means: Of the machine.
    """
    if any(artifact.sha256 not in ready for artifact in needed):
        return None
    full = {artifact.sha256: full_step(ready[artifact.sha256]) for artifact in needed}
    deltas: dict[str, list[Step]] = {}
    for patch in patches:
        whole = full.get(patch.pair.result)
        if whole is not None and patch.pair.base in have and _may(patch, means):
            deltas.setdefault(patch.pair.result, []).append(_delta(patch, whole))
    steps = tuple(
        Step(artifact=artifact.sha256, length_bytes=artifact.length_bytes, method="have")
        if artifact.sha256 in have
        else _cheapest(full[artifact.sha256], deltas.get(artifact.sha256, ()), means)
        for artifact in needed
    )
    return TransferPlan(steps=steps, full_bytes=sum(step.travels_bytes() for step in full.values()))


def left_bytes(step: Step, parts: Mapping[str, int]) -> int:
    """What of a step would still have to travel."""
    found = (part for part in (step.payload, step.index) if part is not None)
    return sum(max(0, part.length_bytes - parts.get(part.sha256, 0)) for part in found)


def named_patches(plan: TransferPlan) -> list[str]:
    """The ids of the patches that a plan names."""
    return [
        Pair(step.base, step.artifact, step.codec).id
        for step in plan.steps
        if step.base is not None and step.codec is not None
    ]


def _cheapest(full: Step, deltas: Iterable[Step], means: Means) -> Step:
    options = [full, *(delta for delta in deltas if not _slower(delta, full, means))]
    # Of two at the same price the full one: nothing can go wrong in applying it. The digest makes it one choice always.
    return min(options, key=lambda step: (left_bytes(step, means.parts), step.method == "delta", step.base or ""))


def _may(patch: Patch, means: Means) -> bool:
    fits = not means.memory_mib or means.memory_mib >= limits.PATCH_MEMORY_MIB * MEMORY_SHARE
    failed = patch.payload is not None and (patch.pair.id, patch.payload) in means.failed
    return patch.payload is not None and patch.pair.codec in means.codecs and fits and not failed


def _slower(delta: Step, full: Step, means: Means) -> bool:
    """Whether fetching and applying would take longer than fetching the full payload, where time is what counts.

    Taken as one after the other, though a machine does both at once: close to even the full payload is the safer one.
    """
    if means.metered or not means.link_rate_kib_s or not means.patch_rate_kib_s:
        return False
    spared_s = (left_bytes(full, means.parts) - left_bytes(delta, means.parts)) / (means.link_rate_kib_s * limits.KIB)
    return delta.length_bytes / (means.patch_rate_kib_s * limits.KIB) > spared_s


def full_step(made: Compressed) -> Step:
    """The step of a full payload."""
    return Step(
        artifact=made.artifact,
        length_bytes=made.length_bytes,
        method="full",
        payload=Payload(sha256=made.payload, length_bytes=made.payload_bytes),
        index=None if made.index is None else Payload(sha256=made.index, length_bytes=made.index_bytes),
    )


def _delta(patch: Patch, full: Step) -> Step:
    assert patch.payload is not None  # else it may not
    return Step(
        artifact=full.artifact,
        length_bytes=full.length_bytes,
        method="delta",
        payload=Payload(sha256=patch.payload, length_bytes=patch.payload_bytes),
        index=None if patch.index is None else Payload(sha256=patch.index, length_bytes=patch.index_bytes),
        base=patch.pair.base,
        codec=patch.pair.codec,
        full_bytes=full.travels_bytes(),
        lifted_ms=patch.lifted_ms,
    )
