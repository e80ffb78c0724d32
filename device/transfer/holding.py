"""What of a plan is here already, and what it will take: names and lengths only, nothing is hashed.

What a cut tore looks whole here; it shows when a spool goes on from it, and what was paid for it is asked again then.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from device.store import Store, taken_bytes
from device.transfer import patching
from device.transfer.elsewhere import brought_part
from device.transfer.rest import read_rest
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Digest
from protocol.objects import Payload, Step, TransferPlan
from protocol.transfer import parse_index

WHOLE: Final = 0  # a payload that is kept in memory until it is whole leaves nothing behind


def held_bytes(store: Store, step: Step) -> dict[Digest, int]:
    """Of payload and index, the bytes that need not travel again; what is not here at all is left out. Blocking."""
    found = {}
    if step.payload is not None and (held := payload_held(store, step)):
        found[step.payload.sha256] = held
    if step.index is not None and _has_index(store, step.index):
        found[step.index.sha256] = step.index.length_bytes
    return found


def payload_held(store: Store, step: Step) -> int:
    """The bytes of a step's payload that need not travel again. Blocking."""
    payload = step.payload
    if payload is None:
        return 0
    if step.method == "delta":
        return patching.held_bytes(store, payload)
    if step.index is None or not _has_index(store, step.index):
        return WHOLE
    try:
        data = index_path(store, step.index).read_bytes()
        index = parse_index(data, step.length_bytes, payload.length_bytes)
    except (OSError, Refused):
        return WHOLE
    here = _length(store.part(step.artifact))
    whole = len(index.segments) if here >= step.length_bytes else here // index.segment_bytes
    if whole == len(index.segments):
        return payload.length_bytes
    return index.offset(whole) + len(read_rest(store, payload, whole, index.segments[whole].payload_bytes))


def peak_bytes(
    store: Store, steps: Sequence[Step], brought: Mapping[Digest, int] = MappingProxyType({}), *, at_once: bool = False
) -> int:
    """What the disk must still take for these steps, done one after the other. Blocking.

    All results stay; what is spooled beside a result goes before the next step begins, and so does a base that was
    brought for it, unless a later one needs it again. What is here already counts for itself.

    Args:
        store: Where everything goes.
        steps: In their order.
        brought: Lengths of the bases that are brought before the first step that needs them.
        at_once: All of them are there from the first of these steps on.
    """
    lacking = {base: max(length - _taken(brought_part(store, base)), 0) for base, length in brought.items()}
    results = 0
    beside = 0
    for number, step in enumerate(steps):
        payload = step.payload
        if payload is None:
            continue
        spool = 0
        if step.index is not None and not _has_index(store, step.index):
            spool += step.index.length_bytes
        if step.method == "delta":
            spool += patching.spool_bytes(store, payload)
        result = part_of(store, step)
        assert result is not None
        results += max(step.length_bytes - _taken(result), 0)
        before, after = ({other.base for other in some} for some in (steps[: number + 1], steps[number:]))
        spool += sum(length for base, length in lacking.items() if at_once or (base in before and base in after))
        beside = max(beside, spool)
    return results + beside  # the room of all results is set aside first


def part_of(store: Store, step: Step) -> Path | None:
    """The file that a step's result grows in; None for a step by which nothing travels."""
    if step.payload is None:
        return None
    return patching.result_path(store, step.payload) if step.method == "delta" else store.part(step.artifact)


def part_names(plan: TransferPlan) -> frozenset[Digest]:
    """The digests whose parts a transfer by this plan would go on from. What came by another way is not among them."""
    return frozenset(
        name
        for step in plan.steps
        for name in (
            *((step.artifact,) if step.method == "full" else ()),
            *(part.sha256 for part in (step.payload, step.index) if part is not None),
        )
    )


def bases(plan: TransferPlan) -> frozenset[Digest]:
    """What the plan's patches are applied to."""
    return frozenset(step.base for step in plan.steps if step.base is not None)


def begun_bases(store: Store, plan: TransferPlan) -> frozenset[Digest]:
    """The bases of patches that are applied in part: with another file of the same bytes they would begin anew."""
    return frozenset(
        step.base
        for step in plan.steps
        if step.base is not None and step.payload is not None and patching.read_note(store, step.payload) is not None
    )


def index_path(store: Store, index: Payload) -> Path:
    """Where an index is kept while its payload comes."""
    return store.part(f"{index.sha256}.index")


def _has_index(store: Store, index: Payload) -> bool:
    return index.length_bytes <= limits.INDEX_BYTES and _length(index_path(store, index)) == index.length_bytes


def _taken(path: Path) -> int:
    """What the file takes by now, with what is set aside for it."""
    try:
        return taken_bytes(path.stat())
    except FileNotFoundError:
        return 0


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
