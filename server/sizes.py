"""What a release takes over the air, in full and from each release that machines may come from."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.storage.catalog import Session
from server.storage.records import Compressed, Patch, Release


def travel_sizes(session: Session, release: Release, known: Sequence[Release]) -> dict[str, Any]:
    """The fields `full_bytes` and `deltas` of a release.

    A release holds variants for every kind of machine and a machine takes some: these are sums over all artifacts.

    Args:
        session: Of the catalog.
        release: Which.
        known: All releases of its product, or of all products.

    Returns:
        `full_bytes`: None while payloads are being made. `deltas`: for each older release from which a patch is ready
        or being made: `version`, `manifest`, `delta_bytes` (what is cheaper in full counts in full), `patches`; and
        `patches_waiting` for all together.
    """
    older = [
        each
        for each in known
        if each.product == release.product and (each.era, each.release_counter) < (release.era, release.release_counter)
    ]
    parts = session.fleet.parts(release.product, [release.manifest, *(each.manifest for each in older)])
    mine = set(parts.get(release.manifest, {}).values())
    full = session.payloads.get(mine)
    patches, waiting = session.patches.for_results(mine)
    complete = bool(mine) and len(full) == len(mine)
    return {
        "full_bytes": sum(_full(made) for made in full.values()) if complete else None,
        "patches_waiting": waiting,
        "deltas": [
            {"version": base.version, "manifest": base.manifest, "delta_bytes": size, "patches": count}
            for base in older
            for size, count in [_from(set(parts.get(base.manifest, {}).values()), full, patches)]
            if complete and count
        ],
    }


def _from(held: set[str], full: Mapping[str, Compressed], patches: Sequence[Patch]) -> tuple[int, int]:
    """What travels to a machine that holds these artifacts, and in how many patches."""
    size = count = 0
    for artifact, made in full.items():
        if artifact in held:
            continue
        prices = [patch.travels_bytes for patch in patches if patch.pair.result == artifact and patch.pair.base in held]
        best = min(prices, default=_full(made))
        count += best < _full(made)
        size += min(best, _full(made))
    return size, count


def _full(made: Compressed) -> int:
    return made.payload_bytes + made.index_bytes
