"""Builds a kit: asks the server, plans, and writes blobs, metadata and last of all the kit itself.

A stick may be pulled at any moment: what lies there then is no kit, for it lacks `kit.json`. The same command again
goes on: a kit's name follows from what it is for, and what is there and right is kept.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from tuf.api.metadata import Targets

from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import digest
from protocol.kits import BLOBS_FOLDER, DRAFT_FILE, KIT_FILE, KITS_FOLDER, KitBody
from protocol.objects import Conditions
from protocol.release import parse_manifest
from protocol.wire import encode
from signing.durable import DISK, Disk
from signing.kits.blobs import part_names, write_blob
from signing.kits.kit_file import KitObject, kit_keys, make_kit, read_kit
from signing.kits.offer import KitOffer, KitQuestion
from signing.kits.planning import Blob, KitPlan, kit_json_bytes, plan_kit
from signing.kits.repositories import Files, Judged, fetch, judge
from signing.patience import TRIES
from signing.publishing import Meter
from signing.repository import RepositoryKind
from signing.server_client import Operator
from signing.stick import StickFolder, stick_folder
from signing.workspace import KINDS, Workspace

ROUNDING_BYTES: Final = 32 * limits.KIB  # a file takes up whole clusters, and a stick's are of such a size
NAME_SALTS: Final = 16


@dataclass(frozen=True)
class KitRequest:
    """What a person asks for."""

    question: KitQuestion
    days: int
    conditions: Conditions
    fit_bytes: int | None = None


@dataclass(frozen=True)
class Prepared:
    """All that a kit will be, before anything is written."""

    offer: KitOffer
    files: Mapping[RepositoryKind, Files]
    judged: Judged
    plan: KitPlan
    created_ms: int
    expires: datetime
    request: KitRequest

    @property
    def metadata_bytes(self) -> int:
        """Of both repositories."""
        return sum(len(data) for files in self.files.values() for data in files.values())

    @property
    def needs_bytes(self) -> int:
        """What the kit takes on a stick, about."""
        files = len(self.plan.blobs) + sum(len(files) for files in self.files.values()) + 1
        return self.plan.blob_bytes + self.metadata_bytes + kit_json_bytes(self.plan) + files * ROUNDING_BYTES

    @property
    def director(self) -> Targets:
        """The director's top targets."""
        return self.judged.director_targets()


def prepare(
    workspace: Workspace, server: Operator, request: KitRequest, now: datetime, wait: Callable[[int], bool]
) -> Prepared:
    """Asks the server, judges its answers and plans.

    Args:
        workspace: Its roots are trusted.
        server: The operators' door.
        request: What is wanted.
        now: When the kit is made.
        wait: Called while payloads are being made, with how many; False: no longer.

    Raises:
        StateError: There is no such thing, it does not fit, or payloads are not ready.
        Refused: The server's answers do not hold.
    """
    sets = {kind: workspace.need(kind) for kind in KINDS}
    files = fetch(server, request.question.product, {kind: sets[kind].roots for kind in KINDS})
    judged = judge(files, {kind: sets[kind].roots[1] for kind in KINDS}, request.question.product, now)
    kit_keys(judged.director_targets())
    while True:
        offer = server.post("/kits/plan", request.question, KitOffer)
        waiting = len({each for release in offer.releases for each in release.waiting})
        if not waiting:
            break
        if not wait(waiting):
            raise StateError(
                f"the server is still making {waiting} payloads",
                hint="build again when `headland-server status` has none",
            )
    _check(offer, judged)
    plan = plan_kit(offer, sum(len(data) for named in files.values() for data in named.values()), request.fit_bytes)
    created = now.replace(microsecond=0)
    return Prepared(
        offer=offer,
        files=files,
        judged=judged,
        plan=plan,
        created_ms=int(created.timestamp() * 1000),
        expires=created + timedelta(days=request.days),
        request=request,
    )


def write_kit(
    prepared: Prepared, out: Path, workspace: Workspace, server: Operator, meter: Meter, *, disk: Disk = DISK
) -> tuple[str, KitObject]:
    """Writes everything but the kit's own file. What is there and right stays; the signatures of a draft, too.

    Returns:
        The kit's id, and the kit with the signatures that it has.

    Raises:
        LinkError, OSError: Broken off: the same again goes on.
        Refused: The server gave other bytes than it named.
    """
    with ExitStack() as stack:
        root = stack.enter_context(stick_folder(out, disk=disk))
        kits = stack.enter_context(root.below(KITS_FOLDER, make=True))
        name, kit = _choose(kits, prepared)
        folder = stack.enter_context(kits.below(name, make=True))
        folder.sweep()
        blobs = stack.enter_context(folder.below(BLOBS_FOLDER, make=True))
        for blob in prepared.plan.blobs:
            advance = meter.start(blob.what, blob.length_bytes)
            write_blob(blobs, blob.sha256, blob.length_bytes, _source(workspace, server, blob), advance)
        blobs.sweep()
        _keep_only(
            blobs, {part for each in prepared.plan.blobs for part, _ in part_names(each.sha256, each.length_bytes)}
        )
        _check_manifests(blobs, prepared)
        for kind, files in prepared.files.items():
            with folder.below(kind, make=True) as metadata:
                metadata.sweep()
                # The timestamp last: it says which of the others count.
                for file, data in sorted(files.items(), key=lambda item: item[0] == "timestamp.json"):
                    if metadata.length(file) != len(data) or metadata.read(file, len(data)) != data:
                        metadata.write(file, data)
                _keep_only(metadata, set(files))
        return name, kit


def kit_exists(out: Path, name: str) -> bool:
    """Whether a kit of this name lies there whole, as far as its own file says."""
    with stick_folder(out) as root, root.below(KITS_FOLDER) as kits, kits.below(name) as folder:
        return folder.length(KIT_FILE) is not None


def _choose(kits: StickFolder, prepared: Prepared) -> tuple[str, KitObject]:
    """The name of the folder to write: one that was begun for the very same, or a new one."""
    request, product = prepared.request, prepared.offer.product
    machines = prepared.offer.machines
    for salt in range(NAME_SALTS):
        what = [
            product,
            [r.manifest.sha256 for r in prepared.plan.releases],
            machines,
            request.conditions,
            request.days,
            salt,
        ]
        mark = digest(encode(what))[:4]
        begun = [name for name in kits.names() if name.startswith("kit-") and name.endswith(f"-{mark}")]
        day = f"{datetime.fromtimestamp(prepared.created_ms // 1000, prepared.expires.tzinfo):%Y%m%d}"
        for name in (*begun, f"kit-{product[:44].rstrip('-._')}-{day}-{mark}"):
            kit = make_kit(
                KitBody(
                    kit=name,
                    product=product,
                    created_ms=prepared.created_ms,
                    releases=prepared.plan.releases,
                    machines=machines,
                    conditions=request.conditions,
                ),
                prepared.expires,
            )
            found = _found(kits, name)
            if found is None:
                return name, kit
            old, is_draft = found
            same = (old.body.releases, old.body.machines, old.body.conditions) == (
                kit.body.releases,
                machines,
                request.conditions,
            )
            if same and old.body.kit == name and old.expires > prepared.expires - timedelta(days=request.days):
                return name, old
            if is_draft:
                return name, kit
    raise StateError("many other kits for the same lie there", hint="remove those that are not needed any more")


def _found(kits: StickFolder, name: str) -> tuple[KitObject, bool] | None:
    """What lies there of this name. A file that nobody can read as a kit is none: it is written anew."""
    try:
        with kits.below(name) as folder:
            return read_kit(folder)
    except FileNotFoundError:
        return None
    except Refused:
        with kits.below(name) as folder:
            folder.remove(KIT_FILE)
            folder.remove(DRAFT_FILE)
        return None


def _check(offer: KitOffer, judged: Judged) -> None:
    """Holds the server's answer against what the managers signed."""
    for release in offer.releases:
        listed = judged.listed.get(release.manifest.sha256)
        if listed is None or (listed.version, listed.length_bytes) != (release.release, release.manifest.length_bytes):
            raise Refused(Reason.NOT_LISTED, f"the server offers another {release.release} than the managers signed")
        if not release.steps:
            why = "; ".join(f"{device}: {reason}" for device, reason in sorted(release.unsuited.items())[:3])
            raise StateError(f"{release.release} fits none of the machines: {why}", hint="name others, or leave it out")


def _check_manifests(blobs: StickFolder, prepared: Prepared) -> None:
    """Holds the steps against the manifests, whose hashes held."""
    for release in prepared.plan.releases:
        manifest = parse_manifest(blobs.read(release.manifest.sha256, limits.MANIFEST_BYTES))
        lengths = {each.sha256: each.length_bytes for each in manifest.artifacts()}
        for step in release.steps:
            if lengths.get(step.artifact) != step.length_bytes:
                raise Refused(
                    Reason.MANIFEST, f"the server names {step.artifact[:12]}, which {release.release} has not"
                )


def _source(workspace: Workspace, server: Operator, blob: Blob) -> Callable[[int], Iterator[bytes]]:
    """A blob from this workspace, which has manifests, else from the server, over a link that may break."""
    if blob.length_bytes <= limits.MANIFEST_BYTES and workspace.blob(blob.sha256).exists():
        return lambda first: iter([workspace.read_blob(blob.sha256, limits.MANIFEST_BYTES)[first:]])
    return lambda first: _over_the_link(server, blob, first)


def _over_the_link(server: Operator, blob: Blob, first: int) -> Iterator[bytes]:
    at, tries = first, 0
    while at < blob.length_bytes:
        before, failed = at, LinkError(f"blob {blob.sha256[:12]} broke off after {at} bytes")
        try:
            for chunk in server.get_blob(blob.sha256, at):
                yield chunk
                at += len(chunk)
        except LinkError as error:
            failed = error
        tries = 0 if at > before else tries + 1
        if not failed.retryable or tries >= TRIES:
            raise failed
        if at < blob.length_bytes:
            time.sleep(0.1 * 2**tries)


def _keep_only(folder: StickFolder, names: set[str]) -> None:
    """Removes files that the kit does not have (any more)."""
    for name in folder.names():
        if name not in names and folder.length(name) is not None:
            folder.remove(name)
