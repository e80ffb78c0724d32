"""Pushes what was signed: blobs first, then the metadata, then the record here, each step safe to repeat.

The tool judges by the server's own rule before anything leaves, so that below the threshold nothing is published and
nothing is even uploaded. A cut at any point leaves the event open with its bytes fixed; the next push finishes.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tuf.api.metadata import Targets

from protocol.errors import Reason, Refused, StateError
from signing.differences import open_manifest
from signing.events import Event, Need
from signing.metadata import parse
from signing.repository import ListedRelease, RepositoryKind, RepositorySet, accept, read_release_list, releases_of
from signing.server_client import Operator, Progress
from signing.workspace import KINDS, Workspace


class Meter(Protocol):
    """Shows how an upload goes."""

    def start(self, what: str, total_bytes: int) -> Progress:
        """Begins one upload; the answer hears of each piece."""
        ...


def push(workspace: Workspace, event: Event, server: Operator, meter: Meter, now: datetime) -> str:
    """Publishes a signed event, keeps its files and closes it.

    Returns:
        Why the server keeps it and does not offer it yet, for it was restored from a backup; empty when it does.

    Raises:
        Refused: `SIGNATURE` below the threshold, with who is missing; or what the server refuses.
        StateError: A blob is not in this workspace.
        LinkError: The server cannot be reached; push again.
    """
    check_signed(event)
    event.check_owners()
    files = event.freeze()
    accepted = {kind: accept(kind, workspace.current(kind), files[kind], now) for kind in KINDS if files[kind]}
    for release in _new_releases(workspace, event):
        send_blobs(workspace, release, server, meter)
    held = server.publish({kind: named for kind, named in files.items() if named})
    for kind, published in accepted.items():
        _keep(workspace, kind, published)
    event.close(published=True)
    return held


@dataclass(frozen=True)
class PushedAgain:
    """What came of a push of everything.

    Args:
        held: Why the server does not offer it yet, or empty.
        missing: What this workspace lacks, one line a release: those who built it push again as well.
    """

    held: str
    missing: tuple[str, ...]


def push_again(workspace: Workspace, server: Operator, meter: Meter) -> PushedAgain:
    """Gives a server that was restored from a backup everything that was ever published and is still in force.

    The signed files go also when blobs of a release are not in this workspace: what keeps machines safe does not wait.

    Raises:
        StateError: Nothing was published yet.
        LinkError: The server cannot be reached.
    """
    sets = {kind: workspace.need(kind) for kind in KINDS}
    missing = []
    for product in sets["image"].delegated:
        for release in read_release_list(sets["image"], product):
            try:
                send_blobs(workspace, release, server, meter)
            except StateError as error:
                missing.append(f"{product} {release.version}: {error.message}")
    held = server.publish({kind: published.files() for kind, published in sets.items()}, again=True)
    return PushedAgain(held=held, missing=tuple(missing))


def send_blobs(workspace: Workspace, release: ListedRelease, server: Operator, meter: Meter) -> None:
    """Sends the manifest and every artifact of a release that the server lacks."""
    manifest = open_manifest(workspace, release)
    wanted = [(artifact.sha256, artifact.length_bytes) for artifact in manifest.artifacts()]
    for sha256, length in [*wanted, (release.manifest_sha256, release.length_bytes)]:
        if server.has_blob(sha256):
            continue
        path = workspace.blob(sha256)
        if not path.exists():
            raise StateError(f"blob {sha256[:12]} is not in this workspace", hint="push from where it was built")
        server.put_blob(sha256, path, meter.start(f"{release.product} {release.version} {sha256[:12]}", length))


def check_signed(event: Event) -> None:
    """Refuses an event below any of its thresholds.

    Raises:
        Refused: `SIGNATURE`.
    """
    short = [need for need in event.needs() if not need.met]
    if short:
        raise Refused(
            Reason.SIGNATURE,
            f"{event.record.title} is not signed yet: {'; '.join(describe(need) for need in short)}",
            hint="each missing manager runs `headland release sign --as NAME`",
        )


def describe(need: Need) -> str:
    """A need in one clause."""
    by = " (by the keys of the root before)" if need.by == "old root" else ""
    have = f"signed by {', '.join(need.signed)}" if need.signed else "signed by nobody"
    short = need.threshold - len(need.signed)
    if short <= 0:
        return f"{need.file}{by}: {have}"
    return f"{need.file}{by}: {have}, {short} more of {', '.join(need.missing)}"


def _new_releases(workspace: Workspace, event: Event) -> list[ListedRelease]:
    found = []
    for (kind, role), metadata in event.payload.items():
        if kind != "image" or role in ("root", "targets"):
            continue
        published = workspace.current("image")
        before: set[str] = set()
        if published is not None and role in published.delegated:
            before = {release.manifest_sha256 for release in read_release_list(published, role)}
        found += [r for r in releases_of(role, metadata.signed) if r.manifest_sha256 not in before]
    return found


def _keep(workspace: Workspace, kind: RepositoryKind, published: RepositorySet) -> None:
    for number, data in published.roots.items():
        workspace.keep(kind, "root", number, data)
    for role, data in {"targets": published.targets, **published.delegated}.items():
        workspace.keep(kind, role, parse(data, Targets, role).signed.version, data)
