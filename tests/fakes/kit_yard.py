"""A machine with sticks: everything of `device.kits` real but trust, which believes, and the update machine, which says
by the real rules what it would do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from device.cancelling import cancel
from device.clock import Reading
from device.kits.bringing import STICK, KitFetcher, NotingSource
from device.kits.choosing import Chooser
from device.kits.finding import Finder
from device.kits.folder import METADATA_FOLDERS
from device.kits.life import Applying, Kits
from device.kits.shelf import Shelf
from device.kits.shown import KitShown
from device.state_db import StateDb
from device.store import Store
from device.transfer.fetch import Transfer
from device.transfer.patch_book import PatchBook
from device.trust.port import ROSTER, Complaint, KitVerdict, Roster, Terms, Trust
from device.update import rules
from device.update.memory import Memory, floors_of
from device.update.progress import Progress
from device.update.states import Ended, Held, Offer, State, Tried, UpdateRecord
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.kits import KIT_FILE, KitBody, KitRelease
from protocol.messages import Inventory
from protocol.objects import AssignmentBody, Payload
from protocol.wire import decode, encode
from tests.fakes.sticks import write_kit
from tests.fakes.updates import DEVICE, INVENTORY, MACHINE, PRODUCT, Release, signed

EXPIRES_MS = 1_800_000_000_000


def kit_of(kit: str, *releases: Release, machines: tuple[str, ...] | None = None, created_ms: int = 1) -> KitBody:
    return KitBody(
        kit=kit,
        product=PRODUCT,
        created_ms=created_ms,
        releases=tuple(
            KitRelease(
                release=release.version,
                manifest=Payload(sha256=release.digest, length_bytes=len(release.manifest_bytes)),
                steps=release.plan.steps,
            )
            for release in releases
        ),
        machines=machines,
    )


def lay(stick: Path, body: KitBody, *releases: Release) -> Path:
    """Puts a kit on a stick."""
    folder = write_kit(stick, body.kit, [blob for release in releases for blob in release.blobs.values()])
    (folder / KIT_FILE).write_bytes(encode(body))
    return folder


class BelievingTrust:
    """Takes a kit's body as it stands, unless a test says otherwise."""

    def __init__(self) -> None:
        self.terms: Terms | None = None
        self.signers = ("alice", "bob")
        self.complaints: dict[str, Complaint] = {}  # by kit
        self.judged: list[str] = []
        self.refuses_next = 0
        self.on_judged: Callable[[str], None] = lambda kit: None

    async def judge_kit(self, folder: str) -> KitVerdict:
        return await asyncio.to_thread(self._judge, Path(folder))

    def _judge(self, folder: Path) -> KitVerdict:
        self.judged.append(folder.name)
        self.on_judged(folder.name)
        assert all((folder / name).is_dir() for name in METADATA_FOLDERS)
        complaint = self.complaints.get(folder.name)
        if self.refuses_next or (folder / "image" / "damaged.json").exists():
            self.refuses_next = max(0, self.refuses_next - 1)
            complaint = Complaint(what="kit", reason=Reason.METADATA, detail="this copy is damaged")
        if complaint is not None:
            return KitVerdict(complaint=complaint, terms=self.terms)
        body = decode((folder / KIT_FILE).read_bytes(), KitBody, limit=limits.KIT_BYTES)
        return KitVerdict(kit=body, expires_ms=EXPIRES_MS, signers=self.signers, terms=self.terms)


class PlainUpdates:
    """Judges as the real one, and installs when a test says so."""

    def __init__(self, state: StateDb) -> None:
        self.memory = Memory(state)
        self.state = state
        self.record = UpdateRecord()
        self.inventory: Inventory = INVENTORY
        self.started = True
        self.offered: list[tuple[AssignmentBody, str | None]] = []
        self.withdrawn: list[str] = []
        self.there: list[str] = []
        self.why = ""
        self.puts_off = ""
        self.reading = Reading(ms=EXPIRES_MS - 1, sure=True)

    def progress(self) -> Progress:
        return Progress(self.record.state, why=self.why)

    async def learn(self, terms: Terms) -> None:
        await asyncio.to_thread(self.memory.learn, terms)

    async def offer(
        self,
        assignment: AssignmentBody,
        manifest_bytes: bytes,
        terms: Terms,
        may_install: bool,
        *,
        forced: str | None = None,
    ) -> rules.Accepted | rules.Later | Refused:
        assert may_install
        if self.puts_off:
            return rules.Later(self.puts_off)
        try:
            verdict = await asyncio.to_thread(self._judge, assignment, manifest_bytes, terms, forced)
        except Refused as refused:
            return refused
        if isinstance(verdict, rules.Accepted):
            if not self.offered or self.offered[-1] != (assignment, forced):
                self.offered.append((assignment, forced))
            offer, current = verdict.offer, self.record.offer
            if current is not None and current.release == offer.release and offer.forced is None:
                offer = msgspec.structs.replace(offer, forced=current.forced)
            self.record = msgspec.structs.replace(self.record, state=State.FETCH, offer=offer)
        return verdict

    def _judge(
        self, assignment: AssignmentBody, data: bytes, terms: Terms, forced: str | None
    ) -> rules.Accepted | rules.Later:
        floor = self.memory.floor()
        time = rules.Time(self.reading.ms, self.reading.sure, self.reading.ms)
        return rules.judge_offer(
            assignment,
            data,
            terms,
            MACHINE,
            floor=floor,
            record=self.record,
            refused=self.memory.refused(),
            delisted=self.memory.delisted(),
            forced=forced,
            permit=rules.permit_for(assignment.manifest.sha256, terms, DEVICE, floor, time),
        )

    def withdraw_kit(self, kit: str) -> None:
        self.withdrawn.append(kit)
        self.record = UpdateRecord(committed=self.record.committed)

    def kit_is_there(self, kit: str) -> None:
        self.there.append(kit)

    def commit(self, release: Release) -> None:
        """As if `release` had been installed."""
        held = Held(
            digest=release.digest,
            version=release.version,
            release_counter=release.counter,
            era=release.era,
        )
        permit_ms = self.record.offer.permit_ms if self.record.offer is not None else 0
        self.record = UpdateRecord(committed=held, active=release.digest)
        for name, value in floors_of(held, permit_ms).items():
            self.state.raise_floor(name, value)

    def give_up(self) -> None:
        """As if what is under way had ended unfinished, with no retries left."""
        offer = self.record.offer
        assert offer is not None
        ended = Ended(release=offer.release, rollout=offer.rollout, outcome="unfinished")
        tried = Tried(release=offer.release.digest, rollout=offer.rollout, count=offer.trial.max_retries + 1)
        self.record = UpdateRecord(committed=self.record.committed, last=ended, tried=(tried,))


class KitYard:
    """A machine, and a folder in which sticks appear. Pauses between tries of a transfer go through `sleep`."""

    def __init__(
        self,
        folder: Path,
        *,
        apply: Applying = "auto",
        trust: Trust | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.media = folder / "media"
        self.media.mkdir(parents=True, exist_ok=True)
        self.state = StateDb(folder / "state.db")
        self.store = Store(folder / "store", free=lambda _: 1 << 40)
        self.updates = PlainUpdates(self.state)
        self.trust: Any = trust or BelievingTrust()
        # Not the kernel's mounts: whatever else runs here mounts things, and would wake it.
        self.finder = Finder([self.media], mounts=folder / "no mounts", answer_s=5)
        self.shelf = Shelf()
        self.patches = PatchBook(self.state, "0.1.0")
        source = NotingSource(self.shelf)
        transfer = Transfer(source, self.store, STICK, count=lambda _: None, notes=self.patches, sleep=sleep)
        self.fetcher = KitFetcher(transfer, source, self.finder.wake)
        self.copies = folder / "run" / "kits"
        self.kits = Kits(
            device=DEVICE,
            folder=self.copies,
            finder=self.finder,
            shelf=self.shelf,
            chooser=Chooser(
                device=DEVICE,
                machine=self.updates,
                memory=Memory(self.state),
                store=self.store,
                patches=self.patches,
                held=self._held,
                shelf=self.shelf,
                manifests=self.fetcher,
                now=lambda: self.updates.reading,
            ),
            trust=self.trust,
            updates=self.updates,
            state=self.state,
            apply=apply,
        )

    async def _held(self) -> tuple[str, ...]:
        return ()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["KitYard"]:
        task = asyncio.create_task(self.kits.run())
        try:
            yield self
        finally:
            await cancel(task)
            self.state.close()

    async def trusts(self, *kit_keys: str, version: int) -> None:
        """A contact brought the newest word on who signs kits: two of these have to."""
        roster = Roster(version=version, kit_keys=kit_keys, kit_threshold=2)
        await asyncio.to_thread(self.state.put, ROSTER, encode(roster))

    async def look(self) -> dict[str, KitShown]:
        """After a person wanted it looked again."""
        return {kit.kit: kit for kit in (await self.kits.look()).kits}

    async def turn(self) -> dict[str, KitShown]:
        """After whatever changed was noticed."""
        await self.kits._next_turn()
        return {kit.kit: kit for kit in self.kits.shown().kits}

    def under_way(self) -> Offer | None:
        return self.updates.record.offer


def manifest_of(release: Release) -> Payload:
    return signed(release.manifest_bytes)


def blob_name(content: bytes) -> str:
    return digest(content)
