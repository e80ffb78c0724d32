"""One contact: tell the server how the machine is, hear what it says, and hand each part to whom it concerns.

Nothing of an answer is believed before trust has judged it. The contact id is kept before it is sent and used again
until an answer to it was taken in, and a repeated contact tells the same statuses; so the server can tell a repetition
from a second machine with the same key, and nothing is told twice or never.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from device.hardware import inventory_digest
from device.kits.forces import drop_forces, untold_forces
from device.kits.report import last_number
from device.link import Answer
from device.outbox.box import Outbox
from device.recovery import Recovery
from device.state_db import StateDb
from device.store import Store
from device.transfer.patch_book import PatchBook
from device.trust.port import WALL_CLOCK, Complaint, Terms, Trust, Verdict
from protocol import limits
from protocol.errors import HeadlandError, LinkError, Reason, Refused
from protocol.ids import DeviceId, Digest, Millis, Name, ProductName, Token
from protocol.kits import StickReport, is_kit
from protocol.messages import (
    UNMETERED,
    Alert,
    Counters,
    GivenBack,
    Inventory,
    SignedFile,
    SyncAnswer,
    SyncRequest,
    TrustMark,
    VersionReport,
)
from protocol.objects import AssignmentBody, Payload
from protocol.wire import Message, decode, encode

LOG: Final = logging.getLogger("headland.contact")
KEY: Final = "contact"
RECORD_BYTES: Final = limits.MIB
# A request stays below limits.SYNC_BYTES: digests take 67 bytes each, a status or an alert up to 2.3 KiB.
TOLD_DIGESTS: Final = 1024
TOLD_STATUSES: Final = 32
TOLD_ALERTS: Final = 16
TOLD_FORCES: Final = 4  # up to 4.3 KiB each
STICK_STATUSES: Final = 128  # of limits.REPORT_BODY_BYTES less than half, with the alerts
STICK_ALERTS: Final = 64
COMPLAINTS_KEPT: Final = 32
DETAIL_CHARACTERS: Final = 2000
MANIFEST: Final = "manifest"  # what is complained of that the server's blobs do not hold as signed


class ContactRecord(Message):
    """What is kept between contacts, in `state.db`.

    Args:
        pending: The id of a contact that was begun and not yet answered, with what it told.
        told_statuses: Ids of the statuses in it.
        told_alerts: Ids of the alerts in it.
        sync_token: Of the last answer.
        inventory: Hash of the inventory that the server has whole.
        versions: Of all trusted roles, by the last verdict.
        complaints: What trust complained of last time: reported once while it goes on.
        set_apart: The server says that this identity was seen twice.
        last_ms: When an answer was last taken in.
        poll_s: What that answer asked for.
    """

    pending: Token | None = None
    told_statuses: tuple[Token, ...] = ()
    told_alerts: tuple[Token, ...] = ()
    sync_token: Token | None = None
    inventory: Digest | None = None
    versions: dict[str, int] = {}
    complaints: tuple[str, ...] = ()
    set_apart: bool = False
    last_ms: Millis = 0
    poll_s: float = 60.0


class Door(Protocol):
    """The server's door, as `device.link.Link`."""

    async def post(self, path: str, body: bytes, *, limit: int, content_type: str = ...) -> Answer:
        """One POST, read whole."""
        ...


class Manifests(Protocol):
    """Fetches a manifest, as `device.transfer.fetch.Transfer`."""

    async def small(self, payload: Payload, limit: int) -> bytes:
        """The blob with the signed hash and length."""
        ...


class Updates(Protocol):
    """Takes offers, as `device.update.updater.Updater`."""

    async def offer(self, assignment: AssignmentBody, manifest_bytes: bytes, terms: Terms, may_install: bool) -> object:
        """Judges an assignment and, if it may be installed, has it installed."""
        ...

    async def learn(self, terms: Terms) -> None:
        """Keeps what the newest trusted repository says."""
        ...

    def withdraw(self) -> None:
        """The director offers nothing now."""
        ...

    def link_is_up(self) -> None:
        """A contact succeeded."""
        ...

    def report(self) -> VersionReport:
        """What runs."""
        ...


class Shelf(Protocol):
    """Signed files that this machine trusts, as `device.giving_back.SignedFiles`."""

    def find(self, wanted: Sequence[str]) -> tuple[SignedFile, ...]:
        """Those that are here; blocks."""
        ...


class Timepiece(Protocol):
    """As `device.clock.Clock`."""

    def boot_s(self) -> float:
        """CLOCK_BOOTTIME in seconds."""
        ...

    def reload(self) -> None:
        """Takes over newly verified time; blocks."""
        ...


@dataclass(frozen=True)
class Facts:
    """What the agent knows of the machine at this moment, for the request."""

    inventory: Inventory
    counters: Counters
    now_ms: Millis
    sure_of_time: bool
    link: Name = UNMETERED
    link_rate_kib_s: int = 0
    parts: Mapping[Digest, int] = field(default_factory=dict)  # of payloads that are under way


async def _nothing() -> tuple[Digest, ...]:
    return ()


class Contact:
    """Makes contacts, one at a time.

    Args:
        device: This machine.
        product: What it follows.
        door: To the server.
        trust: Judges answers.
        state: Where the record is kept.
        store: Whose digests are told.
        outbox: Whose positions are told, and which gets receipts.
        manifests: Fetches what an assignment names.
        updates: Takes offers.
        clock: Of the machine.
        facts: Reads the machine; may block, is called in a thread.
        draw_token: 128 random bits as 32 hexadecimal digits.
        patches: Knows which failed.
        shelf: Signed files that a server out of a backup may ask for; None: none are given.
        trusts: Marks of the CAs that this machine trusts; may block.
        held: Tells what is held elsewhere than in the store: layers, by the engine.
    """

    def __init__(
        self,
        device: DeviceId,
        product: ProductName,
        *,
        door: Door,
        trust: Trust,
        state: StateDb,
        store: Store,
        outbox: Outbox,
        manifests: Manifests,
        updates: Updates,
        clock: Timepiece,
        facts: Callable[[], Facts],
        draw_token: Callable[[], str],
        patches: PatchBook,
        shelf: Shelf | None = None,
        trusts: Callable[[], tuple[TrustMark, ...]] = tuple,
        held: Callable[[], Awaitable[tuple[Digest, ...]]] = _nothing,
    ) -> None:
        self._device = device
        self._product = product
        self._door = door
        self._trust = trust
        self._state = state
        self._store = store
        self._outbox = outbox
        self._manifests = manifests
        self._updates = updates
        self._clock = clock
        self._facts = facts
        self._draw_token = draw_token
        self._patches = patches
        self._shelf = shelf
        self._recovery = Recovery(state)
        self._trusts = trusts
        self._held = held

    async def make(self) -> SyncAnswer:
        """Makes one contact and carries out what it brought. A repetition after any failure is safe.

        Returns:
            The answer, for its poll interval.

        Raises:
            LinkError: The server could not be reached, or metadata not be fetched.
            Refused: The server turned the machine away (`REVOKED`, `CERTIFICATE`), or answered nonsense.
        """
        nonce = self._draw_token()
        record, request = await asyncio.to_thread(self._prepare, nonce, self._updates.report(), await self._held())
        asked_boot_s = self._clock.boot_s()
        body = (await self._door.post("/v1/sync", encode(request), limit=limits.ANSWER_BYTES)).content()
        answer = decode(body, SyncAnswer, limit=limits.ANSWER_BYTES)
        if answer.contact_id != request.contact_id:
            raise Refused(Reason.METADATA, "the server answered another contact than this one")
        await asyncio.to_thread(self._patches.mark_told, request.failed_patches, request.lifted_patches)
        await asyncio.to_thread(drop_forces, self._state, request.forces)
        record = _answered(record, request, answer)
        try:
            verdict = await self._trust.judge(answer, nonce, asked_boot_s)
        except LinkError:
            # The contact itself is done: its token counts, and what it told is told.
            await asyncio.to_thread(self._keep, record)
            raise
        await asyncio.to_thread(self._clock.reload)
        await asyncio.to_thread(self._take_in, record, verdict)
        await asyncio.to_thread(self._recovery.hear, verdict)
        await self._settle_results(answer, verdict, record)
        await self._pass_on(answer, verdict)
        await self._give_back(answer.want_metadata)
        return answer

    async def report_for_stick(self, number: int) -> StickReport:
        """What a contact would tell now, to go by stick; all of it stays to be told in a contact.

        Args:
            number: Of the report.
        """
        return await asyncio.to_thread(self._report, number, self._updates.report(), await self._held())

    def record(self) -> ContactRecord:
        """As it is kept; blocking."""
        return read_record(self._state)

    def _prepare(
        self, nonce: Token, report: VersionReport, held: tuple[Digest, ...]
    ) -> tuple[ContactRecord, SyncRequest]:
        record = read_record(self._state)
        facts = self._facts()
        statuses = self._state.pending_statuses(TOLD_STATUSES)
        alerts = self._state.pending_alerts(TOLD_ALERTS)
        if record.pending is None:
            record = msgspec.structs.replace(
                record,
                pending=self._draw_token(),
                told_statuses=tuple(status.id for status in statuses),
                told_alerts=tuple(alert.id for alert in alerts),
            )
            # Sealed: a database that goes back behind it would show a token that was used, as a copy of the disk does.
            self._state.put(KEY, encode(record), seal=True)
        assert record.pending is not None
        inventory_sha256 = inventory_digest(facts.inventory)
        request = SyncRequest(
            format=1,
            device=self._device,
            product=self._product,
            contact_id=record.pending,
            sync_token=record.sync_token,
            nonce=nonce,
            report=report,
            inventory_sha256=inventory_sha256,
            epoch=self._outbox.epoch,
            lanes=dict(self._outbox.positions()),
            inventory=None if record.inventory == inventory_sha256 else facts.inventory,
            statuses=tuple(status for status in statuses if status.id in record.told_statuses),
            alerts=tuple(alert for alert in alerts if alert.id in record.told_alerts),
            have=tuple(sorted({*self._store.digests(), *held}))[:TOLD_DIGESTS],
            versions=record.versions,
            counters=facts.counters,
            unsure_of_time=not facts.sure_of_time,
            link=facts.link,
            link_rate_kib_s=facts.link_rate_kib_s,
            parts=dict(list(facts.parts.items())[: limits.PARTS]),
            failed_patches=self._patches.untold(),
            lifted_patches=self._patches.lifted(),
            recovering=self._state.is_recovering,
            trusts=self._trusts()[: limits.TRUSTED_CAS],
            forces=untold_forces(self._state, TOLD_FORCES),
            stick_number=last_number(self._state),
        )
        return record, request

    def _report(self, number: int, report: VersionReport, held: tuple[Digest, ...]) -> StickReport:
        record, facts = read_record(self._state), self._facts()
        return StickReport(
            format=1,
            device=self._device,
            product=self._product,
            number=number,
            # A machine that lost its record shows none: its report is to replace nothing.
            sync_token=None if self._state.is_recovering else record.sync_token,
            at_ms=facts.now_ms,
            report=report,
            inventory=facts.inventory,
            epoch=self._outbox.epoch,
            lanes=dict(self._outbox.positions()),
            statuses=self._state.pending_statuses(STICK_STATUSES),
            alerts=self._state.pending_alerts(STICK_ALERTS),
            forces=untold_forces(self._state),
            have=tuple(sorted({*self._store.digests(), *held}))[:TOLD_DIGESTS],
            versions=record.versions,
            counters=facts.counters,
            unsure_of_time=not facts.sure_of_time,
        )

    def _take_in(self, record: ContactRecord, verdict: Verdict) -> None:
        """Keeps what the contact taught; what was told is forgotten, what is new to tell is queued."""
        facts = self._facts()
        for complaint in news(record.complaints, verdict.complaints):
            self._state.add_alert(alert_of(complaint, self._draw_token(), facts.now_ms))
        # What became of the manifest is not known yet: it is fetched after this.
        standing = [*_of_manifests(record), *(name_of(one) for one in verdict.complaints)]
        self._keep(
            msgspec.structs.replace(
                record,
                versions=verdict.versions,
                complaints=tuple(dict.fromkeys(standing))[:COMPLAINTS_KEPT],
                last_ms=facts.now_ms,
            )
        )

    def _keep(self, record: ContactRecord) -> None:
        told_statuses, told_alerts = record.told_statuses, record.told_alerts
        self._state.put(KEY, encode(msgspec.structs.replace(record, told_statuses=(), told_alerts=())))
        # After the record: a cut in between tells a status once more, which the server keeps once by its id.
        self._state.drop_statuses(told_statuses)
        self._state.drop_alerts(told_alerts)

    async def _settle_results(self, answer: SyncAnswer, verdict: Verdict, record: ContactRecord) -> None:
        await self._outbox.meet_generation(answer.generation)
        for receipt in verdict.receipts:
            await self._outbox.apply_receipt(receipt)
        if answer.set_apart and not record.set_apart:
            # Two machines number rows alike: from here on the rows of this one are its own.
            await self._outbox.begin_epoch()
        if answer.set_apart != record.set_apart:
            await asyncio.to_thread(self._note_set_apart, answer.set_apart)

    def _note_set_apart(self, set_apart: bool) -> None:
        record = read_record(self._state)
        self._state.put(KEY, encode(msgspec.structs.replace(record, set_apart=set_apart)))

    async def _pass_on(self, answer: SyncAnswer, verdict: Verdict) -> None:
        """Tells the update machine what the managers list and what the director offers."""
        if verdict.terms is not None:
            await self._updates.learn(verdict.terms)
        if answer.assignment is None:
            self._updates.withdraw()
        elif verdict.assignment is not None and verdict.terms is not None:
            try:
                manifest = await self._manifest(verdict.assignment)
            except Refused as refused:
                complaint = Complaint(what=MANIFEST, reason=refused.reason, detail=refused.message)
                await asyncio.to_thread(self._complain, complaint)
            else:
                await asyncio.to_thread(self._complain_no_more)
                await self._updates.offer(verdict.assignment, manifest, verdict.terms, verdict.may_install)
        self._updates.link_is_up()

    async def _give_back(self, wanted: Sequence[str]) -> None:
        """Gives a server that came out of a backup the signed files that it lacks. It asks again when this fails."""
        if not wanted or self._shelf is None:
            return
        files = await asyncio.to_thread(self._shelf.find, wanted)
        if not files:
            return
        try:
            (await self._door.post("/v1/metadata", encode(GivenBack(files=files)), limit=limits.KIB)).content()
        except HeadlandError as error:
            LOG.info("the server lacks signed files and did not take those of this machine: %s", error.message)
        else:
            LOG.info("gave the server %d signed files that it lacked", len(files))

    async def _manifest(self, assignment: AssignmentBody) -> bytes:
        if is_kit(assignment.rollout):  # it would be taken for what a stick brought
            raise Refused(Reason.METADATA, f"the server offers a rollout under the name of a kit: {assignment.rollout}")
        payload = assignment.manifest
        if await asyncio.to_thread(self._store.has, payload.sha256, payload.length_bytes):
            try:
                return await asyncio.to_thread(self._store.read, payload.sha256, limits.MANIFEST_BYTES)
            except HeadlandError:
                pass  # damaged on the disk: the network has it whole
        return await self._manifests.small(payload, limits.MANIFEST_BYTES)

    def _complain(self, complaint: Complaint) -> None:
        record = read_record(self._state)
        if not news(record.complaints, (complaint,)):
            return
        self._state.add_alert(alert_of(complaint, self._draw_token(), self._facts().now_ms))
        self._state.put(
            KEY, encode(msgspec.structs.replace(record, complaints=(*record.complaints, name_of(complaint))))
        )

    def _complain_no_more(self) -> None:
        """A manifest came whole: the next one that does not is news again."""
        record = read_record(self._state)
        manifests = _of_manifests(record)
        if manifests:
            complaints = tuple(name for name in record.complaints if name not in manifests)
            self._state.put(KEY, encode(msgspec.structs.replace(record, complaints=complaints)))


def _of_manifests(record: ContactRecord) -> tuple[str, ...]:
    return tuple(name for name in record.complaints if name.startswith(f"{MANIFEST}/"))


def read_record(state: StateDb) -> ContactRecord:
    """The kept record; an empty one when there is none or it cannot be read: the certificate renews its token."""
    found = state.get(KEY)
    if found is None:
        return ContactRecord()
    try:
        return decode(found, ContactRecord, limit=RECORD_BYTES)
    except Refused:
        return ContactRecord()


def news(known: tuple[str, ...], complaints: tuple[Complaint, ...]) -> tuple[Complaint, ...]:
    """Complaints that were not there last time, each once."""
    fresh: dict[str, Complaint] = {}
    for complaint in complaints:
        if name_of(complaint) not in known:
            fresh.setdefault(name_of(complaint), complaint)
    return tuple(fresh.values())


def name_of(complaint: Complaint) -> str:
    """What makes a complaint the same as before: its details may count seconds."""
    return f"{complaint.what}/{complaint.reason}"


def alert_of(complaint: Complaint, token: Token, at_ms: Millis) -> Alert:
    """A complaint as the server is told of it."""
    if complaint.what == WALL_CLOCK:
        kind = WALL_CLOCK
    else:
        kind = "stale-metadata" if complaint.reason is Reason.EXPIRED else f"refused-{complaint.what}"
    return Alert(
        id=token,
        kind=kind,
        at_ms=at_ms,
        reason=complaint.reason,
        detail=f"{complaint.what}: {complaint.detail}"[:DETAIL_CHARACTERS],
    )


def _answered(record: ContactRecord, request: SyncRequest, answer: SyncAnswer) -> ContactRecord:
    return msgspec.structs.replace(
        record,
        pending=None,
        sync_token=answer.sync_token,
        inventory=None if answer.want_inventory else request.inventory_sha256,
        poll_s=answer.poll_s,
    )
