"""What this machine would take of a kit that is good: the newest release that fits, and the cheapest way to it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from device.clock import Reading
from device.kits import planning
from device.kits.planning import Standing
from device.kits.shelf import Shelf
from device.kits.shown import KitState
from device.store import Store
from device.transfer.patch_book import PatchBook
from device.trust.port import KitVerdict, Terms
from device.update.memory import Memory
from device.update.states import UpdateRecord
from protocol import limits
from protocol.errors import HeadlandError, LinkError, Reason, Refused
from protocol.ids import DeviceId, Digest
from protocol.kits import KitId
from protocol.messages import Inventory
from protocol.objects import Payload, Step, TransferPlan
from protocol.release import parse_manifest
from protocol.selection import needed_artifacts, select_images, select_variants

STATES: Final = {
    Reason.EXPIRED: KitState.EXPIRED,
    Reason.WRONG_PRODUCT: KitState.OTHER_PRODUCT,
    Reason.WRONG_DEVICE: KitState.OTHER_MACHINE,
    Reason.WRONG_HARDWARE: KitState.OTHER_HARDWARE,
    Reason.DELISTED: KitState.DELISTED,
    Reason.NOT_LISTED: KitState.DELISTED,
    Reason.COUNTER_FLOOR: KitState.OLDER,
    Reason.PRODUCT_FLOOR: KitState.OLDER,
    Reason.REFUSED_BEFORE: KitState.REFUSED_HERE,
}


class UnfitError(Exception):
    """This machine takes nothing of a kit.

    Args:
        state: Of the kit.
        line: Why, for a person.
        hint: What to do next.
    """

    def __init__(self, state: KitState, line: str, hint: str = "") -> None:
        super().__init__(line)
        self.state = state
        self.line = line
        self.hint = hint


class Manifests(Protocol):
    """Reads a manifest from a stick, as `device.kits.bringing.KitFetcher`."""

    async def small(self, payload: Payload, limit: int) -> bytes:
        """The blob with the signed hash and length."""
        ...


class Machine(Protocol):
    """What runs here and what can, as `device.update.updater.Updater`."""

    @property
    def record(self) -> UpdateRecord:
        """What runs, and what is under way."""
        ...

    @property
    def inventory(self) -> Inventory:
        """What this machine can run."""
        ...


@dataclass(frozen=True)
class Facts:
    """What counts for all kits alike.

    Args:
        terms: The newest trusted.
        floor: Era and counter of what was committed.
        refused: Why, by the digest of each manifest that was refused on evidence.
        have: What the machine holds, in the store or in the engine.
    """

    terms: Terms | None
    floor: tuple[int, int]
    refused: dict[Digest, str]
    have: frozenset[Digest]


@dataclass(frozen=True)
class Choice:
    """What this machine would take of a kit."""

    standing: Standing
    manifest: bytes
    plan: TransferPlan

    @property
    def name(self) -> Digest:
        """Of the manifest."""
        return self.standing.release.manifest.sha256


class Chooser:
    """Of one machine.

    Args:
        device: Which.
        machine: What runs there.
        memory: Floors, refusals, terms.
        store: What it holds.
        patches: Which patches gave no result here.
        held: What is held elsewhere than in the store.
        shelf: Knows which blobs are no good.
        manifests: Reads them from sticks.
        now: Trusted time.
    """

    def __init__(
        self,
        *,
        device: DeviceId,
        machine: Machine,
        memory: Memory,
        store: Store,
        patches: PatchBook,
        held: Callable[[], Awaitable[tuple[Digest, ...]]],
        shelf: Shelf,
        manifests: Manifests,
        now: Callable[[], Reading],
    ) -> None:
        self._device = device
        self._machine = machine
        self._memory = memory
        self._store = store
        self._patches = patches
        self._held = held
        self._shelf = shelf
        self._manifests = manifests
        self._now = now

    async def look(self) -> Facts:
        """The facts as they are now."""
        terms, floor = await asyncio.to_thread(lambda: (self._memory.terms(), self._memory.floor()))
        return Facts(
            terms=terms,
            floor=(floor.era, floor.counter),
            refused=await asyncio.to_thread(self._memory.refused),
            have=frozenset((*await asyncio.to_thread(self._store.digests), *await self._held())),
        )

    async def choose(self, verdict: KitVerdict, facts: Facts, *, is_wanted: bool) -> Choice:
        """The newest release of a kit that this machine may take.

        Args:
            verdict: On a kit that is good.
            facts: Looked up a moment ago.
            is_wanted: A person asked for this kit.

        Raises:
            UnfitError: There is none: why the newest is not.
        """
        assert verdict.kit is not None
        reading = await asyncio.to_thread(self._now)
        if reading.sure and reading.ms > verdict.expires_ms:
            raise UnfitError(KitState.EXPIRED, "the kit has expired", "make a new one: headland kit build")
        may_go_back = is_wanted or verdict.kit.machines == (self._device,)
        # Only to the newest that this machine can take: neither past one that runs, nor past one that a stick damaged.
        why: UnfitError | None = None
        for one in planning.rank(verdict.kit, facts.terms, facts.floor) if facts.terms is not None else ():
            try:
                self._check(verdict.kit.kit, one, facts.refused, may_go_back=may_go_back)
                return await self._way(one, facts.have)
            except UnfitError as unfit:
                why = why or unfit
                may_go_back = may_go_back and unfit.state is not KitState.INSTALLED
            except Refused as error:
                why = why or UnfitError(STATES.get(error.reason, KitState.REFUSED), error.message, error.hint)
            except LinkError as error:
                state = KitState.UNREADABLE if error.retryable else KitState.DAMAGED
                why = why or UnfitError(state, error.message, error.hint)
                may_go_back = False
        raise why or UnfitError(KitState.DELISTED, "the managers list none of its releases any more")

    def _check(self, kit: KitId, one: Standing, refused: dict[Digest, str], *, may_go_back: bool) -> None:
        """What speaks against a release before anything of it is read.

        Raises:
            UnfitError: As it says.
        """
        name, version, committed = one.release.manifest.sha256, one.release.release, self._machine.record.committed
        if committed is not None and name == committed.digest:
            raise UnfitError(KitState.INSTALLED, f"release {version} of it runs here")
        if name in refused:
            hint = "headland-device refusals lift lets it be tried again"
            raise UnfitError(KitState.REFUSED_HERE, f"release {version} was refused here: {refused[name]}", hint)
        if committed is None or one.is_new or (one.is_permitted and may_go_back):
            return
        hint = f"a permit lets this machine go back to it: {by_hand(kit)}" if one.is_permitted else ""
        raise UnfitError(KitState.OLDER, f"release {version} of it is older than {committed.version}, which runs", hint)

    async def _way(self, standing: Standing, have: frozenset[Digest]) -> Choice:
        release = standing.release
        data = await self._manifest(release.manifest)
        manifest = await asyncio.to_thread(parse_manifest, data)
        inventory = self._machine.inventory
        needed = needed_artifacts(manifest, select_variants(manifest, inventory), select_images(manifest, inventory))

        def has_failed(step: Step) -> bool:
            assert step.payload is not None
            assert step.base is not None
            patch = (step.artifact, step.base, step.payload.sha256, step.lifted_ms)
            return not self._patches.can_apply or self._patches.has_failed(*patch) is not None

        def make() -> TransferPlan:
            return planning.plan(release, needed, have=have, lacking=self._shelf.lacking(), has_failed=has_failed)

        return Choice(standing, data, await asyncio.to_thread(make))

    async def _manifest(self, payload: Payload) -> bytes:
        if await asyncio.to_thread(self._store.has, payload.sha256, payload.length_bytes):
            with contextlib.suppress(HeadlandError):  # damaged on the disk: the stick has it whole
                return await asyncio.to_thread(self._store.read, payload.sha256, limits.MANIFEST_BYTES)
        return await self._manifests.small(payload, limits.MANIFEST_BYTES)


def by_hand(kit: KitId) -> str:
    """The command with which a person applies a kit."""
    return f"headland-device kit apply {kit}"
