"""The transfer plan: how one machine comes by each artifact of a release. Pure.

`have` where the machine holds it, else `full`: the payload made ahead. Patches get their place here with their issue:
the cheapest of the three by measured bytes.
"""

from collections.abc import Collection, Mapping, Sequence

from protocol.objects import Payload, Step, TransferPlan
from protocol.release import Artifact
from server.storage.records import Compressed


def make_plan(
    needed: Sequence[Artifact], have: Collection[str], ready: Mapping[str, Compressed]
) -> TransferPlan | None:
    """The plan, or None while a payload that it would need is still being made.

    Args:
        needed: What the machine must hold, from `protocol.selection`.
        have: Digests that it says it holds.
        ready: Payloads by artifact.
    """
    if any(artifact.sha256 not in ready for artifact in needed):
        return None
    full = {artifact.sha256: _full(ready[artifact.sha256]) for artifact in needed}
    steps = tuple(
        Step(artifact=artifact.sha256, length_bytes=artifact.length_bytes, method="have")
        if artifact.sha256 in have
        else full[artifact.sha256]
        for artifact in needed
    )
    return TransferPlan(steps=steps, full_bytes=sum(step.travels_bytes() for step in full.values()))


def _full(made: Compressed) -> Step:
    return Step(
        artifact=made.artifact,
        length_bytes=made.length_bytes,
        method="full",
        payload=Payload(sha256=made.payload, length_bytes=made.payload_bytes),
        index=None if made.index is None else Payload(sha256=made.index, length_bytes=made.index_bytes),
    )
