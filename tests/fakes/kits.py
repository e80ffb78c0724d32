"""Whole field kits, signed by real managers: what lies on a stick after `headland kit build` and `kit sign`.

managers = Managers(now)
release = listed(managers, Release("1.1.0", 2, noise(3_000_000, 1)))
folder = make_kit(stick, managers, [release], created=now)
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from protocol.ids import digest
from protocol.kits import BLOBS_FOLDER, KIT_FILE, KITS_FOLDER, PART_BYTES, KitBody, KitRelease
from protocol.objects import Conditions, Step
from signing.metadata import terms_field
from tests.fakes.managers import NAMES, Managers
from tests.fakes.updates import Release, signed

KIT = "kit-pest-detector-spring"
ALWAYS = Conditions()


def listed(managers: Managers, release: Release) -> Release:
    """Has the managers list a release."""
    managers.release(release.version, release.counter, release.manifest_bytes, era=release.era)
    return release


def kit_body(
    releases: Iterable[Release],
    created: datetime,
    *,
    kit: str = KIT,
    product: str = "pest-detector",
    machines: tuple[str, ...] | None = None,
    conditions: Conditions = ALWAYS,
    steps: Mapping[str, Sequence[Step]] = {},
) -> KitBody:
    """What is signed. `steps`: more than the full ones, by version."""
    return KitBody(
        kit=kit,
        product=product,
        created_ms=int(created.timestamp() * 1000),
        machines=machines,
        conditions=conditions,
        releases=tuple(
            KitRelease(
                release=release.version,
                manifest=signed(release.manifest_bytes),
                steps=(*release.plan.steps, *steps.get(release.version, ())),
            )
            for release in releases
        ),
    )


def sign_kit(body: KitBody, keys: Iterable[Signer], expires: datetime) -> bytes:
    """`kit.json`."""
    metadata = Metadata(
        Targets(version=max(1, body.created_ms // 1000), expires=expires, unrecognized_fields=terms_field(body))
    )
    for key in keys:
        metadata.sign(key, append=True)
    return metadata.to_bytes()


def make_kit(
    stick: Path,
    managers: Managers,
    releases: Sequence[Release],
    *,
    created: datetime | None = None,
    days: float = 180.0,
    expires: datetime | None = None,
    kit: str = KIT,
    machines: tuple[str, ...] | None = None,
    conditions: Conditions = ALWAYS,
    by: Iterable[str] = NAMES[:2],
    steps: Mapping[str, Sequence[Step]] = {},
    blobs: Mapping[str, bytes] = {},
    version: int | None = None,
) -> Path:
    """Writes a whole kit below `stick/headland-kits/`; what lies there of the same name is replaced file by file.

    Args:
        stick: Where a stick is mounted, or any folder.
        managers: Their repositories as they are now are the kit's; they list the releases (`listed`).
        releases: With payloads and indexes.
        created: When it says that it was made; the managers' time unless given.
        days: From then to its expiry, unless `expires` is given.
        kit: Its id, and the folder's name.
        machines: Whom it is for.
        by: Managers who sign it.
        steps: More than the full ones, by version; their blobs go into `blobs`.
        version: Of the online roles; unix seconds of `created` unless given.

    Returns:
        The kit's folder.
    """
    at = created or managers.now
    until = (expires or at + timedelta(days=days)).replace(microsecond=0)
    folder = stick / KITS_FOLDER / kit
    for part in ("image", "director", BLOBS_FOLDER):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for repository in ("image", "director"):
        rendered = managers.render("image" if repository == "image" else "director", at, version)
        for name, data in rendered.items():
            (folder / repository / name).write_bytes(data)
    for release in releases:
        for content in release.blobs.values():
            write_blob(folder, content)
    for content in blobs.values():
        write_blob(folder, content)
    body = kit_body(
        releases,
        at,
        kit=kit,
        product=managers.product,
        machines=machines,
        conditions=conditions,
        steps=steps,
    )
    (folder / KIT_FILE).write_bytes(sign_kit(body, [managers.keys[name] for name in by], until))
    return folder


def write_blob(folder: Path, content: bytes, part_bytes: int = PART_BYTES) -> None:
    """A blob of a kit, in parts where it is larger than one."""
    sha256 = digest(content)
    if len(content) <= part_bytes:
        (folder / BLOBS_FOLDER / sha256).write_bytes(content)
        return
    for number, first in enumerate(range(0, len(content), part_bytes)):
        (folder / BLOBS_FOLDER / f"{sha256}.{number}").write_bytes(content[first : first + part_bytes])
