"""Everything that a kit will be, before anything is written: asked of the server, judged, planned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tuf.api.metadata import Targets

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.kits import KitBody
from protocol.objects import Conditions
from signing.kits.kit_file import KitObject, kit_keys, make_kit
from signing.kits.offer import KitOffer, KitQuestion
from signing.kits.planning import CLUSTER_BYTES, KitPlan, needs_bytes, plan_kit
from signing.kits.repositories import Files, Judged, behind, fetch, judge
from signing.repository import RepositoryKind
from signing.server_client import Operator
from signing.workspace import KINDS, Workspace

SIGNATURES_BYTES: Final = 16 * limits.KIB
KIT_HINT: Final = "make several kits: name releases (--release), groups (--group) or machines (--machine)"


@dataclass(frozen=True)
class KitRequest:
    """What a person asks for.

    Args:
        question: For whom, and what.
        days: How long it is good.
        conditions: Signed into it.
        fit_bytes: All of it takes no more.
        cluster_bytes: Of the stick's file system.
    """

    question: KitQuestion
    days: int
    conditions: Conditions
    fit_bytes: int | None = None
    cluster_bytes: int = CLUSTER_BYTES


@dataclass(frozen=True)
class Prepared:
    """All that a kit will be, before anything is written."""

    offer: KitOffer
    files: Mapping[RepositoryKind, Files]
    judged: Judged
    plan: KitPlan
    created: datetime
    request: KitRequest

    @property
    def created_ms(self) -> int:
        """The same, as it is signed."""
        return int(self.created.timestamp() * 1000)

    def kit(self, name: str, created_ms: int | None = None) -> KitObject:
        """What is to be signed.

        Args:
            name: Of the kit, and its folder.
            created_ms: When it was made, where that was not now.
        """
        at_ms = self.created_ms if created_ms is None else created_ms
        body = KitBody(
            kit=name,
            product=self.offer.product,
            created_ms=at_ms,
            releases=self.plan.releases,
            machines=self.offer.machines,
            conditions=self.request.conditions,
        )
        return make_kit(body, datetime.fromtimestamp(at_ms // 1000, UTC) + timedelta(days=self.request.days))

    @property
    def metadata(self) -> list[int]:
        """Length of each file of both repositories."""
        return [len(data) for files in self.files.values() for data in files.values()]

    @property
    def needs_bytes(self) -> int:
        """What the kit takes on a stick, about."""
        return needs_bytes(self.plan, self.offer.machines, self.metadata, self.request.cluster_bytes)

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
        StateError: There is no such thing, it does not fit, is more than machines look at, or payloads are not ready.
        Refused: The server's answers do not hold, or are older than what this workspace knows.
    """
    sets = {kind: workspace.need(kind) for kind in KINDS}
    files = fetch(server, request.question.product, {kind: sets[kind].roots for kind in KINDS})
    judged = judge(files, {kind: sets[kind].roots[1] for kind in KINDS}, request.question.product, now)
    if old := behind(judged, files, sets, request.question.product):
        raise Refused(
            Reason.ROLLBACK,
            f"the server gives {old[0]}",
            hint="it was set back: `headland release push --again` gives it what is in force",
        )
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
    metadata = [len(data) for named in files.values() for data in named.values()]
    prepared = Prepared(
        offer=offer,
        files=files,
        judged=judged,
        plan=plan_kit(offer, metadata, request.fit_bytes, request.cluster_bytes),
        created=now.astimezone(UTC).replace(microsecond=0),
        request=request,
    )
    _hold_limits(prepared)
    return prepared


def _hold_limits(prepared: Prepared) -> None:
    """What is more than machines look at is said before anything is written or signed.

    Raises:
        StateError: It is.
    """
    body = prepared.kit("kit-x").body
    for what, count, most in (
        ("machines", len(body.machines or ()), limits.KIT_MACHINES),
        ("releases", len(body.releases), limits.KIT_RELEASES),
        ("steps in one release", max(len(release.steps) for release in body.releases), limits.KIT_STEPS),
        ("files of metadata", len(prepared.metadata), limits.KIT_METADATA_FILES),
        ("bytes of metadata", sum(prepared.metadata), limits.KIT_METADATA_BYTES),
        ("bytes of kit.json", len(prepared.kit("kit-x").metadata.to_bytes()) + SIGNATURES_BYTES, limits.KIT_BYTES),
    ):
        if count > most:
            raise StateError(f"a kit of {count:,} {what}; machines take {most:,}", hint=KIT_HINT)


def _check(offer: KitOffer, judged: Judged) -> None:
    """Holds the server's answer against what the managers signed."""
    for release in offer.releases:
        listed = judged.listed.get(release.manifest.sha256)
        if listed is None or (listed.version, listed.length_bytes) != (release.release, release.manifest.length_bytes):
            raise Refused(Reason.NOT_LISTED, f"the server offers another {release.release} than the managers signed")
        if not release.steps:
            why = "; ".join(f"{device}: {reason}" for device, reason in sorted(release.unsuited.items())[:3])
            raise StateError(f"{release.release} fits none of the machines: {why}", hint="name others, or leave it out")
