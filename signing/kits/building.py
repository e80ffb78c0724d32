"""Writes a kit onto a stick: blobs, metadata and, by `kit_file`, last of all the kit itself.

A stick may be pulled at any moment: what lies there then is no kit, for it lacks `kit.json`. The same command again
goes on: a kit's name follows from what it is for, and what is there and right is kept.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.kits import BLOBS_FOLDER, DRAFT_FILE, KIT_FILE, KITS_FOLDER
from protocol.release import parse_manifest
from signing.durable import DISK, Disk
from signing.kits.blobs import part_names, write_blob
from signing.kits.choosing import Chosen
from signing.kits.planning import Blob
from signing.kits.preparing import Prepared
from signing.patience import TRIES
from signing.publishing import Meter
from signing.server_client import Operator
from signing.stick import StickFolder, stick_folder
from signing.workspace import Workspace


def write_kit(
    prepared: Prepared,
    chosen: Chosen,
    workspace: Workspace,
    server: Operator,
    meter: Meter,
    *,
    disk: Disk = DISK,
) -> None:
    """Writes everything but the kit's own file. What is there and right stays.

    Args:
        prepared: What it will be.
        chosen: Where it goes, by `choose`.
        workspace: Has manifests.
        server: Has the rest.
        meter: Hears of what is written.
        disk: For every write.

    Raises:
        LinkError, OSError: Broken off: the same again goes on.
        Refused: The server gave other bytes than it named.
    """
    with ExitStack() as stack:
        root = stack.enter_context(stick_folder(chosen.stick, disk=disk))
        kits = stack.enter_context(root.below(KITS_FOLDER, make=True))
        kits.alone()
        folder = stack.enter_context(kits.below(chosen.name, make=True))
        if not chosen.goes_on:  # half written, it is no kit
            folder.remove(KIT_FILE)
            folder.remove(DRAFT_FILE)
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
