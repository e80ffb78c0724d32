"""What a field kit must hold for its machines: the answer to the managers' tool. Blocking.

Full payloads of all that a machine of the kit may need are always in it, so that it works for one that lost its base;
patches are those that the cheapest plan of some machine names, by what it holds as far as is known here. For machines
whose hardware is not known, and for a kit for everybody, every variant is in.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from protocol import limits
from protocol.artifact import Artifact
from protocol.errors import Reason, Refused, StateError
from protocol.objects import Payload, Step
from protocol.release import ReleaseManifest, parse_manifest
from protocol.selection import needed_artifacts, select_images, select_variants
from server.clock import NowMs
from server.plan import Means, full_step, make_plan, named_patches
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog, Session
from server.storage.records import Device, Patch, Release
from signing.kits.offer import KitOffer, KitQuestion, OfferedRelease, OfferedStep

NAMED_MS: Final = 86_400_000
"""So long the blobs of a patch that an answer names stay: a stick is written in that time."""


class KitPlans:
    """Answers what kits need.

    Args:
        catalog: What is known of machines, payloads and patches.
        blobs: Holds manifests.
        now_ms: The clock.
    """

    def __init__(self, catalog: Catalog, blobs: BlobStore, now_ms: NowMs) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._now_ms = now_ms

    def plan(self, question: KitQuestion) -> KitOffer:
        """The answer as of now; nothing is waited for.

        Raises:
            StateError: No such product, release, machine or group.
        """
        with self._catalog.read() as session:
            releases = _releases(session, question)
            devices = _devices(session, question)
            running = {device.report.manifest for device in devices}
            known = [each for each in session.repositories.releases(question.product) if each.manifest in running]
        manifests = {each.manifest: self._manifest(each.manifest) for each in (*releases, *known)}
        everybody = not question.machines and not question.groups
        with self._catalog.read() as session:
            held = [(device, _held(session, device, manifests)) for device in devices]
        with self._catalog.write() as session:  # payloads that lack are asked for, and patches that are named kept
            offered = tuple(
                self._release(session, release, manifests[release.manifest], held, everybody=everybody)
                for release in releases
            )
        return KitOffer(
            product=question.product,
            machines=None if everybody else tuple(sorted(device.id for device in devices)),
            releases=offered,
            known=len(devices),
            unseen=tuple(device.id for device in devices if device.inventory is None),
        )

    def _release(
        self,
        session: Session,
        release: Release,
        manifest: ReleaseManifest,
        machines: Sequence[tuple[Device, set[str]]],
        *,
        everybody: bool,
    ) -> OfferedRelease:
        needed: dict[str, dict[str, Artifact]] = {}  # by machine
        unsuited: dict[str, str] = {}
        for device, _ in machines:
            try:
                needed[device.id] = {each.sha256: each for each in _needed(manifest, device)}
            except Refused as error:
                unsuited[device.id] = error.message
        if everybody:
            wanted = {each.sha256: each for each in manifest.artifacts()}
        else:
            wanted = {sha256: each for mine in needed.values() for sha256, each in mine.items()}
        ready = session.payloads.get(wanted)
        patches = session.patches.ready(wanted)
        deltas: dict[str, Step] = {}
        users: Counter[str] = Counter()
        for device, held in machines:
            for key, step in _deltas(session, device, needed.get(device.id, {}), held, patches):
                deltas[key] = step
                users[key] += 1
        session.patches.name(list(deltas), self._now_ms() + NAMED_MS)
        full = Counter(each for device, held in machines for each in needed.get(device.id, {}) if each not in held)
        steps = [OfferedStep(step=full_step(ready[each]), machines=full[each]) for each in wanted if each in ready]
        steps += [OfferedStep(step=step, machines=users[key]) for key, step in deltas.items()]
        return OfferedRelease(
            release=release.version,
            manifest=Payload(sha256=release.manifest, length_bytes=release.manifest_bytes),
            steps=tuple(steps),
            waiting=tuple(sorted(set(wanted) - set(ready))),
            unsuited=unsuited,
        )

    def _manifest(self, digest: str) -> ReleaseManifest:
        data = b"".join(self._blobs.read_now(digest, limits.MIB))
        if hashlib.sha256(data).hexdigest() != digest:
            raise Refused(Reason.HASH, f"the stored manifest {digest} is damaged")
        return parse_manifest(data)


def _releases(session: Session, question: KitQuestion) -> list[Release]:
    listed = [each for each in session.repositories.releases(question.product) if each.listed]
    if not listed:
        raise StateError(f"{question.product} lists no release", hint="`headland release list` shows what is signed")
    if not question.releases:
        return [max(listed, key=lambda each: (each.era, each.release_counter))]
    by_version = {each.version: each for each in listed}
    unknown = sorted(set(question.releases) - set(by_version))
    if unknown:
        raise StateError(
            f"{question.product} {unknown[0]} is not listed",
            hint="`headland release list` shows what the managers have signed",
        )
    return [by_version[version] for version in dict.fromkeys(question.releases)]


def _devices(session: Session, question: KitQuestion) -> list[Device]:
    """Machines that the kit is for, in the order of their names; those that were revoked get nothing."""
    mine = [each for each in session.devices.all() if each.product == question.product and each.revoked_ms is None]
    unknown = sorted(set(question.machines) - {each.id for each in mine})
    if unknown:
        raise StateError(f"no machine {unknown[0]!r} follows {question.product}", hint="`headland device list`")
    empty = sorted(set(question.groups) - {group for each in mine for group in each.groups})
    if empty:
        raise StateError(
            f"no machine of {question.product} is in the group {empty[0]!r}", hint="`headland device list`"
        )
    if not question.machines and not question.groups:
        return mine
    return [each for each in mine if each.id in question.machines or set(each.groups) & set(question.groups)]


def _needed(manifest: ReleaseManifest, device: Device) -> Iterable[Artifact]:
    if device.inventory is None:
        return manifest.artifacts()
    return needed_artifacts(
        manifest, select_variants(manifest, device.inventory), select_images(manifest, device.inventory)
    )


def _held(session: Session, device: Device, manifests: dict[str, ReleaseManifest]) -> set[str]:
    """What it said it holds, and what it runs."""
    held = session.fleet.held(device.id)
    running = manifests.get(device.report.manifest or "")
    if running is not None and device.inventory is not None:
        with contextlib.suppress(Refused):  # its hardware is another by now
            held |= {each.sha256 for each in _needed(running, device)}
    return held


def _deltas(
    session: Session, device: Device, needed: dict[str, Artifact], held: set[str], patches: Sequence[Patch]
) -> list[tuple[str, Step]]:
    """The patches of the plan that costs this machine the fewest bytes."""
    inventory = device.inventory
    if inventory is None or not inventory.patch_codecs:
        return []
    means = Means(
        codecs=inventory.patch_codecs,
        memory_mib=inventory.memory_mib,
        metered=True,
        failed=session.patches.failed_on(device.id),
    )
    ready = session.payloads.get(needed)
    plan = make_plan([each for sha256, each in needed.items() if sha256 in ready], held, ready, patches, means)
    assert plan is not None  # only what is ready was asked for
    steps = [step for step in plan.steps if step.method == "delta"]
    return list(zip(named_patches(plan), steps, strict=True))
