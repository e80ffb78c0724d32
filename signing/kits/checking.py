"""Looks at a kit as a machine would, and at every byte of it.

Against this workspace's roots where there is one; without, a kit can only be held against itself: whoever made the kit
made its roots, too.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Targets

from protocol import limits
from protocol.errors import HeadlandError, Reason, Refused, StateError
from protocol.kits import AHEAD_DAYS, BLOBS_FOLDER, DRAFT_FILE, KIT_FILE, KITS_FOLDER, LIFETIME_DAYS, is_kit
from protocol.objects import Payload
from protocol.release import parse_manifest
from signing.durable import TEMPORARY_PREFIX
from signing.kits.blobs import check_blob, part_names
from signing.kits.kit_file import KitObject, Signatures, read_kit, signatures
from signing.kits.repositories import Files, behind, judge
from signing.managers import Register
from signing.metadata import parse
from signing.repository import ROOT_FILE, RepositoryKind, read_release_list
from signing.stick import StickFolder, stick_folder
from signing.workspace import KINDS, Workspace

Advance = Callable[[int], None]


@dataclass
class KitReport:
    """What was found.

    Args:
        name: Of its folder.
        kit: What it says; None: nothing that can be read.
        draft: It is not signed by enough yet, and no machine takes it.
        signed: By whom.
        trusted: It was held against this workspace's roots.
        faults: What makes machines refuse it, or parts of it.
        notes: What a person may want to know.
    """

    name: str
    kit: KitObject | None = None
    draft: bool = False
    signed: Signatures | None = None
    trusted: bool = False
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_kits(path: Path) -> list[Path]:
    """Folders of kits at a path: a stick, its folder of kits, or one kit.

    Raises:
        StateError: None lies there.
    """
    if is_kit(path.name) and path.is_dir():
        return [path]
    above = path if path.name == KITS_FOLDER else path / KITS_FOLDER
    if above.is_symlink():
        raise StateError(f"{above} is a link: nothing on a stick is followed", hint="name the folder itself")
    if not above.is_dir():
        raise StateError(f"no kit lies at {path}", hint=f"name a stick, or a folder in its {KITS_FOLDER}")
    found = sorted(each for each in above.iterdir() if is_kit(each.name) and each.is_dir() and not each.is_symlink())
    if not found:
        raise StateError(f"no kit lies at {above}")
    if len(found) > limits.KITS_LOOKED_AT:
        raise StateError(
            f"{len(found)} kits lie at {above}; machines look at {limits.KITS_LOOKED_AT}",
            hint="delete folders of kits that are not needed any more, or name one of them",
        )
    return found


def check_kit(
    path: Path, workspace: Workspace | None, now: datetime, advance: Advance, *, blobs: bool = True
) -> KitReport:
    """Looks at one kit.

    Args:
        path: Its folder.
        workspace: Whose roots are trusted; None: only consistency is looked at.
        now: Aware.
        advance: Hears of bytes that were read.
        blobs: Whether all of them are hashed, or only looked for.

    Raises:
        OSError: The stick cannot be read.
    """
    report = KitReport(name=path.name, trusted=workspace is not None)
    with ExitStack() as stack:
        folder = stack.enter_context(stick_folder(path))
        try:
            found = read_kit(folder)
        except Refused as error:
            report.faults.append(error.message)
            return report
        if found is None:
            report.faults.append(f"there is neither {KIT_FILE} nor {DRAFT_FILE}: it was not built to its end")
            return report
        report.kit, report.draft = found
        _look_at_terms(report, report.kit, now)
        try:
            files = _metadata(folder)
            _judge(report, report.kit, files, workspace, now)
        except (HeadlandError, FileNotFoundError, NotADirectoryError) as error:
            report.faults.append(error.message if isinstance(error, HeadlandError) else "metadata is missing")
        try:
            _look_at_blobs(report, report.kit, stack.enter_context(folder.below(BLOBS_FOLDER)), advance, hash_all=blobs)
        except (FileNotFoundError, NotADirectoryError):
            report.faults.append(f"{BLOBS_FOLDER}/ is missing")
    return report


def _look_at_terms(report: KitReport, kit: KitObject, now: datetime) -> None:
    body = kit.body
    created = datetime.fromtimestamp(body.created_ms // 1000, UTC)
    if body.kit != report.name:
        report.faults.append(f"it is {body.kit}; its folder must have that name")
    if not timedelta() < kit.expires - created <= timedelta(days=LIFETIME_DAYS):
        report.faults.append(f"it would be good for more than {LIFETIME_DAYS} days, or for none")
    if kit.expires <= now:
        report.faults.append(f"it expired at {kit.expires:%Y-%m-%d %H:%M} UTC")
    if created > now + timedelta(days=AHEAD_DAYS):
        report.faults.append(f"it says it was made at {created:%Y-%m-%d %H:%M} UTC, which is still to come")


def _metadata(folder: StickFolder) -> dict[RepositoryKind, Files]:
    """All of both repositories, and no more than a machine copies: a stick is anybody's."""
    found: dict[RepositoryKind, Files] = {}
    rest = limits.KIT_METADATA_BYTES
    for kind in KINDS:
        with folder.below(kind) as below:
            names = below.names(".json")
            if len(names) > limits.KIT_METADATA_FILES:
                raise Refused(Reason.LIMIT, f"{kind}/ has more than {limits.KIT_METADATA_FILES} files")
            files = {}
            for name in names:
                files[name] = below.read(name, min(limits.METADATA_BYTES, rest))
                rest -= len(files[name])
            found[kind] = files
    return found


def _judge(
    report: KitReport, kit: KitObject, files: dict[RepositoryKind, Files], workspace: Workspace | None, now: datetime
) -> None:
    """Signatures, from the roots down to the kit and to what is listed."""
    at = min(now, datetime.fromtimestamp(kit.body.created_ms // 1000, UTC))
    first: dict[RepositoryKind, bytes] = {
        kind: workspace.need(kind).roots[1] if workspace else files[kind].get("1.root.json", b"") for kind in KINDS
    }
    judged = judge(files, first, kit.body.product, at)
    for kind, named in files.items():
        for number, data in (workspace.need(kind).roots if workspace else {}).items():
            if named.get(f"{number}.root.json", data) != data:
                report.faults.append(f"{kind}/{number}.root.json is another than the one that was published")
        newest = max((int(found[1]) for name in named if (found := ROOT_FILE.match(name))), default=0)
        for number in range(1, max(newest, 1) + 1):
            if f"{number}.root.json" not in named:
                report.faults.append(f"{kind}/{number}.root.json is missing: machines that slept cannot follow")
    register = Register(workspace) if workspace else None
    report.signed = signatures(kit, judged.director_targets(), register)
    if not report.signed.met and not report.draft:
        report.faults.append(
            f"it is signed by {', '.join(report.signed.signed) or 'nobody'}; {report.signed.threshold} must"
        )
    for release in kit.body.releases:
        listed = judged.listed.get(release.manifest.sha256)
        if listed is None or listed.version != release.release:
            report.faults.append(f"{release.release} is not listed in the metadata that lies beside it")
    if workspace is None:
        return
    old = behind(judged, files, {kind: workspace.need(kind) for kind in KINDS}, kit.body.product)
    # Nobody signs what is out of date; a kit that was signed before is as good as it was, where nothing newer has come.
    (report.faults if report.draft else report.notes).extend(f"it has {line}" for line in old)
    targets = parse_targets(workspace)
    if not report.draft and not signatures(kit, targets, register).met:
        report.faults.append("by now other keys sign kits: machines that know it refuse this one")
    image = workspace.need("image")
    still = {each.manifest_sha256 for each in read_release_list(image, kit.body.product)}
    for release in kit.body.releases:
        if release.manifest.sha256 not in still:
            report.faults.append(f"{release.release} was delisted: machines that know it do not install it any more")


def parse_targets(workspace: Workspace) -> Targets:
    """The director's top targets as this workspace has them."""
    return parse(workspace.need("director").targets, Targets, "director/targets.json").signed


def _look_at_blobs(report: KitReport, kit: KitObject, folder: StickFolder, advance: Advance, *, hash_all: bool) -> None:
    wanted: dict[str, Payload] = {}
    for release in kit.body.releases:
        for payload in (release.manifest, *(each for step in release.steps for each in (step.payload, step.index))):
            if payload is not None:
                wanted.setdefault(payload.sha256, payload)
    files = {name: length for each in wanted.values() for name, length in part_names(each.sha256, each.length_bytes)}
    lengths = {name: folder.length(name) for name in folder.names()}
    for payload in wanted.values():
        if hash_all:
            fault = check_blob(folder, payload.sha256, payload.length_bytes, advance)
            if fault:
                report.faults.append(f"{BLOBS_FOLDER}/{fault}")
        else:
            report.faults += [
                f"{BLOBS_FOLDER}/{name} is missing, or has another length"
                for name, length in part_names(payload.sha256, payload.length_bytes)
                if lengths.get(name) != length
            ]
    extra = sorted(name for name in lengths if name not in files and not name.startswith(TEMPORARY_PREFIX))
    if extra:
        many = f"1 file belongs to nothing here: {BLOBS_FOLDER}/"
        if len(extra) > 1:
            many = f"{len(extra)} files belong to nothing here, such as {BLOBS_FOLDER}/"
        report.notes.append(f"{many}{extra[0][:80]}")
    for release in kit.body.releases:
        try:
            manifest = parse_manifest(folder.read(release.manifest.sha256, limits.MANIFEST_BYTES))
        except (FileNotFoundError, HeadlandError):
            continue  # it was named above
        artifacts = {each.sha256: each.length_bytes for each in manifest.artifacts()}
        whole = {step.artifact for step in release.steps if step.method == "full"}
        if any(artifacts.get(step.artifact) != step.length_bytes for step in release.steps):
            report.faults.append(f"{release.release}: a step names what the manifest has not")
        if lacking := len(set(artifacts) - whole):
            report.notes.append(f"{release.release}: {lacking} of {len(artifacts)} artifacts are for other hardware")
